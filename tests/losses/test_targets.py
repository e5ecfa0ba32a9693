import pytest
import torch

from hardwon.losses import InfoNCE, JudgeAlignment, Listwise, Pairwise, Targets, Weighted
from hardwon.losses.targets import check, exact


def test_targets_of_gold_know_nothing_else():
    gold = torch.eye(2, 3, dtype=torch.bool)
    targets = Targets.of_gold(gold)
    assert torch.equal(targets.gold, gold)
    assert not targets.judged.any()
    assert targets.comparable.all()
    assert torch.equal(targets.relevance, torch.zeros(2, 3))


def test_a_sum_is_the_sum(problem):
    scores, targets = problem(4, 6)
    a, b = JudgeAlignment(0.1), InfoNCE(0.1)
    scores.requires_grad_()
    (expected,) = torch.autograd.grad(a(scores, targets) + 0.5 * b(scores, targets), scores)
    (made,) = torch.autograd.grad((a + 0.5 * b)(scores, targets), scores)
    assert torch.allclose(made, expected, rtol=1e-12)
    value = float((a + 0.5 * b)(scores, targets).detach())
    assert value == pytest.approx(float((a(scores, targets) + 0.5 * b(scores, targets)).detach()), rel=1e-12)


def test_sums_stay_flat_and_readable():
    a, b, c = Pairwise(), Listwise(), InfoNCE()
    assert a + b + c == Weighted(((1.0, a), (1.0, b), (1.0, c)))
    assert a + (b + c) == (a + b) + c
    assert 2.0 * (a + 0.5 * b) == Weighted(((2.0, a), (1.0, b)))
    assert a * 0.5 == 0.5 * a


def test_many_bad_rows_are_cut_off():
    scores = torch.full((12, 2), torch.nan)
    with pytest.raises(ValueError, match=r"rows 0, 1, 2, 3, 4, 5, 6, 7 \.\.\.$"):
        check(scores, Targets.of_gold(torch.ones(12, 2, dtype=torch.bool)))


@pytest.mark.parametrize(
    ("given", "used"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_exact_is_single_precision_or_what_is_better(given, used):
    assert exact(torch.zeros(2, 2, dtype=given)).dtype == used
