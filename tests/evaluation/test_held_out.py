import pytest

from hardwon.errors import DataError, RecipeError
from hardwon.evaluation import benchmark_of, evaluate
from hardwon.items import Candidate, Example, Item


def example(query, *gold, source="", related=()):
    return Example(Item(query), tuple(Candidate(Item(text), origin="gold") for text in gold), source, frozenset(related))


def test_each_query_is_asked_for_its_gold_among_the_golds_of_its_source():
    found = benchmark_of(
        [example("a", "1"), example("b", "2", "3"), example("c", "2"), example("d", "9", source="my own")], "b"
    )
    assert [task.name for task in found.tasks] == ["pairs", "my_own"]
    task = found.tasks[0]
    assert [item.text for item in task.corpus] == ["1", "2", "3"]
    by_query = {query.text: gold for query, gold in zip(task.queries, task.gold, strict=True)}
    assert by_query == {"a": (0,), "b": (1, 2), "c": (1,)}
    assert task.candidates is None


def test_what_is_no_fair_candidate_is_not_offered():
    """b is what the second query shows; 3 is related to the third; gold is offered whatever else is said of it."""
    rows = [example("a", "b"), example("b", "2"), example("c", "3x", related=[Item("b").content, Item("3x").content])]
    (task,) = benchmark_of(rows, "b").tasks
    offered = {q.text: [task.corpus[n].text for n in places] for q, places in zip(task.queries, task.candidates, strict=True)}
    assert offered == {"a": ["b", "2", "3x"], "b": ["2", "3x"], "c": ["2", "3x"]}


def test_copies_of_gold_are_gold():
    told = Example(Item("q"), (Candidate(Item("1", instruction="Look."), origin="gold"),))
    (task,) = benchmark_of([example("a", "1"), told], "b").tasks
    assert set(task.gold) == {(0, 1)}


def test_some_of_them(fake):
    rows = [example(f"{source}{n}", f"gold {n}", source=source) for source in ("x", "y") for n in range(20)]
    found = benchmark_of(rows, "b", sources=["y"], most=5)
    (task,) = found.tasks
    assert (task.name, len(task.queries), len(task.corpus)) == ("y", 5, 20)
    assert found == benchmark_of(rows, "b", sources=["y"], most=5)
    assert found != benchmark_of(rows, "b", sources=["y"], most=5, seed=1)
    assert evaluate(fake(), found, progress=False).results[0].queries == 5
    with pytest.raises(RecipeError, match="unknown source 'z'"):
        benchmark_of(rows, "b", sources=["z"])
    with pytest.raises(DataError, match="no held-out pairs"):
        benchmark_of([], "b")
