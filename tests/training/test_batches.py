import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hardwon.items import Candidate, Example, Item
from hardwon.training.batches import batches, draw, listed, plan_epoch, shared, told, with_strangers


def gold(text, instruction=""):
    return Candidate(Item(text=text, instruction=instruction), origin="gold")


def near(text, relevance=None, instruction=""):
    return Candidate(Item(text=text, instruction=instruction), relevance, "mined")


def numbered(n, source="a", negatives=3):
    return Example(Item(text=f"query {n}"), (gold(f"gold {n}"), *(near(f"near {n} {k}") for k in range(negatives))), source)


sources_of = st.lists(st.sampled_from("abc"), min_size=1, max_size=40)


class TestPlan:
    @settings(deadline=None)
    @given(sources_of, st.integers(2, 8), st.integers(0, 5), st.integers(0, 5))
    def test_one_source_each_and_every_example_at_most_once(self, sources, size, seed, epoch):
        plan = plan_epoch(sources, size, seed, epoch)
        flat = [n for rows in plan for n in rows]
        assert len(set(flat)) == len(flat)
        for rows in plan:
            assert len({sources[n] for n in rows}) == 1
            assert len(rows) == min(size, sources.count(sources[rows[0]]))
        for source in set(sources):
            total = sources.count(source)
            used = sum(sources[n] == source for n in flat)
            assert total - used < min(size, total)  # only a rest that fills no batch waits

    @given(sources_of, st.integers(2, 8))
    @settings(deadline=None)
    def test_depends_on_nothing_but_its_arguments(self, sources, size):
        random.seed(len(sources))
        torch.manual_seed(size)
        assert plan_epoch(sources, size, 1, 2) == plan_epoch(list(sources), size, 1, 2)

    def test_seed_and_epoch_change_the_order(self):
        sources = ["a"] * 20 + ["b"] * 20
        plans = [plan_epoch(sources, 4, seed, epoch) for seed in range(3) for epoch in range(3)]
        assert len({str(plan) for plan in plans}) == 9
        assert all(sorted(n for rows in plan for n in rows) == list(range(40)) for plan in plans)

    def test_sources_are_interleaved(self):
        sources = ["a"] * 40 + ["b"] * 40
        order = ["".join(sources[rows[0]] for rows in plan_epoch(sources, 4, seed, 0)) for seed in range(5)]
        assert not any(letters in ("a" * 10 + "b" * 10, "b" * 10 + "a" * 10) for letters in order)


class TestStream:
    data = tuple(numbered(n, "ab"[n % 3 == 0]) for n in range(17))

    def described(self, **arguments):
        stream = batches(self.data, size=4, steps=11, negatives=2, seed=5, **arguments)
        return [(b.number, [q.text for q in b.queries], [c.text for c in b.candidates]) for b in stream]

    def test_resumed_is_the_tail_of_the_whole(self):
        whole = self.described()
        assert [number for number, *_ in whole] == list(range(11))
        for start in (0, 1, 4, 7, 10, 11, 20):
            assert self.described(start=start) == whole[start:]

    def test_global_random_state_is_not_used(self):
        random.seed(1)
        first = self.described()
        random.seed(2)
        torch.manual_seed(3)
        assert self.described() == first

    def test_negatives_are_drawn_anew_every_epoch(self):
        drawn = {}
        for batch in batches(self.data[:4], size=4, steps=12, negatives=1):
            for item in batch.candidates:
                if item.text.startswith("near"):
                    drawn.setdefault(item.text.split()[1], set()).add(item.text)
        assert any(len(found) > 1 for found in drawn.values())

    def test_without_negatives_only_gold_is_offered(self):
        (batch,) = batches(self.data, size=4, steps=1)
        assert {item.text.split()[0] for item in batch.candidates} == {"gold"}


@pytest.mark.parametrize("made", [shared, listed])
def test_what_is_told_of_a_batch_is_all_that_is_learned_from_it(made):
    rows = [Example(Item(f"query {n}"), (gold(f"gold {n}"), near(f"near {n}", 0.25)), "a") for n in range(3)]
    others = [
        rows[::-1],
        rows[:2],
        [*rows[:2], replace(rows[2], query=Item("another"))],
        [*rows[:2], replace(rows[2], candidates=(rows[2].candidates[0], near("near 2", 0.5)))],
        [*rows[:2], replace(rows[2], candidates=(gold("gold 2"), gold("near 2")))],
        [*rows[:2], replace(rows[2], related=frozenset({Item("near 2").content}))],
    ]
    same = [replace(row) for row in rows]
    assert told(made(rows, 4)) == told(made(same, 4)) != told(made(rows, 5))
    assert all(told(made(other, 4)) != told(made(rows, 4)) for other in others)


