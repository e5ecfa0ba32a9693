"""What every objective keeps to. A new one is found here by itself; add it to VARIANTS if its defaults do not suffice."""

import dataclasses
import importlib
import pkgutil

import pytest
import torch

import hardwon.losses
from hardwon.losses import (
    AmplifiedInfoNCE,
    InfoNCE,
    JudgeAlignment,
    Listwise,
    Loss,
    Pairwise,
    Targets,
    TopKInfoNCE,
    Weighted,
    blockwise,
    value_and_gradient,
)
from hardwon.losses.targets import Composable, NothingToCompare, parts_of

KINDS = ("amplify", "hinge", "redistribute", "colder")
VARIANTS = {
    AmplifiedInfoNCE: [*(AmplifiedInfoNCE(0.1, kind, 2.0, 0.2) for kind in KINDS), AmplifiedInfoNCE(0.1, alpha=4.0, cap=True)],
    InfoNCE: [InfoNCE(0.1), InfoNCE(0.1, symmetric=True), InfoNCE(0.1, hardness=2.0), InfoNCE(0.1, 2.0, True)],
    JudgeAlignment: [JudgeAlignment(0.2), JudgeAlignment(0.2, 0.1)],
    Pairwise: [Pairwise(), Pairwise(2.0)],
    Listwise: [Listwise(), Listwise(0.3)],
    TopKInfoNCE: [TopKInfoNCE(0.1, 2, 0.2), TopKInfoNCE(0.1, 1), TopKInfoNCE(0.1, 99, 9.0)],
    Weighted: [
        JudgeAlignment(0.2) + 0.5 * InfoNCE(0.1, symmetric=True),
        AmplifiedInfoNCE(0.1) + 0.3 * TopKInfoNCE(0.1, 2),
        2.0 * InfoNCE(0.2, 3.0, True) + Listwise(0.3) + 0.1 * InfoNCE(0.1, symmetric=True) + Pairwise(),
    ],
}


def every_class():
    for module in pkgutil.iter_modules(hardwon.losses.__path__):
        for value in vars(importlib.import_module(f"hardwon.losses.{module.name}")).values():
            if isinstance(value, type) and issubclass(value, Composable) and value is not Composable:
                yield value


CLASSES = sorted(set(every_class()), key=lambda cls: cls.__name__)
LOSSES = [loss for cls in CLASSES for loss in VARIANTS.get(cls) or [cls()]]
every_loss = pytest.mark.parametrize("loss", LOSSES, ids=repr)


def has(loss, name):
    """Whether an objective, or a part of it, sets a field to something other than zero or False."""
    return any(getattr(part, name, False) for _, part in parts_of(loss))


def is_a(loss, *classes):
    """Whether an objective, or a part of it, is of one of these classes."""
    return any(isinstance(part, classes) for _, part in parts_of(loss))


def those(wanted):
    """The objectives of which something is true."""
    return pytest.mark.parametrize("loss", [loss for loss in LOSSES if wanted(loss)], ids=repr)


def matrices(targets):
    return targets.gold, targets.judged, targets.relevance, targets.comparable


def run(loss, scores, targets):
    scores = scores.clone().requires_grad_()
    value = loss(scores, targets)
    value.backward()
    return value.detach(), scores.grad


def test_every_objective_is_public_and_found():
    assert {cls.__name__ for cls in CLASSES} >= {cls.__name__ for cls in VARIANTS}
    for cls in CLASSES:
        assert getattr(hardwon.losses, cls.__name__) is cls
        assert cls.__name__ in hardwon.losses.__all__


@every_loss
def test_is_a_frozen_value(loss):
    assert isinstance(loss, Loss)
    assert dataclasses.replace(loss) == loss
    assert hash(dataclasses.replace(loss)) == hash(loss)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(loss, dataclasses.fields(loss)[0].name, 1.0)


@every_loss
def test_is_a_finite_scalar_above_zero_with_a_gradient(loss, problem):
    value, gradient = run(loss, *problem(4, 7))
    assert value.shape == ()
    assert value > 0
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() > 0


# With hardness and amplified, weights are constants on purpose: test_infonce and test_amplified compare with the definition.
@those(lambda loss: not has(loss, "hardness") and not is_a(loss, AmplifiedInfoNCE))
def test_gradient_is_that_of_the_value(loss, problem):
    scores, targets = problem(3, 5, seed=1)
    assert torch.autograd.gradcheck(lambda s: loss(s, targets), scores.requires_grad_(), eps=1e-6, atol=1e-6)


# The reverse direction balances columns; a yes-or-no answer is about one candidate.
@those(lambda loss: not has(loss, "symmetric") and not is_a(loss, Pairwise))
def test_attraction_balances_repulsion_in_every_row(loss, problem):
    _, gradient = run(loss, *problem(5, 8, seed=1))
    assert torch.allclose(gradient.sum(dim=1), torch.zeros(5, dtype=torch.float64), atol=1e-13)


@those(lambda loss: has(loss, "symmetric") and not is_a(loss, Pairwise))
def test_attraction_balances_repulsion_in_both_directions_together(loss, problem):
    _, gradient = run(loss, *problem(5, 8, seed=1))
    assert float(gradient.sum()) == pytest.approx(0, abs=1e-12)


