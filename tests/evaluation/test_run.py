import math
import random
from dataclasses import replace

import numpy as np
import pytest

from hardwon.errors import BadItems, BadMedia, ModelError, RecipeError
from hardwon.evaluation import Benchmark, evaluate
from hardwon.items import Item


def unit(*values):
    return np.array(values) / math.hypot(*values)


def scores_of(report):
    return {result.name: (result.hits, result.ranks, result.ties) for result in report.results}


@pytest.fixture
def pencil(make_task, fake):
    """Three queries, four entries, vectors whose cosines can be read off."""
    task = make_task(q=3, c=4)
    model = fake(dim=2)
    angles = {"query 0": 0, "query 1": 90, "query 2": 45, "entry 0": 10, "entry 1": 30, "entry 2": 50, "entry 3": 80}
    for item in (*task.queries, *task.corpus):
        angle = math.radians(angles[item.text])
        model.vectors[item.key] = np.array([math.cos(angle), math.sin(angle)])
    return task, model


def test_hits_and_ranks_one_can_follow_with_a_pencil(pencil):
    task, model = pencil
    (result,) = evaluate(model, Benchmark("b", (task,)), progress=False).results
    # query 0 at 0°: entry 0 is nearest; query 1 at 90°: 3, 2, then its own 1; query 2 at 45°: its own 2, 5° away
    assert result.hits == (1, 0, 1)
    assert result.ranks == (1, 3, 1)
    assert result.ties == (0, 0, 0)
    assert (result.queries, result.candidates, result.chance) == (3, 4, 0.25)


def test_only_candidates_that_are_offered_count(pencil):
    task, model = pencil
    narrowed = replace(task, candidates=((3, 0), (0, 1), (2, 1, 0)))
    (result,) = evaluate(model, Benchmark("b", (narrowed,)), progress=False).results
    assert result.hits == (1, 1, 1)
    assert result.chance == pytest.approx((1 / 2 + 1 / 2 + 1 / 3) / 3, abs=1e-15)
    assert result.candidates == 2


def test_a_constant_model_gets_exactly_chance(benchmark_of, constant, make_task):
    several = make_task("several", 3, 7, gold=((0, 6), (1,), (2, 3, 4)), candidates=((0, 5, 6), (0, 1), (1, 2, 3, 4, 5, 6)))
    for dim in (2, 3, 7, 64):
        report = evaluate(constant(dim=dim), benchmark_of(*benchmark_of().tasks, several), progress=False)
        for result in report.results:
            assert math.fsum(result.hits) / result.queries == pytest.approx(result.chance, abs=1e-15)
            assert result.strict == 0
            assert result.tied == 1
        assert report.result("labels").hits == (1 / 3,) * 8
        assert report.mean().mean == pytest.approx(report.chance(), abs=1e-15)


def test_a_random_model_gets_about_chance(make_task, fake):
    tasks = (make_task("labels", 400, 5, meta_task="classification"), make_task("words", 400, 50))
    report = evaluate(fake(), Benchmark("b", tasks), progress=False)
    for result in report.results:
        assert abs(result.interval().mean - result.chance) < 0.04


def test_a_model_that_favours_what_comes_first_gains_nothing(make_task, fake):
    """Gold stands first everywhere: a harness that lets the first of equals win would score this model 100 %."""
    task = make_task(q=5, c=10, gold=((0,),) * 5)
    model = fake(dim=2)
    for item in task.corpus:
        model.vectors[item.key] = np.array([1.0, 0.0])
    (result,) = evaluate(model, Benchmark("b", (task,)), progress=False).results
    assert result.hits == (0.1,) * 5
    assert result.ranks == (5.5,) * 5


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_vectors_that_are_not_finite_are_an_error_for_the_model(benchmark_of, fake, bad):
    model = fake(dim=2)
    model.vectors[Item(text="far query 3").key] = np.array([bad, 1.0])
    with pytest.raises(
        BadItems, match=r"1 item of task labels_far .*\n  task labels_far, query 3: 'far query 3': its vector is not f"
    ):
        evaluate(model, benchmark_of(), progress=False)


