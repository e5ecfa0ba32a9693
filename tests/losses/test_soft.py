import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hardwon.losses import JudgeAlignment, Targets

COSINES = (0.70, 0.66, 0.60, 0.58, 0.55, 0.50, 0.45, 0.40, 0.30)
GRADES = (0.90, 0.86, 0.70, 0.55, 0.50, 0.30, 0.20, 0.10, 0.05)


def judged_row(grades):
    """Targets of one query whose candidates are all judged; the first is gold."""
    shape = (1, len(grades))
    gold = torch.zeros(shape, dtype=torch.bool)
    gold[0, 0] = True
    full = torch.ones(shape, dtype=torch.bool)
    return Targets(gold, full, torch.tensor([grades], dtype=torch.float64), full)


def distribution(values, temperature):
    values = np.asarray(values, dtype=np.float64) / temperature
    shifted = values - values.max()
    log = shifted - np.log(np.exp(shifted).sum())
    return log, np.exp(log)


def reference(scores, grades, temperature, judge_temperature):
    """Half of Jeffreys' divergence and its gradient in numpy, without the released code's 1e-8 inside the logarithm."""
    log_p, p = distribution(scores, temperature)
    log_j, j = distribution(grades, judge_temperature)
    forward, backward = (j * (log_j - log_p)).sum(), (p * (log_p - log_j)).sum()
    gap = log_p - log_j
    gradient = 0.5 / temperature * ((p - j) + p * (gap - (p * gap).sum()))
    return (forward + backward) / 2, gradient


def run(loss, scores, targets):
    scores = torch.tensor([scores], dtype=torch.float64, requires_grad=True)
    value = loss(scores, targets)
    value.backward()
    return float(value.detach()), scores.grad[0].numpy()


def test_value_and_gradient_of_the_papers_example():
    value, gradient = run(JudgeAlignment(0.02), COSINES, judged_row(GRADES))
    expected, slope = reference(COSINES, GRADES, 0.02, 0.02)
    assert value == pytest.approx(expected, abs=1e-12)
    np.testing.assert_allclose(gradient, slope, rtol=1e-9, atol=1e-12)


def test_differs_from_the_released_code_by_its_epsilon_only():
    value, gradient = run(JudgeAlignment(0.02), COSINES, judged_row(GRADES))
    (log_p, p), (log_j, j) = distribution(COSINES, 0.02), distribution(GRADES, 0.02)
    released = ((j * (log_j - np.log(p + 1e-8))).sum() + (p * (log_p - np.log(j + 1e-8))).sum()) / 2
    assert released == pytest.approx(0.0293918301, abs=1e-9)  # the golden value
    assert value == pytest.approx(released, rel=0.05)
    slope = [-1.475615, -0.199703, 0.872869, 0.653044, 0.139676, 0.009153, 0.000548, 0.000028, 0.0]
    np.testing.assert_allclose(gradient, slope, atol=0.05)


@pytest.mark.parametrize("preference", [0.3, 0.4, 0.5, 0.7, 0.9])
def test_a_confidently_wrong_student_gets_its_whole_gradient(preference):
    """log(softmax + 1e-8) keeps 97 %, 17 % and 0.14 % of it at 0.3, 0.4 and 0.5."""
    scores, grades = (0.0, preference, 0.0), (0.9, 0.2, 0.1)
    _, gradient = run(JudgeAlignment(0.02), scores, judged_row(grades))
    step = 1e-6
    for n in range(3):
        up, down = list(scores), list(scores)
        up[n], down[n] = up[n] + step, down[n] - step
        slope = (reference(up, grades, 0.02, 0.02)[0] - reference(down, grades, 0.02, 0.02)[0]) / (2 * step)
        assert gradient[n] == pytest.approx(slope, rel=1e-4, abs=1e-5)
    assert gradient[0] < -20
    assert gradient[1] > 20


def test_confidence_in_the_wrong_candidate_stays_finite_in_single_precision():
    scores = torch.tensor([[-1.0, 1.0, -1.0]], requires_grad=True)
    loss = JudgeAlignment(0.01)(scores, judged_row((0.9, 0.1, 0.0)))
    loss.backward()
    assert torch.isfinite(loss)
    assert scores.grad[0, 0] < 0 < scores.grad[0, 1]


def test_agreement_costs_nothing():
    value, gradient = run(JudgeAlignment(0.1), GRADES, judged_row(GRADES))
    assert value == pytest.approx(0, abs=1e-15)
    np.testing.assert_allclose(gradient, 0, atol=1e-12)


def test_judge_temperature_is_that_of_the_scores_unless_given():
    targets = judged_row(GRADES)
    assert run(JudgeAlignment(0.05), COSINES, targets)[0] == run(JudgeAlignment(0.05, 0.05), COSINES, targets)[0]
    value, gradient = run(JudgeAlignment(0.05, 0.2), COSINES, targets)
    expected, slope = reference(COSINES, GRADES, 0.05, 0.2)
    assert value == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(gradient, slope, rtol=1e-9)


@settings(deadline=None, max_examples=30)
@given(q=st.integers(1, 4), c=st.integers(1, 7), seed=st.integers(0, 10_000))
def test_only_judged_candidates_take_part(q, c, seed):
    rng = np.random.default_rng(seed)
    scores, grades = rng.uniform(-0.2, 1, (q, c)), rng.uniform(0, 1, (q, c)).astype(np.float32)
    judged = rng.random((q, c)) < 0.6
    gold = torch.zeros(q, c, dtype=torch.bool)
    gold[:, 0] = True
    targets = Targets(gold, torch.from_numpy(judged), torch.from_numpy(grades), torch.ones(q, c, dtype=torch.bool))
    total, slopes = 0.0, np.zeros((q, c))
    for row in range(q):
        kept = judged[row]
        if kept.sum() > 1:
            value, slopes[row, kept] = reference(scores[row, kept], grades[row, kept], 0.1, 0.1)
            total += value / q
    given_scores = torch.from_numpy(scores).requires_grad_()
    made = JudgeAlignment(0.1)(given_scores, targets)
    made.backward()
    # Grades are stored in single precision: dividing them by 0.1 leaves six digits.
    assert float(made.detach()) == pytest.approx(total, rel=1e-5, abs=1e-9)
    np.testing.assert_allclose(given_scores.grad.numpy(), slopes / q, rtol=1e-4, atol=1e-5)
    assert (given_scores.grad.numpy()[~judged] == 0).all()


def test_without_judgements_it_is_zero_with_a_graph():
    scores = torch.rand(2, 3, requires_grad=True)
    loss = JudgeAlignment()(scores, Targets.of_gold(torch.eye(2, 3, dtype=torch.bool)))
    loss.backward()
    assert float(loss.detach()) == 0
    assert torch.equal(scores.grad, torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0.0,), "temperature must be above 0, got 0.0"), ((0.1, 0.0), "judge_temperature must be above 0, got 0.0")],
)
def test_temperatures_must_be_positive(arguments, message):
    with pytest.raises(ValueError, match=message):
        JudgeAlignment(*arguments)