@every_loss
def test_leaves_what_it_is_given_alone(loss, problem):
    scores, targets = problem(4, 7, seed=1)
    before = [m.clone() for m in (scores, *matrices(targets))]
    _, gradient = run(loss, scores, targets)
    loss(scores, targets)
    assert all(map(torch.equal, before, (scores, *matrices(targets))))
    # ... and what comes after it counts.
    free = scores.clone().requires_grad_()
    (loss(free, targets) * 3.0 + free.sum()).backward()
    assert torch.allclose(free.grad, 3 * gradient + 1, rtol=1e-12)


@every_loss
def test_grades_of_candidates_that_nobody_judged_mean_nothing(loss, problem):
    scores, targets = problem(4, 7, seed=1)
    value, gradient = run(loss, scores, targets)
    noise = Targets(targets.gold, targets.judged, targets.relevance.masked_fill(~targets.judged, torch.nan), targets.comparable)
    same, slope = run(loss, scores, noise)
    assert value == same
    assert torch.equal(slope, gradient)


@every_loss
def test_order_of_candidates_and_queries_plays_no_part(loss, problem, mapped):
    scores, targets = problem(4, 7, seed=2)
    value, gradient = run(loss, scores, targets)
    rows, columns = torch.tensor([2, 0, 3, 1]), torch.tensor([5, 1, 6, 0, 2, 4, 3])

    def moved(matrix):
        return matrix[rows][:, columns]

    other, moved_gradient = run(loss, moved(scores), mapped(moved, targets))
    assert float(other) == pytest.approx(float(value), rel=1e-12)
    assert torch.allclose(moved_gradient, moved(gradient), rtol=1e-9, atol=1e-12)


@every_loss
def test_padding_has_no_effect(loss, problem):
    """Ragged lists: places that are neither comparable nor judged change neither the value nor anybody's gradient."""
    scores, targets = problem(4, 6, seed=3)
    value, gradient = run(loss, scores, targets)
    empty = torch.zeros(4, 3, dtype=torch.bool)
    padded = Targets(
        *(torch.cat([m, empty], dim=1) for m in (targets.gold, targets.judged)),
        torch.cat([targets.relevance, torch.full((4, 3), 0.9)], dim=1),
        torch.cat([targets.comparable, empty], dim=1),
    )
    filling = torch.tensor([50.0, -50.0, 0.0], dtype=torch.float64).expand(4, 3)
    same, wide = run(loss, torch.cat([scores, filling], dim=1), padded)
    assert float(same) == pytest.approx(float(value), rel=1e-12)
    assert torch.allclose(wide[:, :6], gradient, rtol=1e-12, atol=1e-14)
    assert torch.equal(wide[:, 6:], torch.zeros(4, 3, dtype=torch.float64))


@every_loss
def test_a_masked_copy_of_the_gold_has_no_effect(loss, problem, mapped):
    scores, targets = problem(4, 6, seed=4)
    value, gradient = run(loss, scores, targets)
    doubled = mapped(lambda matrix: torch.cat([matrix, matrix[:, :1]], dim=1), targets)
    for matrix in (doubled.gold, doubled.judged, doubled.comparable):
        matrix[:, -1] = False
    same, wide = run(loss, torch.cat([scores, scores[:, :1]], dim=1), doubled)
    assert float(same) == pytest.approx(float(value), rel=1e-12)
    assert torch.allclose(wide[:, :-1], gradient, rtol=1e-12, atol=1e-14)


# The reverse direction averages over candidates.
@those(lambda loss: not has(loss, "symmetric"))
def test_averages_per_query(loss, problem, mapped):
    scores, targets = problem(5, 8, seed=5)
    rows = [loss(scores[n : n + 1], mapped(lambda matrix, n=n: matrix[n : n + 1], targets)) for n in range(5)]
    assert float(loss(scores, targets)) == pytest.approx(float(sum(rows)) / 5, rel=1e-12)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_computes_in_single_precision_at_least(loss, dtype, problem):
    scores, targets = problem(4, 7, seed=6, dtype=dtype)
    truth, slope = run(loss, scores.double(), targets)
    value, gradient = run(loss, scores, targets)
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(float(truth), rel=1e-5)
    assert gradient.dtype == dtype
    assert torch.allclose(gradient.double(), slope, rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-5)


NEAR_ZERO = [
    *(InfoNCE(0.02), InfoNCE(0.02, 9.0), InfoNCE(0.02, symmetric=True), Pairwise(20.0)),
    *(AmplifiedInfoNCE(0.02), TopKInfoNCE(0.02, 2), Listwise(0.02)),
]


@pytest.mark.parametrize("loss", NEAR_ZERO, ids=repr)
def test_a_loss_near_zero_keeps_its_digits(loss):
    scores = torch.full((3, 4), 0.25) + 0.35 * torch.eye(3, 4)
    scores[:, 3] = 0.3
    if isinstance(loss, Pairwise):
        scores = (scores - 0.45) * 4
    elif has(loss, "hardness"):
        scores = scores - 0.05
    targets = Targets.of_gold(torch.eye(3, 4, dtype=torch.bool))
    truth = float(loss(scores.double(), targets))
    assert 1e-8 < truth < 1e-4
    assert abs(float(loss(scores, targets)) - truth) / truth < 1e-5


