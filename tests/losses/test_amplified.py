import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hardwon.losses import AmplifiedInfoNCE, InfoNCE, Targets

KINDS = ("amplify", "hinge", "redistribute", "colder")
every_kind = pytest.mark.parametrize("kind", KINDS)


def gradient(loss, scores, targets):
    scores = scores.clone().requires_grad_()
    loss(scores, targets).backward()
    return scores.grad


def naive_row(gold, negatives, loss):
    """Pbar of the negatives against one gold, by methods.md 3.3, one number at a time."""
    tau, alpha, width = loss.temperature, loss.alpha, loss.width
    odds = [math.exp((s - gold) / tau) for s in negatives]  # over exp(gold / tau)
    p = [o / (1 + sum(odds)) for o in odds]
    if loss.kind == "colder":
        raised = [p_j * math.exp(alpha * (s - gold)) for p_j, s in zip(p, negatives, strict=True)]
        weights = [r / (1 / (1 + sum(odds)) + sum(raised)) for r in raised]
    elif loss.kind == "redistribute":
        raised = [p_j * math.exp(alpha * s) for p_j, s in zip(p, negatives, strict=True)]
        weights = [sum(p) * r / sum(raised) for r in raised]
    elif loss.kind == "amplify":
        weights = [p_j * (1 + alpha / (1 + math.exp((gold - s) / width))) for p_j, s in zip(p, negatives, strict=True)]
    else:
        hardness = [min(1, max(0, 1 - (gold - s) / width)) for s in negatives]
        weights = [p_j * (1 + alpha * h) for p_j, h in zip(p, hardness, strict=True)]
    return [w / max(1, sum(weights)) for w in weights] if loss.cap else weights


def naive(scores, targets, loss):
    """The gradient (Pbar - I) / temperature, mean over queries and over each query's golds."""
    made = torch.zeros_like(scores)
    for row in range(len(scores)):
        golds = targets.gold[row].nonzero().flatten().tolist()
        others = (targets.comparable[row] & ~targets.gold[row]).nonzero().flatten().tolist()
        for gold in golds if others else []:
            weights = naive_row(float(scores[row, gold]), [float(scores[row, n]) for n in others], loss)
            share = 1 / (loss.temperature * len(golds) * len(scores))
            made[row, gold] -= sum(weights) * share
            made[row, others] += torch.tensor(weights, dtype=scores.dtype) * share
    return made


GOLDEN = [
    (
        AmplifiedInfoNCE(0.02, "colder", 9.0),  # R0: Pbar - I
        [
            [0.913725788340 - 1, 0.086274192875, 0.000000018785, 0],
            [0.115275877648, 0.676767773773 - 1, 0.207956347851, 0.000000000728],
            [0, 0.000000252705, 0.643364983113 - 1, 0.356634764182],
            [0, 0.000000000031, 0.998483753455, 0.001516246513 - 1],
        ],
    ),
    (
        AmplifiedInfoNCE(0.02, "redistribute", 9.0),  # R1
        [
            [-0.119203159342, 0.119203133388, 0.000000025954, 0],
            [0.132478539437, -0.371468290708, 0.238989750434, 0.000000000837],
            [0, 0.000000267519, -0.377542112708, 0.377541845188],
            [0, 0.000000000031, 0.995929862258, -0.995929862289],
        ],
    ),
    (
        AmplifiedInfoNCE(0.02),  # R2, the default: alpha 1, width 0.1
        [
            [-0.167040762789, 0.167040480573, 0.000000282216, 0],
            [0.199926426742, -0.535239473036, 0.335313030048, 0.000000016245],
            [0, 0.000002495652, -0.556881547915, 0.556879052264],
            [0, 0.000000001304, 1.743136303756, -1.743136305060],
        ],
    ),
]


@pytest.mark.parametrize(("loss", "rows"), GOLDEN, ids=lambda value: getattr(value, "kind", ""))
def test_golden_gradients(square, loss, rows):
    made = gradient(loss, *square) * 4 * 0.02
    assert torch.allclose(made, torch.tensor(rows, dtype=torch.float64), rtol=0, atol=1e-11)


@every_kind
def test_the_value_is_plain_infonce(square, problem, kind):
    assert float(AmplifiedInfoNCE(0.02, kind, 3.0)(*square)) == pytest.approx(1.6423637071886, abs=1e-12)
    scores, targets = problem(5, 9)
    plain = float(InfoNCE(0.05)(scores, targets))
    assert float(AmplifiedInfoNCE(0.05, kind, 3.0)(scores, targets)) == pytest.approx(plain, rel=1e-12)


