import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hardwon.losses import InfoNCE, JudgeAlignment, KnownPairs, Listwise, Pairwise, Targets, UnusableRows, Weighted
from hardwon.losses.targets import NothingToCompare, check, check_contrast, exact


def test_targets_of_gold_know_nothing_else():
    gold = torch.eye(2, 3, dtype=torch.bool)
    targets = Targets.of_gold(gold)
    assert torch.equal(targets.gold, gold)
    assert not targets.judged.any()
    assert targets.comparable.all()
    assert torch.equal(targets.relevance, torch.zeros(2, 3))


def test_a_slice_is_the_targets_of_some_queries(problem):
    _, targets = problem(5, 8)
    some = targets[1:3]
    assert len(targets) == 5
    assert len(some) == 2
    assert torch.equal(some.gold, targets.gold[1:3])
    assert torch.equal(some.judged, targets.judged[1:3])
    assert torch.equal(some.relevance, targets.relevance[1:3])
    assert torch.equal(some.comparable, targets.comparable[1:3])


@settings(deadline=None, max_examples=30)
@given(
    q=st.integers(1, 5),
    c=st.integers(1, 5),
    share=st.sampled_from([0.0, 0.1, 0.3, 1.0]),
    seed=st.integers(0, 10_000),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_known_pairs_are_matrices_row_by_row(q, c, share, seed, dtype):
    rng = torch.Generator().manual_seed(seed)
    said = torch.rand(q, c, generator=rng) < share
    gold, judged, hidden = (said & (torch.rand(q, c, generator=rng) < 0.6) for _ in range(3))
    whole = Targets(gold, judged, torch.rand(q, c, generator=rng, dtype=dtype), gold | ~hidden)
    rows, columns = said.nonzero(as_tuple=True)
    four = (m[rows, columns] for m in (whole.gold, whole.judged, whole.relevance, whole.comparable))
    pairs = KnownPairs((q, c), rows, columns, *four)
    assert len(pairs) == q
    for start in range(q + 1):
        for stop in range(start, q + 1):
            part, expected = pairs[start:stop], whole[start:stop]
            assert torch.equal(part.gold, expected.gold)
            assert torch.equal(part.judged, expected.judged)
            assert torch.equal(part.comparable, expected.comparable)
            assert part.relevance.shape == expected.relevance.shape
            assert torch.equal(part.relevance[expected.judged], expected.relevance[expected.judged])


def test_pairs_on_the_diagonal():
    targets = KnownPairs.diagonal(3, 5)[:]
    assert torch.equal(targets.gold, torch.eye(3, 5, dtype=torch.bool))
    assert targets.comparable.all()
    assert not targets.judged.any()
    assert torch.equal(KnownPairs.diagonal(3, 5)[2:].gold, torch.eye(3, 5, dtype=torch.bool)[2:])


def test_what_is_not_known_takes_no_memory():
    part = KnownPairs.diagonal(1000, 100_000)[10:20]
    for matrix in (part.judged, part.relevance, part.comparable):
        assert matrix.shape == (10, 100_000)
        assert matrix.untyped_storage().size() <= 4
    assert part.gold.sum() == 10


def test_bad_rows_count_from_the_first():
    scores = torch.zeros(3, 2)
    scores[1, 0] = torch.nan
    targets = Targets.of_gold(torch.tensor([[True, False], [True, False], [False, False]]))
    with pytest.raises(UnusableRows, match=r"scores are not finite for rows 41$") as error:
        check(scores, targets, 40)
    assert error.value.rows == (41,)
    assert error.value.what == "scores are not finite"
    with pytest.raises(UnusableRows, match=r"no gold candidate for rows 42$"):
        check(torch.zeros(3, 2), targets, 40)


def test_one_query_with_something_to_compare_is_enough():
    targets = Targets.of_gold(torch.tensor([[True, False], [True, False]]))
    targets.comparable[0, 1] = False
    check_contrast(targets)
    targets.comparable[1, 1] = False
    with pytest.raises(NothingToCompare, match=r"every other candidate is masked\) for rows 0, 1$") as error:
        check_contrast(targets)
    assert isinstance(error.value, UnusableRows)
    assert isinstance(error.value, ValueError)
    assert error.value.rows == (0, 1)
    with pytest.raises(NothingToCompare):
        check_contrast(Targets.of_gold(torch.ones(2, 2, dtype=torch.bool)))  # all are gold


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