# LLaVE's margin grows with the scores themselves, and Pairwise reads them as log-odds.
@those(lambda loss: not has(loss, "hardness") and not has(loss, "symmetric") and not is_a(loss, Pairwise))
def test_a_constant_added_to_a_row_has_no_effect(loss, problem):
    scores, targets = problem(4, 7, seed=7)
    shift = torch.tensor([[0.1], [-0.3], [0.0], [2.0]], dtype=torch.float64)
    value, gradient = run(loss, scores, targets)
    other, slope = run(loss, scores + shift, targets)
    assert float(other) == pytest.approx(float(value), rel=1e-9)
    assert torch.allclose(slope, gradient, rtol=1e-9, atol=1e-12)


@every_loss
def test_in_blocks_it_is_the_same(loss, vectors):
    queries, candidates, targets = vectors(5, 8, seed=8)
    expected = [x.clone().requires_grad_() for x in (queries, candidates)]
    truth = loss(expected[0] @ expected[1].T, targets)
    truth.backward()
    for rows in (1, 2, 5, None):
        made = [x.clone().requires_grad_() for x in (queries, candidates)]
        value = blockwise(loss, *made, targets, rows=rows)
        value.backward()
        assert float(value.detach()) == pytest.approx(float(truth.detach()), rel=1e-12)
        for one, other in zip(made, expected, strict=True):
            assert torch.allclose(one.grad, other.grad, rtol=1e-11, atol=1e-13)


@every_loss
def test_two_processes_are_one(loss, vectors, together):
    queries, candidates, targets = vectors(5, 8, seed=9)
    truth = value_and_gradient(loss, queries, candidates, targets)
    parts = (slice(0, 2), slice(2, 5))

    def work(rank, ranks):
        return value_and_gradient(loss, queries[parts[rank]], candidates, targets[parts[rank]], rows=2, ranks=ranks)

    made = together(2, work)
    assert [float(m.value) for m in made] == pytest.approx([float(truth.value)] * 2, rel=1e-12)
    assert torch.allclose(torch.cat([m.queries for m in made]), truth.queries, rtol=1e-11, atol=1e-13)
    assert torch.allclose(sum(m.candidates for m in made), truth.candidates, rtol=1e-11, atol=1e-13)
    assert not torch.allclose(made[0].candidates, truth.candidates)  # each has its part only


def nothing_left(targets, rows):
    """The targets with every negative of these rows masked."""
    comparable = targets.comparable.clone()
    comparable[rows] &= targets.gold[rows]
    return Targets(targets.gold, targets.judged, targets.relevance, comparable)


@those(lambda loss: parts_of(loss) != ((1.0, loss),) or not is_a(loss, JudgeAlignment))
def test_a_batch_with_nothing_to_compare_is_refused(loss, problem):
    scores, targets = problem(4, 7)
    with pytest.raises(NothingToCompare, match=r"nothing to compare the gold with .* for rows 0, 1, 2, 3$"):
        loss(scores, nothing_left(targets, slice(None)))
    with pytest.raises(ValueError, match="nothing to compare"):
        loss(scores[:1, :1], Targets.of_gold(torch.ones(1, 1, dtype=torch.bool)))


# A judge teaches what it has judged, whatever may be compared.
@those(lambda loss: not has(loss, "symmetric") and not is_a(loss, JudgeAlignment))
def test_a_single_query_with_nothing_to_compare_costs_nothing(loss, problem):
    scores, targets = problem(4, 7, seed=1)
    value, gradient = run(loss, scores, nothing_left(targets, slice(1, 2)))
    rest, expected = run(loss, scores[[0, 2, 3]], Targets(*(m[[0, 2, 3]] for m in matrices(targets))))
    assert float(value) == pytest.approx(float(rest) * 3 / 4, rel=1e-12)
    assert torch.equal(gradient[1], torch.zeros(7, dtype=torch.float64))
    assert torch.allclose(gradient[[0, 2, 3]], expected * 3 / 4, rtol=1e-12, atol=1e-15)


@every_loss
def test_scores_that_are_not_finite_are_refused(loss, problem):
    scores, targets = problem(4, 7)
    scores[1, 2], scores[3, 0] = torch.nan, torch.inf
    with pytest.raises(ValueError, match=r"scores are not finite for rows 1, 3$"):
        loss(scores, targets)


@every_loss
def test_a_row_without_gold_is_refused(loss, problem):
    scores, targets = problem(4, 7)
    targets.gold[2] = False
    with pytest.raises(ValueError, match=r"no gold candidate for rows 2$"):
        loss(scores, targets)


@every_loss
def test_gold_that_may_not_be_compared_is_refused(loss, problem):
    scores, targets = problem(4, 7)
    targets.comparable[0, 0] = False
    with pytest.raises(ValueError, match=r"gold marked as not comparable for rows 0$"):
        loss(scores, targets)
