import math

import pytest
import torch

from hardwon.losses import (
    AmplifiedInfoNCE,
    FalseNegatives,
    InfoNCE,
    JudgeAlignment,
    KnownPairs,
    Listwise,
    Targets,
    TopKInfoNCE,
    gradient_report,
)

CONTRASTIVE = [InfoNCE(0.1), InfoNCE(0.1, 9.0), AmplifiedInfoNCE(0.1), TopKInfoNCE(0.1, 3, 9.0), Listwise(0.1)]


def judged_false_negative():
    """Two queries; in the first the hardest candidate is one that the judge holds for right, and so is the third."""
    scores = torch.tensor([[0.60, 0.58, 0.40, 0.30], [0.30, 0.55, 0.20, 0.50]], dtype=torch.float64)
    gold = torch.tensor([[True, False, False, False], [False, True, False, False]])
    judged = torch.tensor([[True, True, True, True], [False, False, True, True]])
    grades = torch.tensor([[0.90, 0.85, 0.10, 0.20], [0.0, 0.0, 0.9, 0.1]])
    return scores, Targets(gold, judged, grades, torch.ones_like(gold))


def slope(loss, scores, targets):
    scores = scores.clone().requires_grad_()
    loss(scores, targets).backward()
    return scores.grad


@pytest.mark.parametrize("loss", CONTRASTIVE, ids=repr)
def test_with_one_gold_half_pulls_and_half_pushes(loss, problem):
    scores, _ = problem(5, 8, seed=1)
    report = gradient_report(loss, scores, Targets.of_gold(torch.eye(5, 8, dtype=torch.bool)), hardest=7)
    half = torch.full((5,), 0.5, dtype=torch.float64)
    assert torch.allclose(report.positive, half, rtol=1e-12)
    assert torch.allclose(report.hardest.sum(dim=1), half, rtol=1e-12)
    assert (report.hardest[:, :-1] >= report.hardest[:, 1:]).all() or isinstance(loss, TopKInfoNCE)
    assert not report.idle.any()


@pytest.mark.parametrize("loss", [*CONTRASTIVE, JudgeAlignment(0.2), InfoNCE(0.1, symmetric=True)], ids=repr)
def test_shares_are_those_of_the_rows_of_the_gradient(loss, problem):
    scores, targets = problem(5, 9, seed=2)
    report = gradient_report(loss, scores, targets, hardest=3, margin=0.2)
    made = slope(loss, scores, targets)
    for row in range(5):
        sizes = made[row].abs().tolist()
        golds = [n for n in range(9) if targets.gold[row, n]]
        assert float(report.norm[row]) == pytest.approx(5 * sum(sizes), rel=1e-12)
        assert float(report.positive[row]) == pytest.approx(sum(sizes[n] for n in golds) / sum(sizes), rel=1e-12)
        order = sorted(set(range(9)) - set(golds), key=lambda n: -float(scores[row, n]))[:3]
        assert report.candidates[row].tolist() == order
        assert report.hardest[row].tolist() == pytest.approx([sizes[n] / sum(sizes) for n in order], rel=1e-12)
        grades = [float(targets.relevance[row, n]) for n in golds if targets.judged[row, n]]
        others = [n for n in range(9) if targets.judged[row, n] and n not in golds]
        if not grades or not others:
            assert math.isnan(report.false[row])
            assert math.isnan(report.repelled[row])
            continue
        likely = [n for n in others if float(targets.relevance[row, n]) > max(grades) - 0.2]
        assert float(report.false[row]) == pytest.approx(sum(sizes[n] for n in likely) / sum(sizes), rel=1e-12)
        pushed = sum(max(float(made[row, n]), 0) for n in range(9))
        expected = sum(max(float(made[row, n]), 0) for n in likely) / pushed
        assert float(report.repelled[row]) == pytest.approx(expected, rel=1e-12)
    assert torch.isfinite(report.false).any()


def test_norm_of_plain_infonce_does_not_depend_on_the_batch(problem):
    scores, _ = problem(6, 9, seed=3)
    targets = Targets.of_gold(torch.eye(6, 9, dtype=torch.bool))
    chance = (scores / 0.1).softmax(dim=1).diagonal()
    expected = 2 * (1 - chance) / 0.1
    assert torch.allclose(gradient_report(InfoNCE(0.1), scores, targets).norm, expected, rtol=1e-10)
    assert torch.allclose(gradient_report(InfoNCE(0.1), scores[:2], targets[:2]).norm, expected[:2], rtol=1e-10)


def test_hardness_weighting_amplifies_a_false_negative_and_the_report_shows_it():
    scores, targets = judged_false_negative()
    plain, llave = (gradient_report(InfoNCE(0.1, hardness), scores, targets, hardest=2) for hardness in (0.0, 9.0))
    assert 0.1 < plain.false[0] < llave.false[0] < 0.5
    assert plain.repelled[0] < llave.repelled[0] < 1
    assert float(llave.repelled[0]) == pytest.approx(2 * float(llave.false[0]), rel=1e-10)  # the other half pulls
    assert llave.norm[0] > 1.5 * plain.norm[0]
    colder = gradient_report(AmplifiedInfoNCE(0.1), scores, targets)
    assert plain.false[0] < colder.false[0]


