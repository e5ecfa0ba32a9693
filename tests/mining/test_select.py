from hypothesis import given
from hypothesis import strategies as st

from hardwon.mining import AtRandom, Cyclic, Hardest
from hardwon.randomness import generator

survivors = st.lists(st.integers(0, 60), unique=True).map(sorted)


def rng(seed=0):
    return generator("test", seed)


def test_cyclic_takes_every_fifth_then_the_ones_after():
    assert Cyclic()(range(50), 10, rng()) == [0, 5, 10, 15, 20, 25, 30, 35, 40, 45]
    assert Cyclic()(range(12), 5, rng()) == [0, 1, 5, 6, 10]  # 0, 5, 10, then 1, 6, in retrieval order
    assert Cyclic(2)(range(6), 4, rng()) == [0, 1, 2, 4]  # 0, 2, 4, then 1


def test_cyclic_counts_survivors_not_ranks():
    assert Cyclic(2)([3, 4, 9, 11, 20], 2, rng()) == [3, 9]
    assert Cyclic(2)([3, 4, 9, 11, 20], 4, rng()) == [3, 4, 9, 20]


def test_hardest_takes_the_first():
    assert Hardest()([3, 4, 9], 2, rng()) == [3, 4]
    assert Hardest()([3], 2, rng()) == [3]


def test_at_random_depends_on_its_generator_alone():
    first = AtRandom()(range(40), 8, rng(1))
    assert first == AtRandom()(range(40), 8, rng(1))
    assert first != AtRandom()(range(40), 8, rng(2))


@given(survivors, st.integers(1, 20), st.sampled_from([Cyclic(1), Cyclic(), Cyclic(7), Hardest(), AtRandom()]))
def test_a_selector_gives_as_many_survivors_as_it_may_in_order(those, keep, selector):
    chosen = selector(those, keep, rng())
    assert len(chosen) == min(keep, len(those))
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= set(those)
    if those and not isinstance(selector, AtRandom):
        assert chosen[0] == those[0]  # the hardest is never left out