@settings(deadline=None, max_examples=60)
@given(
    q=st.integers(1, 4),
    more=st.integers(1, 4),
    seed=st.integers(0, 10_000),
    kind=st.sampled_from(KINDS),
    temperature=st.sampled_from([0.02, 0.1, 1.0]),
    alpha=st.sampled_from([0.5, 1.0, 9.0]),
    width=st.sampled_from([0.02, 0.1, 0.5]),
    cap=st.booleans(),
)
def test_the_gradient_is_the_definition_for_any_shape(problem, q, more, seed, **drawn):
    scores, targets = problem(q, q + more, seed)
    targets.gold[0, -1], targets.comparable[0, -1] = False, True  # something to compare with
    loss = AmplifiedInfoNCE(**drawn)
    made = gradient(loss, scores, targets)
    assert torch.allclose(made, naive(scores, targets, loss), rtol=1e-9, atol=1e-12)
    assert torch.allclose(made.sum(dim=1), torch.zeros(q, dtype=torch.float64), atol=1e-10)


@every_kind
def test_vectors_get_the_gradient_of_the_surrogate(vectors, kind):
    """Query, positive and negatives are changed consistently: sum of constant G x score, differentiated by autograd."""
    queries, candidates, targets = vectors(4, 7, seed=1)
    loss = AmplifiedInfoNCE(0.1, kind, 2.0)
    pairs = [(queries.clone().requires_grad_(), candidates.clone().requires_grad_()) for _ in range(2)]
    (loss(pairs[0][0] @ pairs[0][1].T, targets)).backward()
    constant = naive(queries @ candidates.T, targets, loss)
    (constant * (pairs[1][0] @ pairs[1][1].T)).sum().backward()
    for made, expected in zip(*pairs, strict=True):
        assert expected.grad.abs().max() > 0
        assert torch.allclose(made.grad, expected.grad, rtol=1e-10, atol=1e-13)


