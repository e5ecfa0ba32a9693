import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hardwon.losses import InfoNCE, Targets
from hardwon.losses.targets import NothingToCompare


def gradient(loss, scores, targets):
    scores = scores.clone().requires_grad_()
    loss(scores, targets).backward()
    return scores.grad


def naive(scores, targets, temperature, hardness):
    """The definition, one number at a time: each gold against the negatives of its row."""
    rows = []
    for row, gold, comparable in zip(scores.tolist(), targets.gold.tolist(), targets.comparable.tolist(), strict=True):
        negatives = [s for s, g, c in zip(row, gold, comparable, strict=True) if c and not g]
        weighted = sum(math.exp(hardness * s) * math.exp(s / temperature) for s in negatives)
        golds = [s for s, g in zip(row, gold, strict=True) if g]
        each = [-math.log(math.exp(s / temperature) / (math.exp(s / temperature) + weighted)) for s in golds]
        rows.append(sum(each) / len(each))
    return sum(rows) / len(rows)


@pytest.mark.parametrize(
    ("hardness", "symmetric", "value"),
    [(0.0, False, 1.6423637072), (0.0, True, 2.1344432723), (9.0, False, 6.8944174365), (9.0, True, 6.8045596465)],
)
def test_golden_values(square, hardness, symmetric, value):
    assert float(InfoNCE(0.02, hardness, symmetric)(*square)) == pytest.approx(value, abs=1e-9)


def test_the_reverse_direction_alone(square):
    scores, targets = square
    assert float(InfoNCE(0.02)(scores.T, targets)) == pytest.approx(2.6265228372, abs=1e-9)
    assert float(InfoNCE(0.02, hardness=9.0)(scores.T, targets)) == pytest.approx(6.7147018557, abs=1e-9)


def test_golden_softmax_is_the_gradient(square):
    scores, targets = square
    rows = [
        [0.880796840658, 0.119202889904, 0.000000269438, 0],
        [0.140244380953, 0.628531709292, 0.231223893973, 0.000000015782],
        [0, 0.000002319685, 0.622457887292, 0.377539793023],
        [0, 0.000000001245, 0.995929861044, 0.004070137711],
    ]
    expected = torch.tensor(rows, dtype=torch.float64) - torch.eye(4)
    assert torch.allclose(gradient(InfoNCE(0.02), scores, targets) * 4 * 0.02, expected, rtol=0, atol=1e-11)
    # Both ways: half of it, and half of that of the transposed problem, turned back.
    turned = gradient(InfoNCE(0.02), scores.T.contiguous(), targets).T * 4 * 0.02
    both = gradient(InfoNCE(0.02, symmetric=True), scores, targets) * 4 * 0.02
    assert torch.allclose(both, (expected + turned) / 2, rtol=0, atol=1e-11)


def test_golden_gradients_of_llave(square):
    scores, targets = square
    one_way = [
        [-12.261535084490, 12.261532414760, 0.000002669730, 0],
        [4.431216357887, -12.425079361629, 7.993862975750, 0.000000027993],
        [0, 0.000008845356, -12.483187253992, 12.483178408636],
        [0, 0.000000000390, 12.499914267079, -12.499914267469],
    ]
    both_ways = [
        [-11.313295779621, 12.361358185737, 0.000001396267, 0],
        [7.398136416229, -12.452593122156, 4.044966393427, 0.000000013998],
        [0.000000000090, 0.009465881946, -11.677620016758, 12.491588822153],
        [0, 0.000000003911, 11.637948556347, -12.499956751572],
    ]
    for symmetric, rows in ((False, one_way), (True, both_ways)):
        made = gradient(InfoNCE(0.02, 9.0, symmetric), scores, targets)
        assert torch.allclose(made, torch.tensor(rows, dtype=torch.float64), rtol=0, atol=1e-10)


def test_llave_is_a_colder_temperature_with_a_handicap_on_the_positive(problem):
    scores, targets = problem(6, 9)
    targets = Targets.of_gold(torch.eye(6, 9, dtype=torch.bool))
    colder = 1 / (1 / 0.02 + 9.0)
    handicapped = scores - torch.where(targets.gold, colder * 9.0 * scores, 0)
    assert float(InfoNCE(0.02, 9.0)(scores, targets)) == pytest.approx(float(InfoNCE(colder)(handicapped, targets)), rel=1e-12)
    # ... while gradients keep the scale of the warmer one.
    expected = gradient(InfoNCE(colder), handicapped, targets) * colder / 0.02
    assert torch.allclose(gradient(InfoNCE(0.02, 9.0), scores, targets), expected, rtol=1e-10, atol=1e-14)


