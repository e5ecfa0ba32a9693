import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hardwon.losses import FalseNegatives, InfoNCE, Targets

# One gold, six others; the second gold of `two` has the better score and the worse grade.
SCORES = torch.tensor([[0.50, 0.55, 0.61, 0.45, 0.90, 0.10, 0.60]])
GRADES = torch.tensor([[0.80, 0.75, 0.20, 0.65, 0.95, 0.99, 0.71]])
SIMILAR = torch.tensor([[1.00, 0.50, 0.96, 0.94, 0.20, 0.97, 0.95]])
JUDGED = torch.tensor([[True, True, True, True, False, True, True]])


def one(golds=(0,)):
    gold = torch.zeros(1, 7, dtype=torch.bool)
    gold[0, list(golds)] = True
    return Targets(gold, JUDGED, GRADES, torch.ones(1, 7, dtype=torch.bool))


def dropped(rules, targets=None, similar=SIMILAR):
    targets = targets or one()
    ruled = rules(SCORES, targets, similar)
    return (targets.comparable & ~ruled.comparable)[0].nonzero().flatten().tolist()


def test_student_speaks_in_scores():
    assert dropped(FalseNegatives(student=0.105)) == [2, 4]
    assert dropped(FalseNegatives(student=0.3)) == [4]
    assert dropped(FalseNegatives(student=0.5)) == []
    assert dropped(FalseNegatives(student=-0.1)) == [1, 2, 3, 4, 6]


def test_judge_speaks_in_grades_of_what_it_has_judged():
    assert dropped(FalseNegatives(judge=0.1)) == [1, 5, 6]
    assert dropped(FalseNegatives(judge=0.2)) == [1, 3, 5, 6]
    assert dropped(FalseNegatives(judge=-0.15)) == [5]


def test_copies_speak_in_cosines_with_the_positive_itself():
    assert dropped(FalseNegatives(copies=0.955)) == [2, 5]
    assert dropped(FalseNegatives(copies=0.945)) == [2, 5, 6]
    assert dropped(FalseNegatives(copies=0.1)) == [1, 2, 3, 4, 5, 6]


def test_each_rule_has_its_own_threshold():
    assert dropped(FalseNegatives(student=0.3, judge=0.2)) == [1, 3, 4, 5, 6]
    assert dropped(FalseNegatives(student=0.105, judge=-0.15, copies=0.955)) == [2, 4, 5]


def test_a_threshold_has_to_be_passed_not_met():
    exact = torch.tensor([[0.5, 0.75, 0.25]])
    gold = torch.tensor([[True, False, False]])
    targets = Targets(gold, torch.ones_like(gold), exact, torch.ones_like(gold))
    assert FalseNegatives(student=0.25)(exact, targets).comparable.all()
    assert FalseNegatives(judge=0.25)(exact, targets).comparable.tolist() == [[True, False, True]]
    assert FalseNegatives(judge=-0.25)(exact, targets).comparable.all()
    assert FalseNegatives(copies=0.75)(exact, targets, exact).comparable.all()


def test_none_switches_off():
    targets = one()
    assert dropped(FalseNegatives(), similar=None) == []
    assert torch.equal(FalseNegatives()(SCORES, targets).comparable, targets.comparable)


def test_the_best_of_several_golds_is_the_measure():
    two = one((0, 1))  # scores 0.50 and 0.55, grades 0.80 and 0.75
    assert dropped(FalseNegatives(student=0.055), two) == [2, 4]
    assert dropped(FalseNegatives(student=0.065), two) == [4]
    assert dropped(FalseNegatives(judge=0.1), two) == [5, 6]
    assert dropped(FalseNegatives(judge=0.05), two) == [5]


def test_only_judged_golds_set_the_judges_bar():
    gold_four = one((4, 3))  # 4 has the better grade, but nobody gave it
    assert dropped(FalseNegatives(judge=0.0), gold_four) == [0, 1, 5, 6]


def test_a_positive_without_grade_silences_the_judge():
    assert dropped(FalseNegatives(judge=0.1), one((4,))) == []


def test_copies_need_the_cosines_between_candidates():
    with pytest.raises(ValueError, match="the rule `copies` needs the cosines between candidates"):
        FalseNegatives(copies=0.95)(SCORES, one())


def test_what_was_hidden_stays_hidden_and_nothing_else_changes():
    targets = one()
    targets.comparable[0, 3] = False
    ruled = FalseNegatives(student=0.3)(SCORES, targets, SIMILAR)
    assert ruled.comparable.tolist() == [[True, True, True, False, False, True, True]]
    assert targets.comparable.sum() == 6  # the one given is left alone
    for name in ("gold", "judged", "relevance"):
        assert torch.equal(getattr(ruled, name), getattr(targets, name))


def naive(rules, scores, targets, similar):
    """Each candidate on its own, in words."""
    comparable = targets.comparable.clone()
    for row in range(len(scores)):
        golds = [n for n in range(scores.shape[1]) if targets.gold[row, n]]
        grades = [float(targets.relevance[row, n]) for n in golds if targets.judged[row, n]]
        best = max(float(scores[row, n]) for n in golds)
        for n in set(range(scores.shape[1])) - set(golds):
            too_good = rules.student is not None and float(scores[row, n]) > best + rules.student
            grade = float(targets.relevance[row, n])
            said = rules.judge is not None and grades and targets.judged[row, n] and grade > max(grades) - rules.judge
            copy = rules.copies is not None and float(similar[row, n]) > rules.copies
            comparable[row, n] &= not (too_good or said or copy)
    return comparable


threshold = st.one_of(st.none(), st.floats(-2, 2))


@settings(deadline=None, max_examples=80)
@given(
    q=st.integers(1, 4), c=st.integers(1, 6), seed=st.integers(0, 10_000), student=threshold, judge=threshold, copies=threshold
)
def test_the_positive_can_never_be_masked(q, c, seed, student, judge, copies):
    rng = torch.Generator().manual_seed(seed)
    scores, grades, similar = (torch.rand(q, c, generator=rng, dtype=torch.float64) * 2 - 1 for _ in range(3))
    gold = torch.rand(q, c, generator=rng) < 0.3
    gold[:, 0] = True
    judged = torch.rand(q, c, generator=rng) < 0.7
    comparable = gold | (torch.rand(q, c, generator=rng) < 0.8)
    targets = Targets(gold, judged, grades.masked_fill(~judged, torch.nan), comparable)
    rules = FalseNegatives(student, judge, copies)
    ruled = rules(scores, targets, similar)
    assert (ruled.comparable | ~gold).all()
    assert (comparable | ~ruled.comparable).all()  # nothing comes back
    assert torch.equal(ruled.comparable, naive(rules, scores, targets, similar))


def test_a_dropped_candidate_has_no_part_in_the_loss():
    targets = one()
    ruled = FalseNegatives(student=0.3)(SCORES, targets)
    scores = SCORES.clone().requires_grad_()
    value = InfoNCE(0.1)(scores, ruled)
    value.backward()
    assert scores.grad[0, 4] == 0
    assert (scores.grad[0, [1, 2, 3, 5, 6]] > 0).all()
    kept = [0, 1, 2, 3, 5, 6]
    expected = InfoNCE(0.1)(SCORES[:, kept], Targets.of_gold(targets.gold[:, kept]))
    assert float(value.detach()) == pytest.approx(float(expected), rel=1e-6)


def test_scores_are_only_read():
    scores = SCORES.clone().requires_grad_()
    ruled = FalseNegatives(student=0.1)(scores, one())
    assert not ruled.comparable.requires_grad
    assert scores.grad is None
    assert torch.equal(scores.detach(), SCORES)
