import random
from dataclasses import replace

import pytest

from hardwon.errors import RecipeError
from hardwon.evaluation import Benchmark, cost_of_sample, evaluate, sampled
from hardwon.models import CachedEncoder


def asked(benchmark):
    return {task.name: sorted(query.key for query in task.queries) for task in benchmark.tasks}


@pytest.fixture
def large(make_task):
    own = tuple((n, n + 60, (n + 61) % 120) for n in range(60))
    return Benchmark(
        "large",
        (make_task("small", 3, 5), make_task("whole", 50, 50), make_task("own", 60, 120, candidates=own, prefix="own ")),
    )


def test_every_task_gives_as_many_as_it_can(large):
    sizes = {task.name: len(task.queries) for task in sampled(large, 31).tasks}
    assert sizes == {"small": 3, "whole": 14, "own": 14}
    assert {len(task.queries) for task in sampled(large, 5).tasks} == {1, 2}
    assert sampled(large, 113) is large
    assert sampled(large, 1000) is large
    assert sampled(large, 31).name == "large (31 of 113 queries)"
    with pytest.raises(RecipeError, match="a budget of 2 queries is too small: large has 3 data sets, each needs one"):
        sampled(large, 2)


def test_a_budget_is_spent_on_the_tasks_that_are_asked(large, fake):
    part = sampled(large, 40, tasks=["own"])
    assert {task.name: len(task.queries) for task in part.tasks} == {"small": 3, "whole": 50, "own": 40}
    assert part.name == "large (40 of 60 queries)"
    assert evaluate(fake(), part, tasks=["own"], progress=False).missing == ("small", "whole")
    assert sampled(large, 60, tasks=["own"]) is large
    assert len(sampled(large, 1, tasks=["own"]).tasks[2].queries) == 1
    with pytest.raises(RecipeError, match="unknown task of large 'owl': did you mean 'own'"):
        sampled(large, 40, tasks=["owl"])


def test_only_what_the_queries_search_is_encoded(large, fake):
    model, part = fake(), sampled(large, 23)
    evaluate(model, part, progress=False)
    own = part.tasks[2]
    assert len(own.corpus) == len({n for row in own.candidates for n in row}) <= 3 * len(own.queries)
    assert len(part.tasks[1].corpus) == 50  # each of its queries searches all of it
    assert sum(map(len, model.calls)) == len({i.key for t in part.tasks for i in (*t.queries, *t.corpus)})


def test_the_answers_are_those_of_the_whole(large, fake):
    whole, part = (evaluate(fake(), benchmark, progress=False) for benchmark in (large, sampled(large, 40)))
    for before, after in zip(large.tasks, sampled(large, 40).tasks, strict=True):
        place = {query.key: n for n, query in enumerate(before.queries)}
        rows = [place[query.key] for query in after.queries]
        hits = whole.result(before.name).hits
        assert part.result(before.name).hits == tuple(hits[row] for row in rows)


@pytest.mark.parametrize("seed", range(3))
def test_order_plays_no_part_and_the_seed_does(large, seed):
    order = random.Random(seed).sample(range(60), 60)
    own = large.tasks[2]
    moved = replace(
        own,
        queries=tuple(own.queries[n] for n in order),
        gold=tuple(own.gold[n] for n in order),
        candidates=tuple(own.candidates[n] for n in order),
    )
    other = Benchmark("large", (moved, *large.tasks[:2]))
    assert asked(sampled(other, 30, seed=seed)) == asked(sampled(large, 30, seed=seed))
    assert asked(sampled(large, 30, seed=seed)) != asked(sampled(large, 30, seed=seed + 1))


def test_what_a_sample_costs(make_task, fake):
    benchmark = Benchmark("b", tuple(make_task(f"t{n}", 400, 4, prefix=f"{n} ") for n in range(3)))
    model = CachedEncoder(fake(), None)
    truth = evaluate(model, benchmark, progress=False).mean().mean
    inside, said = 0, ""
    for seed in range(40):
        report = evaluate(model, sampled(benchmark, 120, seed=seed), progress=False)
        said = cost_of_sample(report, benchmark)
        points = float(said.split("±")[1].split()[0])
        inside += abs(report.mean().mean - truth) * 100 <= points
    assert said.startswith("120 of 1,200 queries asked: the mean of all of them lies within ±")
    assert 35 <= inside  # of 40; 38 are expected
    assert "±0.0" in cost_of_sample(evaluate(model, benchmark, progress=False), benchmark)