class TestDraw:
    def test_keeps_gold_and_order(self):
        example = replace(numbered(1, negatives=6), related=frozenset({"x"}))
        mixed = replace(example, candidates=(*example.candidates[1:4], example.candidates[0], *example.candidates[4:]))
        for seed in range(10):
            drawn = draw(mixed, 3, random.Random(seed))
            assert drawn.candidates[0].origin == "gold"
            places = [mixed.candidates.index(c) for c in drawn.candidates[1:]]
            assert places == sorted(set(places))
            assert len(places) == 3
            assert (drawn.query, drawn.source, drawn.related) == (mixed.query, mixed.source, mixed.related)

    def test_all_there_are_when_fewer_are_known(self):
        example = numbered(1, negatives=2)
        assert draw(example, 5, random.Random(0)) == example
        assert draw(example, 0, random.Random(0)).candidates == example.candidates[:1]

    def test_every_gold_stays(self):
        example = replace(numbered(1), candidates=(gold("one"), near("other"), gold("two")))
        assert [c.item.text for c in draw(example, 0, random.Random(0)).candidates] == ["one", "two"]


class TestStrangers:
    @settings(deadline=None)
    @given(st.integers(0, 6), st.integers(0, 1000))
    def test_are_not_known_to_belong(self, count, seed):
        example = replace(numbered(1), related=frozenset({Item(text="related").content}))
        pool = [Item(text="gold 1"), Item(text="gold 1", instruction="find"), Item(text="near 1 0"), Item(text="related")]
        pool += [Item(text=f"gold {n}") for n in range(2, 6)] + [Item(text="gold 2", instruction="find")]
        made = with_strangers(example, pool, count, random.Random(seed))
        new = made.candidates[len(example.candidates) :]
        assert made.candidates[: len(example.candidates)] == example.candidates
        assert {c.item.text for c in new} <= {"gold 2", "gold 3", "gold 4", "gold 5"}
        assert len({c.item.content for c in new}) == len(new) <= count
        assert all(c.origin == "given" and c.relevance is None for c in new)

    def test_as_many_as_wanted_where_there_are_enough(self):
        pool = [Item(text=f"gold {n}") for n in range(2, 30)]
        assert len(with_strangers(numbered(1), pool, 5, random.Random(0)).candidates) == 4 + 5
        assert len(with_strangers(numbered(1), pool[:2], 5, random.Random(0)).candidates) == 4 + 2
        assert with_strangers(numbered(1), [], 5, random.Random(0)) == numbered(1)


class TestShared:
    def test_every_distinct_item_once(self):
        one = Example(Item(text="q1"), (gold("cat"), near("dog", 0.3)))
        two = Example(Item(text="q2"), (gold("dog"), near("cat", 0.2), near("cow")))
        batch = shared((one, two), 7)
        assert [item.text for item in batch.candidates] == ["cat", "dog", "cow"]
        assert [query.text for query in batch.queries] == ["q1", "q2"]
        assert batch.number == 7
        assert batch.targets[:].gold.tolist() == [[True, False, False], [False, True, False]]
        assert batch.targets[:].judged.tolist() == [[False, True, False], [True, False, False]]
        assert torch.allclose(batch.targets[:].relevance, torch.tensor([[0, 0.3, 0], [0.2, 0, 0]]))
        assert batch.targets[:].comparable.all()

    def test_a_copy_of_the_gold_with_another_instruction_is_not_compared(self):
        one = Example(Item(text="q1"), (gold("cat", "find"),))
        two = Example(Item(text="q2"), (gold("cat"),))
        batch = shared((one, two), 0)
        assert len(batch.candidates) == 2
        assert batch.targets[:].gold.tolist() == [[True, False], [False, True]]
        assert batch.targets[:].comparable.tolist() == [[True, False], [False, True]]

    def test_related_items_are_not_compared_but_gold_always_is(self):
        kept = frozenset({Item(text="dog").content, Item(text="cat").content})
        one = Example(Item(text="q1"), (gold("cat"), near("dog", 0.9), near("cow")), related=kept)
        two = Example(Item(text="q2"), (gold("hen"),))
        targets = shared((one, two), 0).targets[:]
        assert targets.comparable.tolist() == [[True, False, True, True], [True, True, True, True]]
        assert targets.judged.tolist()[0] == [False, True, False, False]

    def test_gold_wins_over_a_copy_given_as_negative(self):
        batch = shared((Example(Item(text="q"), (near("cat", 0.1), gold("cat"))), numbered(2)), 0)
        assert batch.targets[:].gold[0].tolist()[0]
        assert batch.targets[:].comparable[0, 0]

    def test_several_golds(self):
        batch = shared((Example(Item(text="q"), (gold("a"), gold("b"), near("c"))), numbered(2)), 0)
        assert batch.targets[:].gold[0].tolist()[:3] == [True, True, False]