def test_vectors_of_another_form_are_refused(benchmark_of, fake, picture, make_task):
    model = fake(dim=2)
    model.vectors[Item(text="query 3").key] = np.array([0.6, 0.6])
    with pytest.raises(ModelError, match=r"task labels, query 3: 'query 3': its vector has length 0.8485 instead of 1"):
        evaluate(model, benchmark_of(), progress=False)
    model = fake(dim=2)
    shown = Item(images=(picture("a.png"),))
    model.vectors[shown.key] = np.zeros(2)
    with pytest.raises(ModelError, match=r"task words, corpus entry 0: '<a.png>': its vector has length 0 "):
        evaluate(model, benchmark_of(make_task(q=1, c=1, corpus=(shown,))), progress=False)
    model = fake(dim=2)
    model.encode = lambda items, *, progress="": np.zeros((3, 2), dtype=np.float32)
    with pytest.raises(ModelError, match=r"task \w+: the model gives an array of shape \(3, 2\) for \d+ items, not \(\d+, 2\)"):
        evaluate(model, benchmark_of(), progress=False)


def test_every_distinct_item_of_all_tasks_is_encoded_once(benchmark_of, fake, make_task):
    shared = make_task("again", 12, 20, candidates=tuple((n, 19) for n in range(12)))  # the same items as "words"
    twins = make_task("twins", 2, 3, queries=(Item(text="query 0"), Item(text="entry 0")))  # a query that is an entry too
    model, tasks = fake(), (*benchmark_of().tasks, shared, twins)
    report = evaluate(model, benchmark_of(*tasks), progress=False)
    asked = [key for call in model.calls for key in call]
    assert len(asked) == len(set(asked)) == report.made["items"] == report.made["items_encoded"]
    assert set(asked) == {item.key for task in tasks for item in (*task.queries, *task.corpus)}
    assert model.calls[0] == sorted({item.key for item in (*twins.queries, *twins.corpus)})  # the fewest items first


def test_a_second_run_encodes_nothing_and_another_model_everything(benchmark_of, fake, tmp_path):
    first = evaluate(fake(), benchmark_of(), store=tmp_path, progress=False)
    again, other = fake(), fake(fingerprint="after one more step")
    second = evaluate(again, benchmark_of(), store=tmp_path, progress=False)
    assert (again.calls, second.made["items_encoded"]) == ([], 0)
    assert second.results == first.results
    third = evaluate(other, benchmark_of(), store=tmp_path, progress=False)
    assert third.made["items_encoded"] == first.made["items_encoded"] == first.made["items"]
    assert third.results == evaluate(fake(fingerprint="after one more step"), benchmark_of(), progress=False).results


def test_a_task_that_fails_does_not_stop_the_others(benchmark_of, fake, make_task, tmp_path, capsys):
    gone = make_task("gone", 2, 2, corpus=(Item(text="there"), Item(images=(tmp_path / "gone.png",))))
    benchmark = benchmark_of(*benchmark_of().tasks, gone)
    model = fake(dim=2)
    model.vectors[Item(text="far entry 2").key] = np.array([math.nan, 1.0])
    with pytest.raises(BadMedia, match=r"task gone, corpus entry 1: .*gone.png does not exist"):
        evaluate(model, benchmark, progress=False)
    report = evaluate(model, benchmark, on_error="skip")
    assert [result.name for result in report.results] == ["labels", "words", "boxes"]
    assert set(report.failed) == {"labels_far", "gone"}
    assert "task labels_far, corpus entry 2: 'far entry 2': its vector is not finite" in report.failed["labels_far"]
    whole = evaluate(fake(dim=2), benchmark_of(), progress=False)
    assert scores_of(report) == {name: row for name, row in scores_of(whole).items() if name != "labels_far"}
    assert report.revision != whole.revision  # a picture that is not there is other data
    said = " ".join(str(report).split())
    for words in ("2 of 5 data sets are missing (labels_far, gone)", "missing: task gone, corpus entry 1"):
        assert words in said
    assert "gone.png does not" in said
    told = capsys.readouterr().err
    assert "labels_far failed: 1 item of task labels_far cannot be used" in told
    assert "mean:" not in said
    with pytest.raises(ModelError, match=r"no task could be asked:\ntask gone, corpus entry 1"):
        evaluate(model, benchmark, tasks=["gone"], on_error="skip", progress=False)


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_pictures_of_a_task_that_nobody_asked_may_be_gone(benchmark_of, fake, make_task, tmp_path, on_error):
    gone = make_task("gone", 2, 2, corpus=(Item(text="there"), Item(images=(tmp_path / "gone.png",))))
    benchmark = benchmark_of(*benchmark_of().tasks, gone)
    report = evaluate(fake(), benchmark, tasks=["words"], progress=False, on_error=on_error)
    assert [result.name for result in report.results] == ["words"]
    assert (report.failed, report.missing) == ({}, ("labels", "labels_far", "boxes", "gone"))
    assert report.revision == benchmark.revision != benchmark_of().revision
    assert report.revision == evaluate(fake(), benchmark, progress=False, on_error="skip").revision


