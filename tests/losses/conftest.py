"""Random problems for losses. hardwon is imported inside functions: the shape checks install themselves before it."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F


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


def make_vectors(q, c, seed=0, dtype=torch.float64, d=6):
    """Unit vectors of queries and candidates, and targets for them; c >= q."""
    rng = torch.Generator().manual_seed(seed)
    queries, candidates = (F.normalize(torch.randn(n, d, generator=rng, dtype=torch.float64), dim=1) for n in (q, c))
    return queries.to(dtype), candidates.to(dtype), make_problem(q, c, seed, dtype)[1]


def map_targets(change, targets):
    """The same change on all four matrices."""
    from hardwon.losses import Targets

    return Targets(*(change(matrix) for matrix in (targets.gold, targets.judged, targets.relevance, targets.comparable)))


class Threads:
    """Processes as threads of this one: they meet at a barrier, and each sees what all have put on the table."""

    def __init__(self, size):
        self.barrier, self.table = threading.Barrier(size, timeout=60), [None] * size

    def run(self, work):
        """`work(rank, ranks)` on every rank at once; the results by rank."""

        def one(rank):
            try:
                return work(rank, Rank(self, rank))
            except BaseException:
                self.barrier.abort()  # nobody waits for one that has failed
                raise

        with ThreadPoolExecutor(len(self.table)) as pool:
            made = [pool.submit(one, rank) for rank in range(len(self.table))]
        failed = [future.exception() for future in made if future.exception()]
        for error in sorted(failed, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
            raise error  # the one that the others were waiting for
        return [future.result() for future in made]


class Rank:
    def __init__(self, threads, rank):
        self.threads, self.rank = threads, rank

    def all_of(self, tensor):
        self.threads.table[self.rank] = tensor.clone()
        self.threads.barrier.wait()
        seen = torch.stack(self.threads.table)
        self.threads.barrier.wait()  # nobody writes before all have read
        return seen

    def sum(self, tensor):
        return self.all_of(tensor).sum(dim=0)

    def largest(self, tensor):
        return self.all_of(tensor).amax(dim=0)


@pytest.fixture(scope="session")  # for property tests, which know no shorter one
def problem():
    return make_problem


@pytest.fixture
def vectors():
    return make_vectors


@pytest.fixture
def together():
    """`together(size, work)`: what `work(rank, ranks)` gives on every rank."""
    return lambda size, work: Threads(size).run(work)


@pytest.fixture
def mapped():
    return map_targets


@pytest.fixture
def square():
    """The 4 x 4 scores of the papers' golden values (float64, gold on the diagonal), and their targets."""
    from hardwon.losses import Targets

    rows = [[0.70, 0.66, 0.40, 0.10], [0.62, 0.65, 0.63, 0.30], [0.20, 0.55, 0.80, 0.79], [0.05, 0.30, 0.71, 0.60]]
    return torch.tensor(rows, dtype=torch.float64), Targets.of_gold(torch.eye(4, dtype=torch.bool))
