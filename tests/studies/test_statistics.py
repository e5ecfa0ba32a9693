"""Intervals over seeds and queries, against an example worked by hand and against what is known of variances."""

import numpy as np
import pytest

from studies.statistics import difference, spread


def test_mean_over_tasks_then_over_seeds():
    hits = {"a": np.array([[1.0, 0.0], [1.0, 1.0]]), "b": np.array([[0.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 1.0]])}
    made = spread(hits)
    # Seed 0: (1/2 + 1/4) / 2 = 3/8; seed 1: (1 + 1/2) / 2 = 3/4.
    assert made.seeds == (0.375, 0.75) and made.mean == pytest.approx(0.5625)


def test_two_seeds_by_hand():
    # Queries do not matter: every query of a seed has the same value. The means of the seeds, -1 and 3, deviate by 2.83, their
    # mean by 2; Student's t with one degree of freedom is tan(0.475 pi) = 12.7 at 95 %. Zero lies half a deviation off: p is
    # 1 - (2 / pi) atan(1 / 2).
    made = spread({"a": np.array([[-1.0] * 5, [3.0] * 5])})
    assert made.mean == 1.0
    far = 2 * np.tan(0.475 * np.pi)
    assert (made.low, made.high) == pytest.approx((1 - far, 1 + far))
    assert made.p == pytest.approx(1 - 2 / np.pi * np.arctan(0.5), abs=1e-6) and not made.clear


def test_seeds_and_queries_are_added_as_squares():
    rng = np.random.default_rng(0)
    queries = rng.normal(size=200)
    alike = np.stack([queries] * 3)
    apart = alike + np.array([[-0.3], [0.0], [0.3]])
    narrow, wide = (spread({"a": values}) for values in (alike, apart))
    assert narrow.high - narrow.low == pytest.approx(2 * 1.96 * queries.std() / 200**0.5, rel=0.1)
    by_seeds = 4.302653 * 0.3 / 3**0.5  # t with two degrees of freedom
    assert (wide.high - wide.mean) ** 2 == pytest.approx((narrow.high - narrow.mean) ** 2 + by_seeds**2)


@pytest.mark.parametrize(("seeds", "doubt"), [(2, 0.1), (3, 0.1), (3, 0.02), (2, 0.0), (5, 0.05)])
def test_the_truth_lies_inside_as_often_as_is_said(seeds, doubt):
    """95 of 100 intervals hold the truth, whether seeds or queries are what one knows little about."""
    held = 0
    for trial in range(400):
        rng = np.random.default_rng([trial, seeds])
        truth = rng.normal(size=(seeds, 1)) * doubt
        made = spread({name: truth + rng.normal(size=60) * 0.5 for name in ("a", "b")}, draws=400, seed=trial)
        held += made.low <= 0 <= made.high
    assert 0.925 <= held / 400 <= 1.0  # 95 % less two and a half deviations of 400 trials


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