def test_where_nothing_was_graded_there_is_no_number():
    scores, targets = judged_false_negative()
    report = gradient_report(InfoNCE(0.1), scores, targets)
    assert torch.isfinite(report.false).tolist() == [True, False]  # the positive of the second query is not judged
    targets.judged[0, 1:] = False
    report = gradient_report(InfoNCE(0.1), scores, targets)
    assert torch.isnan(report.false).all()  # nothing but the positive is
    assert torch.isnan(report.repelled).all()
    assert math.isnan(report.summary()["false_negatives"])
    assert str(report).count("unknown") == 2


def test_the_margin_is_in_grades():
    scores, targets = judged_false_negative()
    for margin, likely in ((0.02, []), (0.1, [1]), (0.75, [1, 3]), (2.0, [1, 2, 3])):
        report = gradient_report(InfoNCE(0.1), scores, targets, margin=margin)
        sizes = slope(InfoNCE(0.1), scores, targets)[0].abs()
        assert float(report.false[0]) == pytest.approx(float(sizes[likely].sum() / sizes.sum()), rel=1e-10)


def test_a_rule_takes_the_false_negative_out():
    scores, targets = judged_false_negative()
    ruled = FalseNegatives(judge=0.1)(scores, targets)
    report = gradient_report(InfoNCE(0.1, 9.0), scores, ruled)
    assert report.false[0] == 0
    assert report.candidates[0, 0] == 1  # still the hardest
    assert report.hardest[0, 0] == 0
    assert "judged false negatives         0.0 %" in str(report)


def test_a_query_without_gradient_is_idle_and_left_out_of_the_means():
    scores, targets = judged_false_negative()
    targets.comparable[1] = targets.gold[1]
    report = gradient_report(InfoNCE(0.1), scores, targets)
    assert report.idle.tolist() == [False, True]
    assert report.norm[1] == 0
    assert torch.isfinite(report.hardest).all()
    summary = report.summary()
    assert summary["idle"] == 0.5
    assert summary["positive"] == pytest.approx(0.5)
    assert summary["hardest"] == pytest.approx(float(report.hardest[0, 0]))
    assert summary["norm"] == pytest.approx(float(report.norm[0]) / 2)


def test_prints_a_small_table():
    scores, targets = judged_false_negative()
    report = gradient_report(InfoNCE(0.1), scores, targets, hardest=2)
    summary = report.summary()
    assert set(summary) == {
        *("norm", "positive", "hardest", "hardest_2"),
        *("false_negatives", "false_negatives_of_repelled", "idle"),
    }
    lines = str(report).splitlines()
    assert lines[0] == f"gradient per query: {summary['norm']:.4g} in sum of absolute values"
    assert lines[1].split() == ["positive", "50.0", "%"]
    assert [line[:26].strip() for line in lines[1:]] == [
        *("positive", "hardest candidate", "2 hardest", "judged false negatives"),
        *("of what is pushed away", "queries without gradient"),
    ]
    assert len({len(line) for line in lines[1:]}) == 1  # numbers stand under each other
    false = gradient_report(InfoNCE(0.1), scores, targets).false[0]
    assert f"{100 * float(false):.1f} %" in lines[4]


def test_hardest_are_negatives_only():
    """A query with fewer negatives than are asked for: its gold candidates are none of them."""
    scores = torch.tensor([[0.9, 0.8, 0.3, 0.2], [0.1, 0.5, 0.4, 0.3]], dtype=torch.float64)
    gold = torch.tensor([[True, True, False, False], [True, False, False, False]])
    report = gradient_report(InfoNCE(0.1), scores, Targets.of_gold(gold), hardest=3)
    half = torch.full((2,), 0.5, dtype=torch.float64)
    assert torch.allclose(report.positive, half)
    assert torch.allclose(report.hardest.nansum(dim=1), half)


def test_takes_pairs_as_well_and_any_precision(problem):
    scores, _ = problem(5, 8, seed=4, dtype=torch.float32)
    targets = Targets.of_gold(torch.eye(5, 8, dtype=torch.bool))
    expected = gradient_report(InfoNCE(0.1, 3.0), scores, targets)
    made = gradient_report(InfoNCE(0.1, 3.0), scores, KnownPairs.diagonal(5, 8))
    assert torch.equal(made.hardest, expected.hardest)
    half = gradient_report(InfoNCE(0.1, 3.0), scores.bfloat16(), targets)
    assert half.norm.dtype == torch.float32
    assert torch.allclose(half.norm, expected.norm, rtol=0.1)


def test_works_without_a_graph_and_leaves_scores_alone():
    scores, targets = judged_false_negative()
    before = scores.clone()
    with torch.no_grad():
        report = gradient_report(InfoNCE(0.1), scores, targets)
    assert torch.equal(scores, before)
    assert not scores.requires_grad
    assert not report.norm.requires_grad
    assert report.norm[0] > 0
