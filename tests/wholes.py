"""Losses over the whole matrix: what working in blocks is held against."""

import pytest
import torch
import torch.nn.functional as F

from hardwon.losses import (
    AmplifiedInfoNCE,
    InfoNCE,
    JudgeAlignment,
    KnownPairs,
    Listwise,
    Pairwise,
    TopKInfoNCE,
)

LOSSES = [
    *(InfoNCE(0.05), InfoNCE(0.05, 9.0), InfoNCE(0.05, symmetric=True), InfoNCE(0.05, 9.0, True)),
    *(AmplifiedInfoNCE(0.05, kind) for kind in ("amplify", "hinge", "redistribute", "colder")),
    *(AmplifiedInfoNCE(0.05, cap=True), TopKInfoNCE(0.05, 3), JudgeAlignment(0.1), Pairwise(5.0), Listwise(0.2)),
    JudgeAlignment(0.1) + 0.5 * InfoNCE(0.05, 9.0),
    InfoNCE(0.05, 2.0, True) + 0.3 * InfoNCE(0.1, symmetric=True) + 2.0 * TopKInfoNCE(0.05, 2),
    AmplifiedInfoNCE(0.05) + Listwise(0.2) + 0.1 * Pairwise(5.0),
]
every_loss = pytest.mark.parametrize("loss", LOSSES, ids=repr)


def naive(loss, queries, candidates, targets):
    """Value and gradients with the whole matrix and autograd, in the precision of the vectors."""
    pair = [x.detach().clone().requires_grad_() for x in (queries, candidates)]
    value = loss(pair[0] @ pair[1].T, targets)
    return value.detach(), *torch.autograd.grad(value, pair)


def off(made, expected):
    """The largest difference, relative to the largest number."""
    return max(
        float((m.double() - e.double()).abs().max() / e.double().abs().max()) for m, e in zip(made, expected, strict=True)
    )


def known(targets):
    """The same targets by pairs: those of which something is known."""
    said = targets.gold | targets.judged | ~targets.comparable
    rows, columns = said.nonzero(as_tuple=True)
    four = (m[rows, columns] for m in (targets.gold, targets.judged, targets.relevance, targets.comparable))
    return KnownPairs(tuple(targets.gold.shape), rows, columns, *four)


def similar(candidates, targets):
    """Largest cosine of each candidate with a gold one of the query."""
    cosines = candidates @ candidates.T
    return torch.stack([cosines[gold].amax(dim=0) for gold in targets.gold])


def close_vectors(vectors, seed):
    """Queries near their gold, candidates that are near copies of others, and targets of one or two golds."""
    queries, candidates, targets = vectors(6, 12, seed=seed, d=5)
    rng = torch.Generator().manual_seed(seed)
    candidates[6:] = F.normalize(candidates[:6] + 0.15 * torch.randn(6, 5, generator=rng, dtype=torch.float64), dim=1)
    queries = F.normalize(candidates[:6] + 0.5 * torch.randn(6, 5, generator=rng, dtype=torch.float64), dim=1)
    return queries, candidates, targets


def squared_error(scores, targets):
    """Not of this package: nothing is known about how its rows hang together."""
    return ((scores - targets.gold.to(scores.dtype)) ** 2).sum().sqrt()
