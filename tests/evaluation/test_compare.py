from dataclasses import replace

import pytest

from hardwon import metrics
from hardwon.errors import ArtifactError
from hardwon.evaluation import Missing, evaluate


def test_a_difference_is_the_first_minus_the_second(make_report):
    better = make_report("new", labels=[1] * 40, words=[1, 0] * 20)
    worse = make_report("old", labels=[0] * 40, words=[1, 0] * 20)
    found = better.diff(worse)
    assert (found.first, found.second, found.benchmark) == ("new", "old", "tiny")
    tasks = {difference.name: difference for difference in found.tasks}
    means = {difference.name: difference for difference in found.means}
    assert tasks["labels"].value == metrics.Interval(1.0, 1.0, 1.0)
    assert (tasks["labels"].verdict, tasks["labels"].p) == ("above", 1 / 2001)
    assert tasks["words"].value == metrics.Interval(0.0, 0.0, 0.0)
    assert (tasks["words"].verdict, tasks["words"].p) == ("not distinguishable", 1)
    assert list(means) == ["classification", "retrieval", "ind", "all"]
    assert means["all"].value.mean == 0.5
    assert means["all"].verdict == "above"
    assert worse.diff(better).means[-1].verdict == "below"


def test_a_difference_by_chance_is_not_distinguishable(make_report):
    one, two = make_report("one", labels=[1, 0, 1, 0, 1, 1]), make_report("two", labels=[0, 1, 1, 0, 1, 0])
    (difference,) = one.diff(two).tasks
    assert difference.value.mean == pytest.approx(1 / 6)
    assert difference.verdict == "not distinguishable"
    assert difference.p > 0.5


def test_the_order_of_tasks_plays_no_part(make_report):
    hits = {"labels": [1, 0, 1, 0], "words": [0, 0, 1], "names": [1, 0, 0, 0, 1]}
    other = make_report("b", labels=[0, 0, 1, 1], words=[1, 0, 0], names=[0, 0, 0, 0, 1])
    one, two = make_report(**hits), make_report(**dict(reversed(hits.items())))
    assert one.diff(other) == two.diff(other)
    assert one.means() == two.means()


def test_reports_on_other_questions_are_refused(make_report, benchmark_of, fake, make_task):
    one, two = make_report("a", revision="1" * 32, labels=[1]), make_report("b", revision="2" * 32, labels=[1])
    with pytest.raises(
        ArtifactError, match=r"a was asked tiny 111111111111, b tiny 222222222222: .*evaluate both on one of them"
    ):
        one.diff(two)
    changed = benchmark_of(*benchmark_of().tasks[:-1], make_task("boxes", 5, 7, meta_task="grounding", distribution="ood"))
    reports = [evaluate(fake(), benchmark, progress=False) for benchmark in (benchmark_of(), changed)]
    with pytest.raises(ArtifactError, match="only answers to the same questions"):
        reports[0].diff(reports[1])


def test_a_part_is_compared_only_when_asked(make_report):
    whole, part = (
        make_report("whole", labels=[1, 0], words=[1, 1]),
        make_report("part", labels=[1, 1], tasks=("labels", "words")),
    )
    for one, two in ((whole, part), (part, whole)):
        with pytest.raises(ArtifactError, match=r"no comparison: in part 1 of 2 data sets are missing \(words\)"):
            one.diff(two)
    found = whole.diff(part, partial=True)
    assert [difference.name for difference in found.tasks] == ["labels"]
    assert found.means[-1].value.mean == -0.5
    apart = make_report("apart", words=[1, 0], tasks=("labels", "words"))
    with pytest.raises(ArtifactError, match="part and apart have no task in common"):
        part.diff(apart, partial=True)


def test_a_part_of_the_data_is_compared_with_all_of_them(benchmark_of, fake, make_task):
    whole = benchmark_of()
    part = replace(whole, tasks=whole.tasks[:3], missing=(Missing("boxes", "gone"),))
    changed = replace(part, tasks=(*part.tasks[:2], make_task("words", 12, 21)))
    all_, some, other = (
        evaluate(fake(fingerprint=f), b, progress=False, label=f) for f, b in zip("aso", (whole, part, changed), strict=True)
    )
    assert all_.revision != some.revision
    for one, two in ((all_, some), (some, all_)):
        assert [row.name for row in one.diff(two, partial=True).tasks] == ["labels", "labels_far", "words"]
        with pytest.raises(ArtifactError, match="only answers to the same questions compare"):
            one.diff(two)
    with pytest.raises(ArtifactError, match="a and o were asked other questions in words"):
        all_.diff(other, partial=True)
    old = replace(some, made={})
    with pytest.raises(ArtifactError, match="only answers to the same questions compare"):
        all_.diff(old, partial=True)
    assert old.diff(some, partial=True).tasks == some.diff(some, partial=True).tasks  # of one revision


def test_reports_that_disagree_about_the_number_of_queries_are_refused(make_report):
    with pytest.raises(ValueError, match="not asked the same queries"):
        make_report(labels=[1, 0]).diff(make_report(labels=[1]))


def test_a_comparison_can_be_printed(make_report, shown):
    found = make_report("new", labels=[1] * 30, words=[0]).diff(make_report("old", labels=[0] * 30, words=[1]))
    for text in (str(found), shown(found), shown(found.table())):
        assert "new − old on tiny, in points" in text
        assert "+100.0 ±0.0" in text
        assert "-100.0 ±0.0" in text
        assert "0.0005" in text
        assert "above" in text
        assert "seed 0" in text
    assert "all data sets" in str(found)


def test_no_difference_has_no_sign(make_report):
    text = str(make_report("new", labels=[1, 0]).diff(make_report("old", labels=[1, 0])))
    assert "+0.0 ±0.0" in text
    assert "-0.0" not in text
