"""Intervals over seeds and queries, against an example worked by hand and against what is known of variances."""

import numpy as np
import pytest

from studies.statistics import difference, spread, weights_of


def test_mean_over_tasks_then_over_seeds():
    hits = {"a": np.array([[1.0, 0.0], [1.0, 1.0]]), "b": np.array([[0.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 1.0]])}
    made = spread(hits)
    # Seed 0: (1/2 + 1/4) / 2 = 3/8; seed 1: (1 + 1/2) / 2 = 3/4.
    assert made.seeds == (0.375, 0.75) and made.mean == pytest.approx(0.5625)


def test_two_seeds_by_hand():
    # Queries do not matter: every query of a seed has the same value. Two seeds, -1 and 3: a resample has both, or one of
    # them twice, with chances 1/2, 1/4, 1/4; its mean is 1, or 1 -+ 2 widened by sqrt(2).
    made = spread({"a": np.array([[-1.0] * 5, [3.0] * 5])}, draws=20_000)
    assert made.mean == 1.0
    assert (made.low, made.high) == pytest.approx((1 - 2 * 2**0.5, 1 + 2 * 2**0.5))
    assert made.p == pytest.approx(2 * 0.25, abs=0.02) and not made.clear


def test_seeds_enter_the_interval():
    rng = np.random.default_rng(0)
    queries = rng.normal(size=200)
    alike = np.stack([queries] * 3)
    apart = alike + np.array([[-0.3], [0.0], [0.3]])
    narrow, wide = (spread({"a": values}) for values in (alike, apart))
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)
    # The variance is that of queries plus that of the mean of seeds: 1 / 200 + var(-.3, 0, .3) / 3 = 1 / 200 + .09 / 3.
    expected = 2 * 1.96 * (queries.var() / 200 + 0.09 / 3) ** 0.5
    assert wide.high - wide.low == pytest.approx(expected, rel=0.15)


def test_variance_of_the_seeds_part_is_unbiased():
    weights = weights_of(np.random.default_rng(1), 3, 100_000)
    values = np.array([-1.0, 0.0, 1.0])  # variance 1 with n - 1, so that of a mean of three is 1/3
    assert weights.sum(axis=1) == pytest.approx(np.ones(len(weights)))
    assert (weights @ values).var() == pytest.approx(1 / 3, rel=0.02)


def test_one_seed_speaks_of_queries_alone():
    made = spread({"a": np.array([[0.0, 1.0] * 100])})
    assert made.high - made.low == pytest.approx(2 * 1.96 * 0.5 / 200**0.5, rel=0.1)


def test_difference_is_paired():
    one, other = {"a": np.ones((2, 3))}, {"a": np.zeros((2, 3))}
    made = spread(difference(one, other))
    assert (made.low, made.mean, made.high) == pytest.approx((1, 1, 1)) and made.clear and made.p == 1 / 2000


def test_other_queries_are_refused():
    with pytest.raises(ValueError, match=r"not the same seeds and queries: .*\(2, 3\).*\(2, 4\)"):
        difference({"a": np.ones((2, 3))}, {"a": np.ones((2, 4))})
    with pytest.raises(ValueError, match="the same seeds"):
        spread({"a": np.ones((2, 3)), "b": np.ones((3, 3))})
