"""Tasks that are told in nDCG@5, with several gold positions of different grades."""

import pytest


def graded(make_task, grades=((3.0, 1.0), (1.0, 2.0)), **changes):
    row = {"gold": ((0, 1), (2, 0)), "grades": grades, "metric": "ndcg@5", "meta_task": "documents"}
    return make_task("pages", 2, 4, **(row | changes))


def test_a_result_is_the_ndcg_of_plain_python(make_task, benchmark_of, fake, shown):
    import math

    import numpy as np

    from hardwon.evaluation import evaluate

    task, encoder = graded(make_task), fake()
    report = evaluate(encoder, benchmark_of(task), progress=False)
    result = report.result("pages")
    for number, (gold, grades) in enumerate(zip(task.gold, task.grades, strict=True)):
        query, corpus = encoder.random(task.queries[number]), [encoder.random(item) for item in task.corpus]
        order = np.argsort([-float(query @ vector) for vector in corpus])
        grade = dict(zip(gold, grades, strict=True))
        gained = sum(grade.get(int(c), 0) / math.log2(2 + n) for n, c in enumerate(order[:5]))
        ideal = sum(g / math.log2(2 + n) for n, g in enumerate(sorted(grades, reverse=True)))
        assert result.hits[number] == pytest.approx(gained / ideal, abs=1e-6)
    assert result.metric == "ndcg@5"
    assert result.measures["ndcg_linear@5"] == pytest.approx(sum(result.hits) / 2)
    assert "pages (ndcg@5)" in shown(report)
    assert "visual documents" in shown(report)
    assert type(result).from_json(result.to_json()) == result


def test_a_constant_model_gets_what_guessing_gets(make_task, benchmark_of, constant):
    from hardwon.evaluation import evaluate

    result = evaluate(constant(), benchmark_of(graded(make_task)), progress=False).result("pages")
    assert sum(result.hits) / 2 == pytest.approx(result.chance)
    assert 0 < result.chance < 1


def test_the_worst_order_of_ties_is_that_of_the_metric(make_task, benchmark_of, constant, shown):
    import math
    from dataclasses import replace

    from hardwon.evaluation import evaluate

    report = evaluate(constant(), benchmark_of(graded(make_task)), progress=False)
    # The two that belong to a query stand last of four, the better one behind the other.
    lost = [sum(g / math.log2(2 + n) for n, g in zip((2, 3), sorted(grades), strict=True)) for grades in ((3, 1), (1, 2))]
    best = [sum(g / math.log2(2 + n) for n, g in enumerate(sorted(grades, reverse=True))) for grades in ((3, 1), (1, 2))]
    strict = sum(a / b for a, b in zip(lost, best, strict=True)) / 2
    assert report.result("pages").strict == pytest.approx(strict)
    assert f"were every tie lost, the mean would be {100 * strict:.1f} %" in " ".join(shown(report).split())
    without = replace(report, results=(replace(report.results[0], measures={}),))
    text = " ".join(shown(without).split())
    assert "WARNING" in text
    assert "were every tie lost" not in text


def test_grades_and_metric_are_a_part_of_what_is_asked_and_survive_a_file(make_task, benchmark_of, tmp_path):
    from hardwon.evaluation import read_benchmark, write_benchmark

    made = benchmark_of(graded(make_task))
    write_benchmark(made, tmp_path / "one")
    read = read_benchmark(tmp_path / "one")
    assert (read.tasks[0].grades, read.tasks[0].metric, read.revision) == (made.tasks[0].grades, "ndcg@5", made.revision)
    others = [graded(make_task, ((3.0, 1.0), (2.0, 1.0))), graded(make_task, metric="hit@1"), graded(make_task, None)]
    assert len({made.revision, *(benchmark_of(task).revision for task in others)}) == 4


@pytest.mark.parametrize(
    ("grades", "message"),
    [
        (((1.0, 0.0), (1.0, 1.0)), "query 0: a grade must be finite and above 0, got 0.0"),
        (((1.0, 1.0), (1.0,)), "query 1: 1 grades for 2 gold positions"),
        (((1.0, 1.0),), "2 queries, grades for 1"),
    ],
)
def test_bad_grades_are_refused(make_task, grades, message):
    from hardwon.errors import DataError

    with pytest.raises(DataError, match=message):
        graded(make_task, grades)


def test_bad_grades_of_a_file_are_named(make_task, benchmark_of, tmp_path):
    from hardwon.errors import BadRows
    from hardwon.evaluation import read_benchmark, write_benchmark

    write_benchmark(benchmark_of(graded(make_task)), tmp_path / "one")
    file = tmp_path / "one/pages/queries.jsonl"
    file.write_text(file.read_text().replace("[3.0, 1.0]", '["a", 1.0]').replace("[1.0, 2.0]", "[1.0]"))
    with pytest.raises(BadRows) as caught:
        read_benchmark(tmp_path / "one")
    assert [row.reason for row in caught.value.rows] == [
        "grades must be a list of numbers",
        "1 grades for 2 gold positions",
    ]