def test_a_reranker_that_fails_in_one_task(benchmark_of, fake, reranker):
    def rule(queries, items, scores):
        return np.full_like(scores, math.nan) if "far" in queries[0].text else scores

    report = evaluate(fake(), benchmark_of(), rerank=reranker(3, rule), on_error="skip", progress=False)
    assert report.failed == {
        "labels_far": "task labels_far: scores of the reranker are not finite for 30 queries, first for 'far query 0'"
    }


def test_an_instruction_makes_another_item(make_task, fake):
    told = tuple(Item(text=f"query {n}", instruction="Find it.") for n in range(3))
    tasks = (make_task("plain", 3, 3), make_task("told", 3, 3, queries=told))
    model = fake()
    evaluate(model, Benchmark("b", tasks), progress=False)
    assert sum(map(len, model.calls)) == 3 + 3 + 3


def test_tasks_are_told_as_they_come_or_not_at_all(benchmark_of, fake, capsys):
    model = fake()
    encode, told = model.encode, []

    def watched(items, *, progress=""):
        told.append(capsys.readouterr().err)
        return encode(items, progress=progress)

    model.encode = watched
    evaluate(model, benchmark_of())
    told.append(capsys.readouterr().err)
    lines = [text.split() for text in told]
    assert [line[0] if line else "" for line in lines] == ["", "boxes", "labels", "words", "labels_far"]
    assert " ".join(lines[1][3:]) == "hit@1 of 5 queries (1 of 4)"
    assert "encoding tiny: 77/77 items" in told[-1]
    evaluate(fake(), benchmark_of(), progress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_the_corpus_plays_no_part(make_task, fake, reranker, seed):
    rng = random.Random(seed)
    q, c = 7, 300
    task = make_task(q=q, c=c, gold=tuple((n, n + 50) for n in range(q)))
    narrowed = replace(task, name="narrowed", candidates=tuple((n, n + 50, *range(100, 100 + 3 * n)) for n in range(q)))
    order = rng.sample(range(c), c)  # new position -> old
    back = {old: new for new, old in enumerate(order)}

    def shuffled(task):
        moved = [tuple(rng.sample([back[p] for p in row], len(row))) for row in task.candidates or ()]
        corpus = tuple(task.corpus[old] for old in order)
        return replace(
            task, corpus=corpus, gold=tuple(tuple(back[p] for p in row) for row in task.gold), candidates=tuple(moved) or None
        )

    model = fake(dim=17)
    for item in rng.sample(task.corpus, c // 2):  # half of them collapsed: ties, at the depth of the reranker too
        model.vectors[item.key] = unit(*range(1, 18))
    before, after = Benchmark("b", (task, narrowed)), Benchmark("b", (shuffled(narrowed), shuffled(task)))
    for rerank in (
        None,
        reranker(20, lambda q, i, s: np.array([[len(item.text) for item in row] for row in i], dtype=np.float32)),
    ):
        reports = [evaluate(model, benchmark, rerank=rerank, progress=False) for benchmark in (before, after)]
        assert scores_of(reports[0]) == scores_of(reports[1])
        assert reports[0].means() == reports[1].means()


def test_blocks_play_no_part(make_task, fake, monkeypatch):
    from hardwon.evaluation import ranking

    benchmark = Benchmark("b", (make_task(q=23, c=37), make_task("narrow", 5, 9, candidates=((0, 1, 2, 3, 4),) * 5)))
    whole = evaluate(fake(), benchmark, progress=False)
    monkeypatch.setattr(ranking, "_QUERIES", 3)
    monkeypatch.setattr(ranking, "_CORPUS", 5)
    assert evaluate(fake(), benchmark, progress=False).results == whole.results


def test_a_copy_of_the_right_answer_is_not_a_miss(make_task, fake, picture):
    same = [Item(images=(picture(name, 7),)) for name in ("one.png", "two.png")]
    other = Item(images=(picture("other.png", 8),))
    task = make_task(q=2, c=4, corpus=(same[0], other, same[1], Item(text="x")), gold=((0,), (2,)))
    model = fake(dim=2)
    model.vectors = {same[0].key: unit(1, 0), other.key: unit(1, 1), Item(text="x").key: unit(0, 1)}
    model.vectors |= {query.key: unit(1, 0.1) for query in task.queries}
    (result,) = evaluate(model, Benchmark("b", (task,)), progress=False).results
    assert result.hits == (1, 1)
    assert result.ties == (0, 0)
    assert result.chance == 2 / 4
    # a copy with an instruction shows the same, too; one that is not offered changes nothing
    told = replace(task, corpus=(same[0], other, replace(same[1], instruction="Look."), Item(text="x")))
    assert evaluate(model, Benchmark("b", (told,)), progress=False).results[0].chance == 2 / 4
    apart = replace(task, candidates=((0, 1), (1, 2)))
    assert evaluate(model, Benchmark("b", (apart,)), progress=False).results[0].chance == 1 / 2


def test_the_order_of_tasks_plays_no_part(benchmark_of, fake):
    tasks = benchmark_of().tasks
    one, two = (evaluate(fake(), benchmark_of(*order), progress=False) for order in (tasks, tasks[::-1]))
    assert scores_of(one) == scores_of(two)
    assert one.revision == two.revision
    assert one.means() == two.means()
    assert all(difference.value.mean == 0 for difference in one.diff(two).tasks)


def test_some_tasks_only(benchmark_of, fake):
    report = evaluate(fake(), benchmark_of(), tasks=["words", "labels"], progress=False)
    assert [result.name for result in report.results] == ["labels", "words"]
    assert report.missing == ("labels_far", "boxes")
    assert report.revision == benchmark_of().revision
    with pytest.raises(RecipeError, match="unknown task of tiny 'word': did you mean 'words'"):
        evaluate(fake(), benchmark_of(), tasks=["word"])
    with pytest.raises(RecipeError, match="tasks is empty"):
        evaluate(fake(), benchmark_of(), tasks=[])


def test_the_report_says_what_it_is_about(benchmark_of, fake, reranker):
    report = evaluate(fake(fingerprint="weights"), benchmark_of(), label="mine", progress=False)
    assert (report.model, report.label, report.benchmark) == ("weights", "mine", "tiny")
    assert report.revision == benchmark_of().revision
    assert report.made["rerank"] is None
    assert "torch" in report.made["versions"]
    again = evaluate(fake(), benchmark_of(), rerank=reranker(2, lambda q, i, s: s), progress=False)
    assert again.made["rerank"] == {
        "type": "FakeReranker",
        "depth": 2,
        "pairs": 2 * (8 + 30 + 12 + 5),
        "queries_read": 55,
        "queries": 55,
    }
    assert report.made["model"] == {"type": "FakeEncoder", "fingerprint": "weights"}
    assert len(report.made["code"]) == 32


def test_what_comes_first_and_the_worst_rank_are_kept(pencil):
    task, model = pencil
    (result,) = evaluate(model, Benchmark("b", (task,)), progress=False).results
    assert result.firsts == (0, 3, 2)
    assert result.worst == (1, 3, 1)
    model.vectors[task.corpus[1].key] = model.vectors[task.corpus[0].key]  # two that score the same
    narrowed = replace(task, candidates=((3, 0, 1), (0, 1), (2, 1, 0)), gold=((0,), (1,), (2,)))
    (result,) = evaluate(model, Benchmark("b", (narrowed,)), progress=False).results
    assert result.hits == (0.5, 0.5, 1)
    assert result.firsts == (1, 0, 2)  # of equals the one that is not gold
    assert (result.worst, result.ranks) == ((2, 2, 1), (1.5, 1.5, 1))
    assert result.strict == 1 / 3


# ---- reranking


def test_a_reranker_that_agrees_changes_nothing(benchmark_of, fake, reranker):
    plain = evaluate(fake(), benchmark_of(), progress=False)
    for depth in (1, 3, 1000):
        same = evaluate(fake(), benchmark_of(), rerank=reranker(depth, lambda q, i, s: s), progress=False)
        assert same.results == plain.results


def test_a_reranker_that_reverses_the_order(pencil, reranker):
    task, model = pencil
    reverse = reranker(3, lambda q, i, s: -s)
    (result,) = evaluate(model, Benchmark("b", (task,)), rerank=reverse, progress=False).results
    # first three of query 0: 0 1 2, reversed 2 1 0: gold third; query 1: 3 2 1 -> 1 first; query 2: 2 1 3|0 (35° both)
    assert result.hits == (0, 1, 0)
    assert result.ranks == (3, 1, 3)
    (queries, items, scores, progress) = reverse.seen[0]
    assert [query.text for query in queries] == ["query 0", "query 1", "query 2"]
    assert [item.text for item in items[0]] == ["entry 0", "entry 1", "entry 2"]
    assert scores[0] == pytest.approx([math.cos(math.radians(a)) for a in (10, 30, 50)], abs=1e-6)
    assert progress == ""


def test_what_lies_below_the_depth_keeps_its_place(pencil, reranker):
    task, model = pencil
    deep = replace(task, gold=((3,), (0,), (0,)))
    (result,) = evaluate(model, Benchmark("b", (deep,)), rerank=reranker(2, lambda q, i, s: s - 1e6), progress=False).results
    assert result.ranks[:2] == (4, 4)  # however low the reranker scores the first two


def test_scores_of_any_size_only_order(pencil, reranker):
    task, model = pencil
    rules = [lambda q, i, s: -s, lambda q, i, s: -1e30 * s, lambda q, i, s: 1e-30 * -s]
    benchmark = Benchmark("b", (task,))
    found = [evaluate(model, benchmark, rerank=reranker(4, rule), progress=False).results for rule in rules]
    assert found[0] == found[1] == found[2]


def test_ties_of_the_reranker_are_ties(pencil, reranker):
    task, model = pencil
    flat = reranker(3, lambda q, i, s: np.zeros_like(s))
    (result,) = evaluate(model, Benchmark("b", (task,)), rerank=flat, progress=False).results
    assert result.hits == (1 / 3, 1 / 3, 1 / 3)
    assert result.ties == (2, 2, 2)


def test_queries_with_fewer_candidates_are_asked_for_apart(make_task, fake, reranker):
    task = make_task(q=5, c=9, candidates=((0, 1), (1, 2, 3, 4), (0, 2), tuple(range(9)), (4,)))
    model = reranker(4, lambda q, i, s: -s)
    report = evaluate(fake(), Benchmark("b", (task,)), rerank=model, label="x")
    asked = [([query.text for query in queries], scores.shape, progress) for queries, _, scores, progress in model.seen]
    assert asked == [
        (["query 1", "query 3"], (2, 4), "reranking words"),
        (["query 0", "query 2"], (2, 2), "reranking words"),
        (["query 4"], (1, 1), "reranking words"),
    ]
    assert report.results[0].hits[4] == 1


def test_a_reranker_that_cannot_be_used_is_refused(pencil, reranker):
    task, model = pencil
    benchmark = Benchmark("b", (task,))
    broken = reranker(2, lambda q, i, s: np.where(np.arange(3)[:, None] == 1, np.nan, s))
    with pytest.raises(
        ModelError, match="task words: scores of the reranker are not finite for 1 queries, first for 'query 1'"
    ):
        evaluate(model, benchmark, rerank=broken, progress=False)
    with pytest.raises(ModelError, match=r"the reranker gives scores of shape \[3, 1\], asked were \[3, 2\]"):
        evaluate(model, benchmark, rerank=reranker(2, lambda q, i, s: s[:, :1]), progress=False)
    with pytest.raises(RecipeError, match="depth of a reranker must be 1 or more, got 0"):
        evaluate(model, benchmark, rerank=reranker(0, lambda q, i, s: s), progress=False)
