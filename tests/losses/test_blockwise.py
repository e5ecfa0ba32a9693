import importlib

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from wholes import LOSSES, close_vectors, every_loss, known, naive, off, similar, squared_error

from hardwon.losses import (
    AmplifiedInfoNCE,
    FalseNegatives,
    InfoNCE,
    JudgeAlignment,
    KnownPairs,
    Listwise,
    Pairwise,
    Targets,
    TopKInfoNCE,
    UnusableRows,
    blockwise,
    value_and_gradient,
)
from hardwon.losses.targets import NothingToCompare

MODULE = importlib.import_module("hardwon.losses.blockwise")  # the package has a function of that name
CONTRAST = importlib.import_module("hardwon.losses.contrast")
REVERSE = importlib.import_module("hardwon.losses.reverse")


@every_loss
@pytest.mark.parametrize("rows", [1, 3, 7, 100, None])
def test_equals_the_whole_matrix(loss, rows, vectors):
    queries, candidates, targets = vectors(7, 11, seed=1)
    made = value_and_gradient(loss, queries, candidates, targets, rows=rows)
    assert off(made, naive(loss, queries, candidates, targets)) < 1e-12


@every_loss
@pytest.mark.parametrize("rows", [1, 3, None])
def test_equals_the_whole_matrix_in_single_precision(loss, rows, vectors):
    queries, candidates, targets = vectors(24, 40, seed=2, dtype=torch.float32, d=16)
    made = value_and_gradient(loss, queries, candidates, targets, rows=rows)
    assert {m.dtype for m in made} == {torch.float32}
    assert off(made, naive(loss, queries, candidates, targets)) < 1e-6


COLD = [InfoNCE(0.02, hardness, both) for hardness in (0.0, 9.0) for both in (False, True)]


@pytest.mark.parametrize("loss", [*COLD, AmplifiedInfoNCE(), TopKInfoNCE(), JudgeAlignment()], ids=repr)
def test_is_as_close_to_the_truth_as_the_whole_matrix(loss, vectors):
    """At the temperature of the papers logits are large, and single precision leaves fewer digits in either form."""
    queries, candidates, targets = vectors(24, 40, seed=3, dtype=torch.float32, d=16)
    truth = naive(loss, queries.double(), candidates.double(), targets)
    made = off(value_and_gradient(loss, queries, candidates, targets, rows=5), truth)
    assert made < 2 * off(naive(loss, queries, candidates, targets), truth) < 2e-5


@settings(deadline=None, max_examples=80)
@given(
    loss=st.sampled_from(LOSSES),
    q=st.integers(1, 6),
    more=st.integers(0, 4),
    rows=st.integers(1, 7),
    d=st.integers(1, 5),
    seed=st.integers(0, 10_000),
    golds=st.sampled_from([0.0, 0.2, 0.6]),
    hidden=st.sampled_from([0.0, 0.3, 0.8]),
    graded=st.sampled_from([0.0, 0.1, 0.7]),
    sparse=st.booleans(),
)
def test_equals_the_whole_matrix_for_any_shape(**drawn):
    loss, q, rows, d, sparse = (drawn[name] for name in ("loss", "q", "rows", "d", "sparse"))
    rng, c = torch.Generator().manual_seed(drawn["seed"]), q + drawn["more"]
    queries, candidates = (F.normalize(torch.randn(n, d, generator=rng, dtype=torch.float64), dim=1) for n in (q, c))
    gold = torch.rand(q, c, generator=rng) < drawn["golds"]
    gold[torch.arange(q), torch.randint(c, (q,), generator=rng)] = True  # several queries may share one, many have none
    judged = torch.rand(q, c, generator=rng) < drawn["graded"]
    comparable = gold | (torch.rand(q, c, generator=rng) >= drawn["hidden"])
    targets = Targets(gold, judged, torch.rand(q, c, generator=rng), comparable)
    given_targets = known(targets) if sparse else targets
    try:
        expected = naive(loss, queries, candidates, targets)
    except NothingToCompare:
        with pytest.raises(NothingToCompare):
            value_and_gradient(loss, queries, candidates, given_targets, rows=rows)
        return
    made = value_and_gradient(loss, queries, candidates, given_targets, rows=rows)
    for one, other in zip(made, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-11)