@every_kind
@pytest.mark.parametrize("cap", [False, True])
def test_without_alpha_it_is_infonce(problem, kind, cap):
    scores, targets = problem(5, 9, seed=2)
    made = gradient(AmplifiedInfoNCE(0.05, kind, 0.0, cap=cap), scores, targets)
    assert torch.allclose(made, gradient(InfoNCE(0.05), scores, targets), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("alpha", [1.0, 9.0, 50.0])
def test_colder_is_softmax_at_a_colder_temperature(problem, alpha):
    scores, targets = problem(5, 9, seed=3)
    colder = 1 / (1 / 0.05 + alpha)
    expected = gradient(InfoNCE(colder), scores, targets) * colder / 0.05
    assert torch.allclose(gradient(AmplifiedInfoNCE(0.05, "colder", alpha), scores, targets), expected, rtol=1e-11, atol=1e-14)


def one_gold(problem, seed, q=6, c=9):
    scores, _ = problem(q, c, seed)
    return scores, Targets.of_gold(torch.eye(q, c, dtype=torch.bool))


def test_redistribute_keeps_the_pull_of_the_positive_and_llaves_proportions(problem):
    scores, targets = one_gold(problem, 4)
    made, plain = (
        gradient(AmplifiedInfoNCE(0.05, "redistribute", 9.0), scores, targets),
        gradient(InfoNCE(0.05), scores, targets),
    )
    assert torch.allclose(made[targets.gold], plain[targets.gold], rtol=1e-12)
    llave = gradient(InfoNCE(0.05, 9.0), scores, targets)
    shares = [m.masked_fill(targets.gold, 0) for m in (made, llave)]
    shares = [m / m.sum(dim=1, keepdim=True) for m in shares]
    assert torch.allclose(shares[0], shares[1], rtol=1e-10, atol=1e-14)
    assert not torch.allclose(made, plain, rtol=0.1)


def test_amplify_at_most_doubles_and_leaves_easy_negatives_alone(problem):
    scores, targets = one_gold(problem, 5)
    factor = gradient(AmplifiedInfoNCE(0.05, width=0.05), scores, targets) / gradient(InfoNCE(0.05), scores, targets)
    factor = factor[~targets.gold]
    gap = (scores.diagonal()[:, None] - scores)[~targets.gold]
    assert (factor > 1).all()
    assert (factor < 2).all()
    assert (factor[gap > 0.5] < 1.0001).all()
    assert (factor[gap < -0.5] > 1.9999).all()
    # With the width of the temperature, hardness is the chance that the negative beats the positive: p_j / (p_j + p_g).
    chance = 1 / (1 + (gap / 0.05).exp())
    assert torch.allclose(factor, 1 + chance, rtol=1e-10)


def test_hinge_leaves_negatives_beyond_the_width_as_they_are(problem):
    scores, targets = one_gold(problem, 6)
    factor = gradient(AmplifiedInfoNCE(0.05, "hinge", 2.0, 0.3), scores, targets) / gradient(InfoNCE(0.05), scores, targets)
    gap = (scores.diagonal()[:, None] - scores).masked_fill(targets.gold, torch.nan)
    some = {"far": gap > 0.3, "near": (gap > 0) & (gap < 0.3), "above": gap < 0}
    assert all(kind.any() for kind in some.values())
    assert torch.allclose(factor[some["far"]], torch.ones((), dtype=torch.float64), rtol=1e-12)
    assert torch.allclose(factor[some["near"]], 3 - 2 * gap[some["near"]] / 0.3, rtol=1e-10)
    assert torch.allclose(factor[some["above"]], torch.full((), 3.0, dtype=torch.float64), rtol=1e-12)


def test_cap_bounds_the_total_of_a_query(square):
    free, capped = (gradient(AmplifiedInfoNCE(0.02, cap=cap), *square) * 4 * 0.02 for cap in (False, True))
    assert free[3, 3] == pytest.approx(-1.743136305060, abs=1e-11)
    assert capped[3, 3] == pytest.approx(-1, abs=1e-12)
    assert torch.allclose(capped[3], free[3] / 1.743136305060, rtol=1e-10)
    assert torch.equal(capped[:3], free[:3])  # below 1 anyhow


@pytest.mark.parametrize(
    "loss", [AmplifiedInfoNCE(0.05, kind, alpha, 0.2) for kind in KINDS for alpha in (0.0, 0.5, 4.0)], ids=repr
)
def test_the_control_weighs_the_neighbourhood_of_the_positive_alike(loss):
    """How fast the log of a negative's weight grows with its score, just below the positive's, beyond plain InfoNCE."""
    step = 1e-6

    def surplus(objective):
        logs = []
        for score in (0.4 - step, 0.4):
            scores = torch.tensor([[0.4, score, -3.0]], dtype=torch.float64)
            made = gradient(objective, scores, Targets.of_gold(torch.tensor([[True, False, False]])))
            logs.append(math.log(made[0, 1]) - math.log(made[0, 2]))  # against a negative far away
        return (logs[1] - logs[0]) / step - 1 / 0.05

    control = loss.control()
    assert control.kind == "colder"
    assert control.temperature == loss.temperature
    assert surplus(control) == pytest.approx(control.alpha, rel=1e-5, abs=1e-7)
    assert surplus(loss) == pytest.approx(control.alpha, rel=1e-4, abs=1e-7)
    if loss.kind in ("colder", "redistribute"):
        assert control.alpha == loss.alpha


def test_golden_controls():
    """At the positive's score the sigmoid is 1/2 and rises by 1/4 per width, the hinge is 1 and rises by 1."""
    assert AmplifiedInfoNCE().control().alpha == pytest.approx(5 / 3)
    assert AmplifiedInfoNCE(0.03, "amplify", 4.0, 0.5, True).control().alpha == pytest.approx(2 / 3)
    assert AmplifiedInfoNCE(0.03, "hinge", 4.0, 0.5).control().alpha == pytest.approx(1.6)
    for kind in ("redistribute", "colder"):
        assert AmplifiedInfoNCE(0.03, kind, 9.0, 0.5).control() == AmplifiedInfoNCE(0.03, "colder", 9.0, 0.5)


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_far_apart_scores_stay_finite(kind, dtype):
    scores = torch.tensor([[-1.0, 1.0, 1.0], [1.0, -1.0, -1.0]], dtype=dtype)
    targets = Targets.of_gold(torch.tensor([[True, False, False]] * 2))
    made = gradient(AmplifiedInfoNCE(0.01, kind, 50.0, 0.01), scores, targets)
    assert torch.isfinite(made).all()
    assert made[0, 0] < -40
    assert torch.allclose(made[1], torch.zeros(3, dtype=dtype), atol=1e-30)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        ({"width": -0.1}, "width must be above 0, got -0.1"),
        ({"alpha": -1.0}, "alpha must not be negative, got -1.0"),
        ({"alpha": math.nan}, "alpha must not be negative, got nan"),
    ],
)
def test_bad_parameters_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        AmplifiedInfoNCE(**arguments)


def test_an_unknown_kind_is_refused():
    # Built without the checks of types, as a recipe of a user would be.
    loss = object.__new__(AmplifiedInfoNCE)
    for name, given_value in {**vars(AmplifiedInfoNCE()), "kind": "softer"}.items():
        object.__setattr__(loss, name, given_value)
    with pytest.raises(ValueError, match="kind must be one of amplify, hinge, redistribute, colder, got 'softer'"):
        loss.__post_init__()
