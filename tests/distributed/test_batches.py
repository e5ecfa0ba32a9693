"""What no query may be compared with: copies of its positives, what is related to it, and what a judge says belongs to it.

The batch is the same in every process, so that this holds across processes: each takes a share of its rows.
"""

import itertools
import random

import faulting
import pytest
import torch
from trials import trials

from hardwon.distributed import World
from hardwon.losses import FalseNegatives
from hardwon.training.batches import batches, plan_epoch

EACH = 50  # batches of one set of examples


def told(examples, seed, groups=None):
    return batches(examples, size=12, steps=EACH, negatives=2, seed=seed, groups=groups)


@pytest.mark.parametrize("grouped", [False, True])
def test_copies_of_positives_are_never_negatives(grouped):
    masked = 0
    for n in range(trials(2)):
        draw = random.Random(f"{n} {grouped}")
        examples = faulting.planted(90, draw)
        known = {e.query.key: {g.content for g in e.gold} | e.related for e in examples}
        groups = [draw.randrange(20) for _ in examples] if grouped else None
        for batch in told(examples, n, groups):
            targets = batch.targets[:]
            contents = [item.content for item in batch.candidates]
            right = torch.tensor([[content in known[query.key] for content in contents] for query in batch.queries])
            assert not bool((targets.comparable & right & ~targets.gold).any())
            assert bool((targets.comparable | right).all())  # and nothing else is left out
            assert batch.masked == int((right & ~targets.gold).sum())
            masked += batch.masked
            for size in (2, 4):  # each process sees its rows of the same matrix
                shares = [batch.targets.some(World(rank, size).rows(len(batch.queries)))[:] for rank in range(size)]
                assert torch.equal(torch.cat([share.comparable for share in shares]), targets.comparable)
            judged = FalseNegatives(judge=0.95)(torch.zeros(targets.gold.shape), targets)
            assert not bool((judged.comparable & targets.judged & ~targets.gold).any())  # grades 1 and 0.1
    assert masked > 10 * trials(2)


@pytest.mark.parametrize("grouped", [False, True])
def test_every_batch_is_of_one_source_and_groups_stay_together(grouped):
    draw = random.Random(0)
    sources = [f"source {draw.randrange(3)}" for _ in range(200)]
    groups = [hash((source, n // 8)) for n, source in enumerate(sources)] if grouped else None
    for epoch in range(3):
        plan = plan_epoch(sources, 16, 7, epoch, groups)
        assert all(len({sources[n] for n in rows}) == 1 for rows in plan)
        assert plan == plan_epoch(sources, 16, 7, epoch, groups)
        taken = list(itertools.chain.from_iterable(plan))
        assert len(taken) == len(set(taken))
        changes = sum(sources[a[0]] != sources[b[0]] for a, b in itertools.pairwise(plan))
        assert changes > 2  # interleaved, not one source after the other
