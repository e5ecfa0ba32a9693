import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hardwon.losses import InfoNCE, Listwise, Pairwise, Targets
from hardwon.losses.targets import NothingToCompare


def random_lists(q, c, seed):
    rng = torch.Generator().manual_seed(seed)
    odds = torch.randn(q, c, generator=rng, dtype=torch.float64) * 3
    gold = torch.zeros(q, c, dtype=torch.bool)
    gold[:, 0] = True
    gold |= torch.rand(q, c, generator=rng) < 0.2
    comparable = gold | (torch.rand(q, c, generator=rng) < 0.7)
    return odds, Targets(gold, torch.zeros_like(gold), torch.zeros(q, c), comparable)


def rows_of(odds, targets):
    """(gold scores, the other comparable scores) of every query."""
    for row, gold, comparable in zip(odds.tolist(), targets.gold.tolist(), targets.comparable.tolist(), strict=True):
        marked = list(zip(row, gold, comparable, strict=True))
        yield [s for s, g, _ in marked if g], [s for s, g, c in marked if c and not g]


def compared(loss, odds, targets):
    """The loss; None where it rightly says that no query has anything to be compared with."""
    if torch.equal(targets.gold, targets.comparable):
        with pytest.raises(NothingToCompare):
            loss(odds, targets)
        return None
    return float(loss(odds, targets))


def binary(odds, truth):
    """Cross-entropy of one yes-or-no answer."""
    return math.log1p(math.exp(-odds if truth else odds))  # 1 - chance would lose the digits of a chance near 1


@settings(deadline=None, max_examples=40)
@given(q=st.integers(1, 5), c=st.integers(1, 6), seed=st.integers(0, 10_000), scale=st.sampled_from([1.0, 0.5, 3.0]))
def test_pairwise_is_binary_cross_entropy_with_both_halves_equal(q, c, seed, scale):
    odds, targets = random_lists(q, c, seed)
    expected = 0.0
    for golds, others in rows_of(odds, targets):
        yes = sum(binary(s * scale, True) for s in golds) / len(golds)
        no = sum(binary(s * scale, False) for s in others) / len(others) if others else -yes  # a Yes alone is nothing
        expected += (yes + no) / 2 / q
    assert compared(Pairwise(scale), odds, targets) in (None, pytest.approx(expected, rel=1e-9))


@settings(deadline=None, max_examples=40)
@given(q=st.integers(1, 5), c=st.integers(1, 6), seed=st.integers(0, 10_000), temperature=st.sampled_from([1.0, 0.2]))
def test_listwise_is_cross_entropy_of_the_list(q, c, seed, temperature):
    odds, targets = random_lists(q, c, seed)
    expected = 0.0
    for golds, others in rows_of(odds, targets):
        total = sum(math.exp(s / temperature) for s in (*golds, *others))
        expected -= sum(math.log(math.exp(s / temperature) / total) for s in golds) / len(golds) / q
    assert compared(Listwise(temperature), odds, targets) in (None, pytest.approx(expected, rel=1e-9, abs=1e-12))


def test_listwise_with_one_gold_is_infonce():
    odds, _ = random_lists(4, 6, 1)
    targets = Targets.of_gold(torch.eye(4, 6, dtype=torch.bool))
    assert float(Listwise(0.5)(odds, targets)) == pytest.approx(float(InfoNCE(0.5)(odds, targets)), rel=1e-12)


def test_pairwise_reads_the_score_as_log_odds():
    targets = Targets.of_gold(torch.tensor([[True, False]]))
    assert float(Pairwise()(torch.zeros(1, 2), targets)) == pytest.approx(math.log(2))
    assert float(Pairwise()(torch.tensor([[30.0, -30.0]]), targets)) == pytest.approx(math.exp(-30), rel=1e-6)


def test_pairwise_does_not_let_many_negatives_outweigh_the_gold():
    one = torch.tensor([[1.0, 0.5]])
    many = torch.tensor([[1.0, *[0.5] * 9]])
    golds = (torch.tensor([[True, False]]), torch.tensor([[True, *[False] * 9]]))
    values = [float(Pairwise()(scores, Targets.of_gold(gold))) for scores, gold in zip((one, many), golds, strict=True)]
    assert values[0] == pytest.approx(values[1], rel=1e-6)


@pytest.mark.parametrize(("make", "name"), [(Pairwise, "scale"), (Listwise, "temperature")])
@pytest.mark.parametrize("value", [0.0, -1.0])
def test_parameters_must_be_positive(make, name, value):
    with pytest.raises(ValueError, match=f"{name} must be above 0, got {value}"):
        make(value)
