"""The gradient in blocks on several processes, and of columns as well as rows."""

import importlib

import pytest
import torch
from wholes import LOSSES, close_vectors, every_loss, known, naive, off, similar, squared_error

from hardwon.losses import FalseNegatives, InfoNCE, JudgeAlignment, value_and_gradient
from hardwon.losses.targets import NothingToCompare

REVERSE = importlib.import_module("hardwon.losses.reverse")


@every_loss
def test_two_ranks_are_one(loss, vectors, together):
    """Unequal shares, blocks of their own, near copies that a rule takes out, no gold on the last columns."""
    queries, candidates, targets = close_vectors(vectors, 7)
    rules, parts = FalseNegatives(student=0.2, copies=0.98), (slice(0, 4), slice(4, 6))
    truth = naive(loss, queries, candidates, rules(queries @ candidates.T, targets, similar(candidates, targets)))

    def work(rank, ranks):
        mine = queries[parts[rank]]
        return value_and_gradient(loss, mine, candidates, targets[parts[rank]], rules=rules, rows=3, ranks=ranks)

    made = together(2, work)
    assert [float(m.value) for m in made] == pytest.approx([float(truth[0])] * 2, rel=1e-12)
    whole = (truth[0], torch.cat([m.queries for m in made]), made[0].candidates + made[1].candidates)
    assert off(whole, truth) < 1e-12


SYMMETRIC = [loss for loss in LOSSES if "symmetric=True" in repr(loss)]


@pytest.mark.parametrize("loss", SYMMETRIC, ids=repr)
def test_columns_are_summed_with_their_maxima_as_without(loss, vectors, together, monkeypatch):
    """The way for logits that leave no room for one exponential."""
    monkeypatch.setattr(REVERSE, "WINDOW", 0.0)
    monkeypatch.setattr(REVERSE.Windowed, "closed", None)
    queries, candidates, targets = vectors(7, 11, seed=20)
    truth, parts = naive(loss, queries, candidates, targets), (slice(0, 5), slice(5, 7))
    for given_targets in (targets, known(targets)):
        for rows in (2, None):
            assert off(value_and_gradient(loss, queries, candidates, given_targets, rows=rows), truth) < 1e-12

    def work(rank, ranks):
        return value_and_gradient(loss, queries[parts[rank]], candidates, targets[parts[rank]], rows=3, ranks=ranks)

    made = together(2, work)
    whole = (made[0].value, torch.cat([m.queries for m in made]), made[0].candidates + made[1].candidates)
    assert off(whole, truth) < 1e-12


@pytest.mark.parametrize("temperature", [0.05, 0.015, 0.0142, 0.0138, 0.005])  # logits up to 71 go without maxima
@pytest.mark.parametrize("far", [1.0, 3.0, 0.2])
def test_no_logit_leaves_the_exponents_of_single_precision(temperature, far, vectors):
    """Also where every cosine is -1, of which the exponential is the smallest."""
    queries, candidates, targets = vectors(24, 40, seed=21, dtype=torch.float32, d=16)
    queries[:3], candidates[:] = -candidates[:1], torch.cat([candidates[:1].expand(20, 16), candidates[20:]])
    queries, loss = queries * far, InfoNCE(temperature, symmetric=True)
    made = value_and_gradient(loss, queries, candidates, targets)
    truth = naive(loss, queries.double(), candidates.double(), targets)
    assert off(made, truth) < 5e-5


@pytest.mark.parametrize("loss", [InfoNCE(0.05), InfoNCE(0.05, 9.0, True), JudgeAlignment(0.1)], ids=repr)
def test_a_rank_may_be_without_queries(loss, vectors, together):
    queries, candidates, targets = vectors(3, 6, seed=8)
    parts = (slice(0, 3), slice(3, 3))

    def work(rank, ranks):
        return value_and_gradient(loss, queries[parts[rank]], candidates, targets[parts[rank]], ranks=ranks)

    made, truth = together(2, work), naive(loss, queries, candidates, targets)
    assert off((made[1].value, made[0].queries, made[0].candidates), truth) < 1e-12
    assert not made[1].candidates.any()


def test_a_rank_on_which_nothing_can_be_compared_is_fine(vectors, together):
    queries, candidates, targets = vectors(4, 6, seed=9)
    targets.comparable[2:] = targets.gold[2:]
    parts = (slice(0, 2), slice(2, 4))

    def work(rank, ranks):
        return value_and_gradient(InfoNCE(0.1), queries[parts[rank]], candidates, targets[parts[rank]], ranks=ranks)

    made = together(2, work)
    truth = naive(InfoNCE(0.1), queries, candidates, targets)
    assert off((made[0].value, made[0].queries, made[0].candidates), (truth[0], truth[1][:2], truth[2])) < 1e-12
    assert not made[1].queries.any()


def test_ranks_that_have_nothing_to_compare_all_say_so(vectors, together):
    queries, candidates, targets = vectors(4, 6, seed=9)
    targets.comparable[:] = targets.gold
    said = []

    def work(rank, ranks):
        with pytest.raises(NothingToCompare):
            value_and_gradient(InfoNCE(0.1), queries[:2], candidates, targets[:2], ranks=ranks)
        said.append(rank)

    together(2, work)
    assert sorted(said) == [0, 1]


def test_any_function_is_refused_on_several_processes(vectors, together):
    queries, candidates, targets = vectors(4, 8, seed=13)
    message = r"on several processes a loss must be one of hardwon.losses or a sum of them, got .*squared_error"

    def work(rank, ranks):
        with pytest.raises(ValueError, match=message):
            value_and_gradient(squared_error, queries[:2], candidates, targets[:2], ranks=ranks)

    together(2, work)
