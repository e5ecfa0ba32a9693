import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hardwon.losses import InfoNCE, Targets, TopKInfoNCE


def run(loss, scores, targets):
    scores = scores.clone().requires_grad_()
    value = loss(scores, targets)
    value.backward()
    return float(value.detach()), scores.grad


def naive(scores, targets, loss):
    """The definition, one number at a time: value and gradient."""
    tau, total, slope = loss.temperature, 0.0, torch.zeros_like(scores)
    for row in range(len(scores)):
        golds = [n for n in range(scores.shape[1]) if targets.gold[row, n]]
        bar = max(float(scores[row, n]) for n in golds) + loss.beta
        others = [n for n in range(scores.shape[1]) if targets.comparable[row, n] and n not in golds and scores[row, n] <= bar]
        kept = sorted(others, key=lambda n: -float(scores[row, n]))[: loss.k]
        for gold in golds:
            odds = [math.exp(float(scores[row, n] - scores[row, gold]) / tau) for n in kept]
            total += math.log(1 + sum(odds)) / len(golds) / len(scores)
            for n, each in zip(kept, odds, strict=True):
                weight = each / (1 + sum(odds)) / (tau * len(golds) * len(scores))
                slope[row, n] += weight
                slope[row, gold] -= weight
    return total, slope


def test_golden_rows(square):
    scores, targets = square
    loss = TopKInfoNCE(0.02, 2, 0.1)
    rows = [0.1269282804808043, 0.4643687841079469, 0.47407930386745534, 3.059034128227722e-07]
    assert loss.per_query(scores, targets).tolist() == pytest.approx(rows, abs=1e-12)
    value, slope = run(loss, scores, targets)
    assert value == pytest.approx(0.26634416858990484, abs=1e-12)
    assert torch.allclose(slope, naive(scores, targets, loss)[1], rtol=1e-10, atol=1e-14)
    assert slope[3, 2] == 0  # 0.71 is above 0.60 + 0.1: likely a false negative
    assert slope[0, 3] == 0  # the third
    assert torch.equal(slope == 0, loss.kept(scores, targets).logical_or(targets.gold).logical_not())


@settings(deadline=None, max_examples=50)
@given(
    q=st.integers(1, 4),
    more=st.integers(1, 5),
    seed=st.integers(0, 10_000),
    k=st.sampled_from([1, 2, 3, 50]),
    beta=st.sampled_from([-0.2, 0.0, 0.1, 2.0]),
    temperature=st.sampled_from([0.02, 0.2]),
)
def test_equals_the_definition_for_any_shape(problem, q, more, seed, **drawn):
    scores, targets = problem(q, q + more, seed)
    targets.gold[0, -1], targets.comparable[0, -1] = False, True  # something to compare with
    loss = TopKInfoNCE(**drawn)
    expected, slope = naive(scores, targets, loss)
    value, made = run(loss, scores, targets)
    assert value == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert torch.allclose(made, slope, rtol=1e-9, atol=1e-12)
    assert torch.allclose(made.sum(dim=1), torch.zeros(q, dtype=torch.float64), atol=1e-10)
    assert ((made != 0) & ~targets.gold).sum(dim=1).max() <= loss.k


def test_keeps_the_hardest():
    scores = torch.tensor([[0.5, 0.1, 0.4, 0.55, 0.3, 0.7]], dtype=torch.float64)
    targets = Targets.of_gold(torch.tensor([[True] + [False] * 5]))
    assert TopKInfoNCE(0.02, 2, 0.1).kept(scores, targets).tolist() == [[False, False, True, True, False, False]]
    assert TopKInfoNCE(0.02, 3, 0.3).kept(scores, targets).tolist() == [[False, False, True, True, False, True]]
    assert TopKInfoNCE(0.02, 3, 0.0).kept(scores, targets).tolist() == [[False, True, True, False, True, False]]


def test_the_best_gold_sets_the_bar():
    scores = torch.tensor([[0.2, 0.6, 0.65, 0.75]], dtype=torch.float64)
    targets = Targets.of_gold(torch.tensor([[True, True, False, False]]))
    assert TopKInfoNCE(0.02, 5, 0.1).kept(scores, targets).tolist() == [[False, False, True, False]]


def test_what_may_not_be_compared_takes_no_place():
    scores = torch.tensor([[0.5, 0.45, 0.4, 0.3]], dtype=torch.float64)
    targets = Targets.of_gold(torch.tensor([[True, False, False, False]]))
    targets.comparable[0, 1] = False
    assert TopKInfoNCE(0.02, 1).kept(scores, targets).tolist() == [[False, False, True, False]]


def test_a_query_with_fewer_than_k_left_takes_those(problem):
    scores, targets = problem(4, 7, seed=3)
    free = Targets(targets.gold, targets.judged, targets.relevance, targets.comparable)
    value, slope = run(TopKInfoNCE(0.1, 100, 100.0), scores, free)
    plain, expected = run(InfoNCE(0.1), scores, free)
    assert value == pytest.approx(plain, rel=1e-12)
    assert torch.allclose(slope, expected, rtol=1e-12, atol=1e-15)


def test_a_query_with_nothing_left_costs_nothing():
    scores = torch.tensor([[0.1, 0.9, 0.8], [0.5, 0.4, 0.3]], dtype=torch.float64)
    targets = Targets.of_gold(torch.tensor([[True, False, False]] * 2))
    value, slope = run(TopKInfoNCE(0.1, 2), scores, targets)
    alone, expected = run(TopKInfoNCE(0.1, 2), scores[1:], targets[1:])
    assert value == pytest.approx(alone / 2, rel=1e-12)
    assert torch.equal(slope[0], torch.zeros(3, dtype=torch.float64))
    assert torch.allclose(slope[1], expected[0] / 2, rtol=1e-12)


def test_ties_do_not_change_the_value():
    scores = torch.tensor([[0.5, 0.4, 0.4, 0.4, 0.2]], dtype=torch.float64)
    targets = Targets.of_gold(torch.tensor([[True, False, False, False, False]]))
    for order in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [1, 4, 0, 3, 2]):
        moved = Targets.of_gold(targets.gold[:, order])
        value, slope = run(TopKInfoNCE(0.1, 2), scores[:, order], moved)
        assert value == pytest.approx(math.log(1 + 2 * math.exp(-1)), rel=1e-12)
        assert int((slope > 0).sum()) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"beta": math.nan}, "beta is not a number"),
    ],
)
def test_bad_parameters_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        TopKInfoNCE(**arguments)
