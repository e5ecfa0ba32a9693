import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardwon.errors import RecipeError
from hardwon.mining import AtRandom, Cyclic, Hardest, Margin, Selector, Survivors, TopK
from hardwon.randomness import generator

cosines = st.floats(-1, 1, width=32)


def rng(seed=0):
    return generator("test", seed)


def many(count):
    return Survivors([1 - n / 100 for n in range(count)], 0.9)


def test_cyclic_takes_every_fifth_then_the_ones_after():
    assert Cyclic()(many(50), 10, rng()) == [0, 5, 10, 15, 20, 25, 30, 35, 40, 45]
    assert Cyclic()(many(12), 5, rng()) == [0, 1, 5, 6, 10]  # 0, 5, 10, then 1, 6, in retrieval order
    assert Cyclic(2)(many(6), 4, rng()) == [0, 1, 2, 4]  # 0, 2, 4, then 1


def test_hardest_takes_the_first():
    assert Hardest()(many(3), 2, rng()) == [0, 1]
    assert Hardest()(many(1), 2, rng()) == [0]


def test_at_random_depends_on_its_generator_alone():
    first = AtRandom()(many(40), 8, rng(1))
    assert first == AtRandom()(many(40), 8, rng(1))
    assert first != AtRandom()(many(40), 8, rng(2))


def test_top_k_draws_among_the_first_k():
    drawn = [TopK(6)(many(40), 3, rng(seed)) for seed in range(50)]
    assert {n for chosen in drawn for n in chosen} == set(range(6))
    assert TopK(6)(many(40), 9, rng()) == [0, 1, 2, 3, 4, 5]


def test_margin_asks_for_a_distance_from_the_positive():
    left = Survivors([0.9, 0.79, 0.76, 0.75, 0.5], 0.8)
    assert Margin(relative=0.05)(left, 9, rng()) == [3, 4]  # below 0.76
    assert Margin(absolute=0.02, relative=0.0)(left, 9, rng()) == [2, 3, 4]  # below 0.78
    assert Margin(absolute=0.02, relative=0.05)(left, 9, rng()) == [3, 4]  # the stricter of the two
    assert Margin(relative=0.0)(left, 1, rng()) == [1]
    assert Margin(relative=0.0, then=Cyclic(2))(left, 2, rng()) == [1, 3]  # among those below the bar


def test_a_relative_margin_of_a_negative_cosine_does_not_turn_round():
    """0.95 x (-0.4) would be -0.38, above the positive."""
    assert Margin(relative=0.05).bar(-0.4) == pytest.approx(-0.42)
    assert Margin(relative=0.05)(Survivors([-0.39, -0.41, -0.43], -0.4), 9, rng()) == [2]


@given(st.lists(cosines, max_size=30), cosines, st.floats(0, 2), st.floats(0, 2), st.integers(1, 9))
def test_margin_against_brute_force(similarities, positive, absolute, relative, keep):
    similarities = sorted(similarities, reverse=True)
    chosen = Margin(absolute, relative)(Survivors(similarities, positive), keep, rng())
    fit = [
        n
        for n, similarity in enumerate(similarities)
        if positive - similarity > 0 and similarity < positive - absolute and similarity < positive - relative * abs(positive)
    ]
    assert chosen == fit[:keep]


@given(
    st.lists(cosines, max_size=40),
    st.integers(1, 20),
    st.sampled_from([Cyclic(1), Cyclic(), Cyclic(7), Hardest(), AtRandom(), TopK(50)]),
)
def test_a_selector_gives_as_many_survivors_as_it_may_in_order(similarities, keep, selector):
    assert isinstance(selector, Selector)
    those = Survivors(sorted(similarities, reverse=True), 0.5)
    chosen = selector(those, keep, rng())
    assert len(chosen) == min(keep, len(those))
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= set(range(len(those)))
    if len(those) and not isinstance(selector, (AtRandom, TopK)):
        assert chosen[0] == 0  # the hardest is never left out


def test_selectors_that_cannot_be_meant():
    for make, words in (
        (lambda: Cyclic(0), "step must be at least 1, got 0"),
        (lambda: TopK(0), "k must be at least 1"),
        (lambda: Margin(relative=-0.05), r"relative must lie in \[0, 2\], got -0.05"),
        (lambda: Margin(absolute=95.0), "absolute must lie"),
    ):
        with pytest.raises(RecipeError, match=words):
            make()