def test_without_hardness_it_is_cross_entropy(problem):
    scores, _ = problem(5, 8)
    targets = Targets.of_gold(torch.eye(5, 8, dtype=torch.bool))
    free = scores.clone().requires_grad_()
    expected = torch.nn.functional.cross_entropy(free / 0.05, torch.arange(5))
    expected.backward()
    assert float(InfoNCE(0.05)(scores, targets)) == pytest.approx(float(expected.detach()), rel=1e-12)
    assert torch.allclose(gradient(InfoNCE(0.05), scores, targets), free.grad, rtol=1e-10, atol=1e-13)


@settings(deadline=None, max_examples=40)
@given(
    q=st.integers(1, 5),
    more=st.integers(0, 4),
    seed=st.integers(0, 10_000),
    temperature=st.sampled_from([0.02, 0.07, 1.0]),
    hardness=st.sampled_from([0.0, 1.0, 9.0]),
)
def test_equals_the_definition_for_any_shape(q, more, seed, temperature, hardness, problem):
    scores, targets = problem(q, q + more, seed)
    loss, expected = InfoNCE(temperature, hardness), naive(scores, targets, temperature, hardness)
    if torch.equal(targets.gold, targets.comparable):
        assert expected == 0  # nothing could be learned from this batch
        with pytest.raises(NothingToCompare):
            loss(scores, targets)
        return
    assert float(loss(scores, targets)) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert torch.isfinite(gradient(loss, scores, targets)).all()


def test_symmetric_asks_only_candidates_that_belong_to_somebody(problem):
    scores, targets = problem(4, 7, seed=3)
    asked = targets.gold.any(dim=0)
    back = Targets(*(m.T[asked] for m in (targets.gold, targets.judged, targets.relevance, targets.comparable)))
    expected = (InfoNCE(0.1)(scores, targets) + InfoNCE(0.1)(scores.T[asked], back)) / 2
    assert float(InfoNCE(0.1, symmetric=True)(scores, targets)) == pytest.approx(float(expected), rel=1e-12)
    assert not asked.all()


def test_golds_are_not_pushed_away_from_each_other(problem):
    scores, _ = problem(1, 5)
    gold = torch.tensor([[True, True, False, False, False]])
    made = gradient(InfoNCE(0.1), scores, Targets.of_gold(gold))
    assert (made[gold] < 0).all()
    assert (made[~gold] > 0).all()
    alone = [
        InfoNCE(0.1)(scores[:, [n, 2, 3, 4]], Targets.of_gold(torch.tensor([[True, False, False, False]]))) for n in (0, 1)
    ]
    assert float(InfoNCE(0.1)(scores, Targets.of_gold(gold))) == pytest.approx(float(sum(alone)) / 2, rel=1e-12)


@pytest.mark.parametrize("hardness", [0.0, 9.0])
def test_attraction_balances_repulsion(problem, hardness):
    scores, targets = problem(5, 8)
    made = gradient(InfoNCE(0.05, hardness), scores, targets)
    assert torch.allclose(made.sum(dim=1), torch.zeros(5, dtype=torch.float64), atol=1e-12)


def test_a_row_without_negatives_costs_nothing():
    scores = torch.tensor([[0.3, 0.9], [0.2, 0.4]])
    targets = Targets.of_gold(torch.tensor([[True, False], [False, True]]))
    targets.comparable[0, 1] = False
    made = gradient(InfoNCE(), scores, targets)
    assert torch.equal(made[0], torch.zeros(2))
    assert torch.isfinite(made).all()
    alone = InfoNCE()(scores[1:], targets[1:])
    assert float(InfoNCE()(scores, targets)) == pytest.approx(float(alone) / 2, rel=1e-6)


@pytest.mark.parametrize(("temperature", "shown"), [(0.0, "got 0.0"), (-0.02, "got -0.02"), (math.nan, "got nan")])
def test_temperature_must_be_positive(temperature, shown):
    with pytest.raises(ValueError, match=f"temperature must be above 0, {shown}"):
        InfoNCE(temperature)


@pytest.mark.parametrize(("hardness", "shown"), [(-1.0, r"-1\.0"), (math.nan, "nan")])
def test_hardness_must_not_be_negative(hardness, shown):
    with pytest.raises(ValueError, match=f"hardness must not be negative, got {shown}"):
        InfoNCE(hardness=hardness)
