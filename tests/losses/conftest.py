"""Random problems for losses. hardwon is imported inside functions: the shape checks install themselves before it."""

import pytest
import torch


def make_problem(q, c, seed=0, dtype=torch.float64):
    """Scores [q c] like cosines, and targets with several golds, judged candidates and hidden ones; c >= q."""
    from hardwon.losses import Targets

    rng = torch.Generator().manual_seed(seed)
    scores = (torch.rand(q, c, generator=rng, dtype=torch.float64) - 0.3).to(dtype)
    gold = torch.eye(q, c, dtype=torch.bool) | (torch.rand(q, c, generator=rng) < 0.1)
    judged = torch.rand(q, c, generator=rng) < 0.6
    comparable = gold | (torch.rand(q, c, generator=rng) < 0.8)
    grades = torch.rand(q, c, generator=rng, dtype=torch.float64)
    return scores, Targets(gold, judged, grades if dtype == torch.float64 else grades.float(), comparable)


def map_targets(change, targets):
    """The same change on all four matrices."""
    from hardwon.losses import Targets

    return Targets(*(change(matrix) for matrix in (targets.gold, targets.judged, targets.relevance, targets.comparable)))


@pytest.fixture
def problem():
    return make_problem


@pytest.fixture
def mapped():
    return map_targets


@pytest.fixture
def square():
    """The 4 x 4 scores of the papers' golden values (float64, gold on the diagonal), and their targets."""
    from hardwon.losses import Targets

    rows = [[0.70, 0.66, 0.40, 0.10], [0.62, 0.65, 0.63, 0.30], [0.20, 0.55, 0.80, 0.79], [0.05, 0.30, 0.71, 0.60]]
    return torch.tensor(rows, dtype=torch.float64), Targets.of_gold(torch.eye(4, dtype=torch.bool))