@every_loss
def test_a_batch_of_pairs_on_the_diagonal(loss, vectors):
    queries, candidates, _ = vectors(6, 9, seed=5)  # nobody has judged anything
    made = value_and_gradient(loss, queries, candidates, KnownPairs.diagonal(6, 9), rows=4)
    expected = naive(loss, queries, candidates, Targets.of_gold(torch.eye(6, 9, dtype=torch.bool)))
    for one, other in zip(made, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("loss", [loss for loss in LOSSES if "Judge" in repr(loss)], ids=repr)
def test_some_blocks_may_be_without_grades(loss, vectors):
    queries, candidates, targets = vectors(6, 9, seed=5)
    targets.judged[2:4] = False
    for rows in (1, 2, 6):
        made = value_and_gradient(loss, queries, candidates, targets, rows=rows)
        assert off(made, naive(loss, queries, candidates, targets)) < 1e-12


RULES = [
    FalseNegatives(),
    FalseNegatives(student=0.02),
    FalseNegatives(judge=0.3),
    FalseNegatives(copies=0.95),
    FalseNegatives(0.05, 0.1, 0.9),
]


@pytest.mark.parametrize("rules", RULES, ids=repr)
@pytest.mark.parametrize("loss", [LOSSES[0], LOSSES[3], LOSSES[4], LOSSES[13]], ids=repr)
def test_rules_are_those_of_the_whole_matrix(rules, loss, vectors):
    queries, candidates, targets = close_vectors(vectors, 6)
    ruled = rules(queries @ candidates.T, targets, similar(candidates, targets))
    expected = naive(loss, queries, candidates, ruled)
    assert (ruled.comparable != targets.comparable).any() == (rules != FalseNegatives())
    for rows in (1, 4, None):
        for given_targets in (targets, known(targets)):
            made = value_and_gradient(loss, queries, candidates, given_targets, rules=rules, rows=rows)
            assert off(made, expected) < 1e-12


@every_loss
def test_as_a_scalar_it_has_the_gradient_under_autograd(loss, vectors):
    queries, candidates, targets = vectors(5, 8, seed=10)
    grads = []
    for compute in (lambda q, c: blockwise(loss, q, c, targets, rows=2), lambda q, c: loss(q @ c.T, targets)):
        pair = [(3 * x).requires_grad_() for x in (queries, candidates)]
        value = compute(*(F.normalize(x, dim=1) for x in pair))
        (3.0 * value + pair[0].sum()).backward()
        grads.append([value.detach(), *(x.grad for x in pair)])
    assert off(*grads) < 1e-11


@every_loss
def test_half_precision_vectors_get_half_precision_gradients(loss, vectors):
    queries, candidates, targets = (x.bfloat16() if isinstance(x, torch.Tensor) else x for x in vectors(5, 8, seed=11))
    truth = naive(loss, queries.double(), candidates.double(), targets)
    pair = queries.requires_grad_(), candidates.requires_grad_()
    value = blockwise(loss, *pair, targets, rows=2)
    value.backward()
    assert value.dtype == torch.float32
    assert {x.grad.dtype for x in pair} == {torch.bfloat16}
    assert float(value.detach()) == pytest.approx(float(truth[0]), rel=1e-5)
    assert off([x.grad for x in pair], truth[1:]) < 2**-8  # one rounding, at the end


def test_leaves_vectors_and_targets_alone(vectors):
    queries, candidates, targets = vectors(5, 8, seed=12)
    given_things = (queries, candidates, targets.gold, targets.judged, targets.relevance, targets.comparable)
    before = [x.clone() for x in given_things]
    rules = FalseNegatives(0.1, 0.1, 0.9)
    first = value_and_gradient(LOSSES[-2], queries.requires_grad_(), candidates, targets, rules=rules, rows=2)
    assert all(map(torch.equal, before, given_things))
    again = value_and_gradient(LOSSES[-2], queries, candidates, targets, rules=rules, rows=2)
    assert all(map(torch.equal, first, again))
    assert not any(x.requires_grad for x in first)


def total_score(scores, targets):
    """Its gradient is a one everywhere, which autograd writes down only once."""
    return scores.sum()


@pytest.mark.parametrize("rows", [1, 3, None])
def test_any_function_will_do_on_one_process(rows, vectors, monkeypatch):
    monkeypatch.setattr(CONTRAST, "PIECE", 2)
    queries, candidates, targets = vectors(5, 8, seed=13)
    for function in (squared_error, total_score):
        made = value_and_gradient(function, queries, candidates, targets, rows=rows)
        assert off(made, naive(function, queries, candidates, targets)) < 1e-12
    mixed = InfoNCE(0.1, symmetric=True) + 0.5 * InfoNCE(0.1)
    mixed = type(mixed)((*mixed.parts, (0.7, squared_error)))
    made = value_and_gradient(mixed, queries, candidates, targets, rows=rows)
    assert off(made, naive(mixed, queries, candidates, targets)) < 1e-12


def watch(monkeypatch, watched):
    """The rows that are asked of these targets from now on."""
    asked, name = [], "some" if isinstance(watched, KnownPairs) else "__getitem__"
    slices = getattr(type(watched), name)

    def remember(targets, rows):
        if targets is watched:
            asked.append(range(*rows.indices(len(targets))))
        return slices(targets, rows)

    monkeypatch.setattr(type(watched), name, remember)
    return asked


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("loss", [InfoNCE(0.1), InfoNCE(0.1, symmetric=True), LOSSES[-1]], ids=repr)
def test_no_more_rows_than_asked_exist_at_once(loss, sparse, vectors, monkeypatch):
    queries, candidates, targets = vectors(23, 30, seed=14)
    given_targets = known(targets) if sparse else targets
    asked, largest = watch(monkeypatch, given_targets), []
    products = torch.mm

    def mm(a, b, **kwargs):
        largest.append(len(a) * b.shape[1])
        return products(a, b, **kwargs)

    monkeypatch.setattr(torch, "mm", mm)
    value_and_gradient(loss, queries, candidates, given_targets, rows=5)
    assert max(map(len, asked)) == 5
    passes = 2 if getattr(loss, "symmetric", False) else 1
    assert sorted(n for rows in asked for n in rows) == sorted(list(range(23)) * passes)
    assert max(largest) == 5 * 30


@every_loss
def test_a_block_may_be_worked_on_in_pieces(loss, vectors, monkeypatch):
    queries, candidates, targets = vectors(7, 11, seed=19)
    monkeypatch.setattr(CONTRAST, "PIECE", 2 * 11)
    for given_targets in (targets, known(targets)):
        made = value_and_gradient(loss, queries, candidates, given_targets, rows=5)
        assert off(made, naive(loss, queries, candidates, targets)) < 1e-12


def test_no_block_is_much_smaller_than_the_others(vectors, monkeypatch):
    monkeypatch.setattr(MODULE, "MOST", 4)
    for q, expected in ((3, [3]), (4, [4]), (5, [3, 2]), (9, [3, 3, 3]), (10, [4, 4, 2]), (13, [4, 4, 4, 1])):
        queries, candidates, targets = vectors(q, 20, seed=15)
        with monkeypatch.context() as patch:
            asked = watch(patch, targets)
            value_and_gradient(InfoNCE(0.1), queries, candidates, targets)
        assert [len(rows) for rows in asked] == expected


@pytest.mark.parametrize("loss", [InfoNCE(0.1), InfoNCE(0.1, symmetric=True), JudgeAlignment(0.1)], ids=repr)
def test_bad_rows_are_numbered_as_in_the_batch(loss, vectors):
    queries, candidates, targets = vectors(7, 9, seed=16)
    broken = queries.clone()
    broken[5, 0] = torch.nan
    with pytest.raises(UnusableRows, match=r"scores are not finite for rows 5$") as error:
        value_and_gradient(loss, broken, candidates, targets, rows=2)
    assert error.value.rows == (5,)
    targets.gold[3] = False
    with pytest.raises(UnusableRows, match=r"no gold candidate for rows 3$"):
        value_and_gradient(loss, queries, candidates, targets, rows=2)
    with pytest.raises(UnusableRows, match=r"no gold candidate for rows 3$"):
        value_and_gradient(loss, queries, candidates, known(targets), rows=2)
    targets.gold[3, 4], targets.comparable[3, 4] = True, False
    with pytest.raises(UnusableRows, match=r"gold marked as not comparable for rows 3$"):
        value_and_gradient(loss, queries, candidates, targets, rows=2)


@every_loss
def test_nothing_to_compare_in_the_whole_batch(loss, vectors):
    queries, candidates, targets = vectors(5, 8, seed=17)
    alone = Targets(targets.gold, targets.judged, targets.relevance, targets.gold)
    if isinstance(loss, JudgeAlignment):
        assert off(value_and_gradient(loss, queries, candidates, alone), naive(loss, queries, candidates, targets)) < 1e-12
        return
    with pytest.raises(NothingToCompare, match=r"rows 0, 1, 2, 3, 4$"):
        value_and_gradient(loss, queries, candidates, alone, rows=2)


def test_nothing_to_compare_once_the_rules_have_been_applied(vectors):
    queries, candidates, targets = vectors(5, 8, seed=17)
    with pytest.raises(NothingToCompare):
        value_and_gradient(InfoNCE(0.1), queries, candidates, targets, rules=FalseNegatives(student=-9.0), rows=2)


def test_a_block_with_nothing_to_compare_costs_nothing(vectors):
    queries, candidates, targets = vectors(6, 8, seed=18)
    targets.comparable[:2] = targets.gold[:2]
    for loss in (InfoNCE(0.1), InfoNCE(0.1, 9.0, True), AmplifiedInfoNCE(0.1), TopKInfoNCE(0.1), Listwise(0.1), Pairwise()):
        made = value_and_gradient(loss, queries, candidates, targets, rows=2)
        assert off(made, naive(loss, queries, candidates, targets)) < 1e-12
