import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardwon.mining import calibrate

# Hundredths, so that ties are frequent.
grades = st.lists(st.integers(0, 20).map(lambda n: n / 20), min_size=1, max_size=12)


@given(grades, grades)
def test_auc_is_the_share_of_pairs_in_the_right_order(gold, random):
    wins = [1.0 if g > r else 0.5 if g == r else 0.0 for g in gold for r in random]
    found = calibrate(np.array(gold), np.array(random))
    assert found.auc == pytest.approx(sum(wins) / len(wins), abs=1e-12)
    assert 0 <= found.auc <= 1


@given(grades, grades)
def test_ece_is_the_weighted_gap_of_the_bins(gold, random):
    bins = {}
    for value, truth in [(g, 1) for g in gold] + [(r, 0) for r in random]:
        bins.setdefault(min(int(value * 10), 9), []).append((value, truth))
    total = len(gold) + len(random)
    gaps = [len(b) / total * abs(sum(v for v, _ in b) / len(b) - sum(t for _, t in b) / len(b)) for b in bins.values()]
    assert calibrate(np.array(gold), np.array(random)).ece == pytest.approx(sum(gaps), abs=1e-12)


def test_numbers_by_hand():
    # Bins: 0.95 (one gold, gap 0.05), 0.55 (one gold, one random: mean 0.55, half gold, gap 0.05), 0.05 (one random, gap 0.05).
    found = calibrate(np.array([0.95, 0.55]), np.array([0.55, 0.05]))
    assert found.auc == pytest.approx((1 + 1 + 0.5 + 1) / 4)
    assert found.ece == pytest.approx(0.05)
    assert found.gold == (0, 0, 0, 0, 0, 1, 0, 0, 0, 1)
    assert found.random == (1, 0, 0, 0, 0, 1, 0, 0, 0, 0)


def test_ends_of_the_scale_and_unequal_numbers():
    found = calibrate(np.array([1.0, 1.0, 1.0]), np.array([0.0]))
    assert (found.auc, found.ece) == (1.0, 0.0)
    assert (sum(found.gold), sum(found.random)) == (3, 1)
    assert found.gold[9] == 3


def test_a_judge_that_says_the_same_of_all_is_blind():
    assert calibrate(np.full(5, 0.5), np.full(5, 0.5)).auc == 0.5
    assert calibrate(np.array([0.1]), np.array([0.9])).auc == 0.0
