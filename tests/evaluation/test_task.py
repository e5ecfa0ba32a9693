import pytest

from hardwon.errors import DataError
from hardwon.evaluation import Benchmark
from hardwon.items import Item


def test_a_task_says_what_each_query_searches(make_task):
    assert make_task(q=2, c=3).searched(1) == (0, 1, 2)
    assert make_task(q=2, c=3, candidates=((0, 2), (1,))).searched(1) == (1,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gold": ((0,), ())}, "task words, query 1: no gold"),
        ({"gold": ((0,), (3,))}, "query 1: gold 3 is not in the corpus, whose positions are 0 to 2"),
        ({"gold": ((0,), (-1,))}, "query 1: gold -1 is not in the corpus"),
        ({"gold": ((0,), (1, 1))}, "query 1: gold names position 1 twice"),
        ({"gold": ((0,),)}, "task words: 2 queries, gold for 1, candidates for 2"),
        ({"candidates": ((0,), ())}, "query 1: no candidates"),
        ({"candidates": ((0,), (1, 5))}, "query 1: candidates 5 is not in the corpus"),
        ({"candidates": ((0,), (1, 2, 2))}, "query 1: candidates names position 2 twice"),
        ({"candidates": ((0,), (0, 2))}, "query 1: gold 1 is not among its candidates"),
        ({"candidates": ((0, 1),)}, "task words: 2 queries, gold for 2, candidates for 1"),
        ({"queries": (), "gold": ()}, "task words: it has no queries"),
        ({"corpus": ()}, "task words: it has no corpus"),
    ],
)
def test_a_task_that_cannot_be_asked_is_refused(make_task, changes, message):
    with pytest.raises(DataError, match=message):
        make_task(q=2, c=3, **changes)


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a b", "a\x00"])
def test_names_that_are_no_folders_are_refused(make_task, name):
    with pytest.raises(DataError, match="cannot name a folder"):
        make_task(name)


@pytest.mark.parametrize("name", ["ImageNet-1K", "MSCOCO_i2t", "N24News", "v1.5"])
def test_names_of_real_data_sets_are_taken(make_task, name):
    assert make_task(name).name == name


def test_a_benchmark_needs_tasks_with_names_of_their_own(make_task):
    with pytest.raises(DataError, match="benchmark 'b' has no tasks"):
        Benchmark("b", ())
    with pytest.raises(DataError, match="several tasks are named words"):
        Benchmark("b", (make_task(), make_task(q=2)))


def test_the_revision_changes_with_everything_that_is_asked(make_task):
    other = Item(text="something else")
    base = make_task(q=2, c=3)
    changed = [
        base,
        make_task("other", q=2, c=3),
        make_task(q=2, c=3, meta_task="vqa"),
        make_task(q=2, c=3, distribution="ood"),
        make_task(q=2, c=3, queries=(base.queries[0], other)),
        make_task(q=2, c=3, queries=(base.queries[0], Item(text="query 1", instruction="Find it."))),
        make_task(q=2, c=3, corpus=(*base.corpus[:2], other)),
        make_task(q=2, c=3, gold=((0,), (2,))),
        make_task(q=2, c=3, candidates=((0, 1), (0, 1))),
        make_task(q=2, c=3, queries=base.queries[::-1], gold=base.gold[::-1]),
    ]
    assert len({Benchmark("b", (task,)).revision for task in changed}) == len(changed)


def test_the_revision_ignores_what_changes_no_answer(make_task):
    one, two = make_task("one", q=2, c=3), make_task("two", q=2, c=3, candidates=((0, 1), (1, 2)))
    same = [
        Benchmark("b", (one, two)),
        Benchmark("another name", (one, two)),
        Benchmark("b", (two, one)),
        Benchmark("b", (make_task("one", q=2, c=3, candidates=((2, 0, 1), (0, 1, 2))), two)),
        Benchmark("b", (one, make_task("two", q=2, c=3, candidates=((1, 0), (2, 1))))),
    ]
    assert len({benchmark.revision for benchmark in same}) == 1


def test_the_revision_follows_the_pixels_not_the_file_name(make_task, picture):
    revisions = [
        Benchmark("b", (make_task(q=1, c=1, corpus=(Item(images=(picture(name, shade),)),)),)).revision
        for name, shade in (("one.png", 1), ("two.png", 1), ("three.png", 2))
    ]
    assert revisions[0] == revisions[1] != revisions[2]