said_of = st.tuples(
    st.sampled_from("abcd"),
    st.sampled_from(["", "find"]),
    st.sampled_from([None, 0.0, 0.25, 1.0]),
    st.sampled_from(["gold", "mined"]),
)
rows_of = st.tuples(st.lists(said_of, min_size=1, max_size=5), st.sets(st.sampled_from("abcd"), max_size=2))


@settings(deadline=None, max_examples=80)
@given(st.lists(rows_of, min_size=1, max_size=4))
def test_shared_is_what_is_said_of_every_pair(rows):
    examples = []
    for n, (said, related) in enumerate(rows):
        candidates = (Candidate(Item(text=t, instruction=i), grade, origin) for t, i, grade, origin in said)
        kin = frozenset(Item(text=text).content for text in related)
        examples.append(Example(Item(text=f"query {n}"), tuple(candidates), related=kin))
    batch = shared(examples, 0)
    matrices = batch.targets[:]
    offered = {c.item.key for e in examples for c in e.candidates}
    assert [item.key for item in batch.candidates] == list(dict.fromkeys(c.item.key for e in examples for c in e.candidates))
    assert len(batch.candidates) == len(offered) == matrices.gold.shape[1]
    for row, example in enumerate(examples):
        kin = {c.item.content for c in example.candidates if c.origin == "gold"} | example.related
        for column, item in enumerate(batch.candidates):
            said = [c for c in example.candidates if c.item.key == item.key]
            grades = [c.relevance for c in said if c.relevance is not None]
            gold = any(c.origin == "gold" for c in said)
            assert bool(matrices.gold[row, column]) == gold
            assert bool(matrices.judged[row, column]) == bool(grades)
            assert float(matrices.relevance[row, column]) == (grades[-1] if grades else 0.0)
            assert bool(matrices.comparable[row, column]) == (gold or item.content not in kin)
    # Nothing is written down of pairs of which nothing is known, and of none twice.
    pairs = list(zip(batch.targets.rows.tolist(), batch.targets.columns.tolist(), strict=True))
    assert pairs == sorted(set(pairs))
    known = matrices.gold | matrices.judged | ~matrices.comparable
    assert all(
        bool(known[pair]) or batch.candidates[pair[1]] in [c.item for c in examples[pair[0]].candidates] for pair in pairs
    )


class TestListed:
    def test_ragged_lists_are_padded(self):
        one = Example(Item(text="q1"), (gold("cat"), near("dog", 0.3), near("cow")))
        two = Example(Item(text="q2"), (near("ant", 0.1), gold("bee")))
        batch = listed((one, two), 3)
        assert [(q.text, c.text) for q, c in batch.pairs] == [
            ("q1", "cat"), ("q1", "dog"), ("q1", "cow"), ("q2", "ant"), ("q2", "bee"),
        ]  # fmt: skip
        assert batch.filled.tolist() == [[True, True, True], [True, True, False]]
        assert batch.targets.gold.tolist() == [[True, False, False], [False, True, False]]
        assert batch.targets.judged.tolist() == [[False, True, False], [True, False, False]]
        assert torch.allclose(batch.targets.relevance, torch.tensor([[0, 0.3, 0], [0.1, 0, 0]]))
        assert torch.equal(batch.targets.comparable, batch.filled)
        assert batch.keys == (one.query.key, two.query.key)
        assert batch.number == 3

    def test_related_items_and_copies_of_the_gold_are_not_compared(self):
        example = Example(
            Item(text="q"), (gold("cat"), near("cat", 0.2, "find"), near("dog"), near("cow")),
            related=frozenset({Item(text="dog").content}),
        )  # fmt: skip
        assert listed((example,), 0).targets.comparable.tolist() == [[True, False, False, True]]


@pytest.mark.parametrize("size", [2, 3, 100])
def test_small_sources_make_small_batches(size):
    data = tuple(numbered(n) for n in range(3))
    sizes = {len(batch.queries) for batch in batches(data, size=size, steps=4)}
    assert sizes == {min(size, 3)}
