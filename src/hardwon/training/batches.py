"""Batches: which examples meet, and what a loss may know about them.

The order depends on seed and epoch alone: never on workers, ranks or global random state.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from hardwon.items import Candidate, Example, Item
from hardwon.losses import KnownPairs, Targets
from hardwon.randomness import generator


@dataclass(frozen=True)
class Batch:
    """Queries, the candidates they share, and what is known of each pair.

    Attributes:
        queries: one per example.
        candidates: golds and chosen negatives of all examples, each distinct item once.
        targets: [q c], as the pairs that something is known of; `targets[:]` are the matrices.
        number: how many batches came before, over all epochs.
        source: the data set that the examples are of.
    """

    queries: tuple[Item, ...]
    candidates: tuple[Item, ...]
    targets: KnownPairs
    number: int
    source: str = ""

    @property
    def encoded(self) -> int:
        """How many distinct items a step encodes."""
        return len({*self.queries, *self.candidates})

    @property
    def masked(self) -> int:
        """How many pairs are not compared, since they are known to belong together: copies of gold, and what is related."""
        return int((~self.targets.comparable).sum())


def plan_epoch(
    sources: Sequence[str], size: int, seed: int, epoch: int, groups: Sequence[int] | None = None
) -> list[list[int]]:
    """Positions of the examples of each batch: every batch from one source, sources interleaved at random.

    Single-source batches keep negatives comparable: captions meet captions, pictures meet pictures (VLM2Vec-V2 mixes blocks
    likewise). The rest of a source that does not fill a batch waits for the next epoch's shuffle.

    Args:
        sources: of the examples.
        size: examples of a batch.
        seed: of the order.
        epoch: another order for each.
        groups: numbers of groups whose members stay together; which groups meet in a batch is drawn anew for each epoch.
    """
    by_source: dict[str, list[int]] = {}
    for n, source in enumerate(sources):
        by_source.setdefault(source, []).append(n)
    batches: list[list[int]] = []
    for source, rows in sorted(by_source.items()):
        generator(seed, "order", epoch, source).shuffle(rows)
        if groups is not None:
            first: dict[int, int] = {}
            for place, n in enumerate(rows):
                first.setdefault(groups[n], place)
            rows.sort(key=lambda n: first[groups[n]])
        size_here = min(size, len(rows))
        batches += [rows[start : start + size_here] for start in range(0, len(rows) - size_here + 1, size_here)]
    generator(seed, "sources", epoch).shuffle(batches)
    return batches


def batches(
    examples: Sequence[Example],
    *,
    size: int,
    steps: int,
    negatives: int = 0,
    seed: int = 0,
    start: int = 0,
    groups: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """Endless epochs cut off after `steps` batches.

    Args:
        examples: the training set.
        size: queries per batch.
        steps: batches in all.
        negatives: of each example's own negatives (given or mined), how many join the candidates at most.
        seed: of order and draws.
        start: batches to leave out at the beginning (a resumed run).
        groups: see `plan_epoch`.
    """
    sources = [example.source for example in examples]
    number, epoch = 0, 0
    while number < steps:
        for rows in plan_epoch(sources, size, seed, epoch, groups):
            if number >= steps:
                return
            if number >= start:
                drawn = [draw(examples[n], negatives, generator(seed, "negatives", epoch, n)) for n in rows]
                yield shared(drawn, number)
            number += 1
        epoch += 1


def draw(example: Example, negatives: int, rng: random.Random) -> Example:
    """The example with all of its gold and at most `negatives` of its negatives, drawn without replacement, in order."""
    own = example.negatives
    if len(own) > negatives:
        chosen = sorted(rng.sample(range(len(own)), negatives))
        own = tuple(own[n] for n in chosen)
    golds = tuple(c for c in example.candidates if c.origin == "gold")
    return Example(example.query, (*golds, *own), example.source, example.related)


def with_strangers(
    example: Example, pool: Sequence[Item], count: int, rng: random.Random, fits: Callable[[Item], bool] = lambda item: True
) -> Example:
    """The example with up to `count` items of the pool that fit and are not known to belong to it, as given negatives."""
    known = {c.item.content for c in example.candidates} | example.related
    found: dict[str, Candidate] = {}
    for item in rng.sample(pool, min(len(pool), 2 * count)):
        if len(found) < count and item.content not in known and fits(item):
            found.setdefault(item.content, Candidate(item))
    return example.adding(found.values())


def shuffled(example: Example, rng: random.Random) -> Example:
    """The example with its candidates in any order, each as likely as any other: so gold stands in every place as often."""
    return replace(example, candidates=tuple(rng.sample(example.candidates, len(example.candidates))))


def shared(examples: Sequence[Example], number: int) -> Batch:
    """All queries against all candidates (embedders): in-batch negatives.

    Not comparable with a query: other copies of its gold, and whatever the example names as related.
    """
    place: dict[str, int] = {}
    items: list[Item] = []
    for candidate in (c for example in examples for c in example.candidates):
        if place.setdefault(candidate.item.key, len(items)) == len(items):
            items.append(candidate.item)
    copies: dict[str, list[int]] = {}
    for n, item in enumerate(items):
        copies.setdefault(item.content, []).append(n)
    found: dict[tuple[int, int], _Known] = {}
    for row, example in enumerate(examples):
        for content in sorted({g.content for g in example.gold} | example.related):
            for column in copies.get(content, ()):
                found.setdefault((row, column), _Known()).comparable = False
        for candidate in example.candidates:
            found.setdefault((row, place[candidate.item.key]), _Known()).note(candidate)
    known = _known_pairs((len(examples), len(items)), found)
    return Batch(tuple(e.query for e in examples), tuple(items), known, number, examples[0].source)


def told(batch: "Batch | ListBatch") -> bytes:
    """All that a step learns from a batch, in short: equal batches tell the same."""
    sides = (batch.queries, batch.candidates) if isinstance(batch, Batch) else tuple(zip(*batch.pairs, strict=True))
    keys = [" ".join(item.key for item in side) for side in sides]
    known = batch.targets
    tensors = [known.gold, known.judged, known.relevance, known.comparable]
    tensors += [known.rows, known.columns] if isinstance(known, KnownPairs) else []
    return "|".join([str(batch.number), *keys]).encode() + b"".join(tensor.numpy().tobytes() for tensor in tensors)


@dataclass
class _Known:
    """What is known of one pair."""

    gold: bool = False
    relevance: float | None = None
    comparable: bool = True

    def note(self, candidate: Candidate) -> None:
        self.gold |= candidate.origin == "gold"
        if candidate.relevance is not None:
            self.relevance = candidate.relevance


def _known_pairs(shape: tuple[int, int], found: dict[tuple[int, int], _Known]) -> KnownPairs:
    places = sorted(found)
    known = [found[place] for place in places]
    index = torch.tensor(places, dtype=torch.long).reshape(-1, 2)
    return KnownPairs(
        shape,
        rows=index[:, 0].contiguous(),
        columns=index[:, 1].contiguous(),
        gold=torch.tensor([k.gold for k in known], dtype=torch.bool),
        judged=torch.tensor([k.relevance is not None for k in known], dtype=torch.bool),
        relevance=torch.tensor([k.relevance or 0.0 for k in known]),
        comparable=torch.tensor([k.comparable or k.gold for k in known], dtype=torch.bool),
    )


def _note(
    candidate: Candidate, row: int, column: int, gold: torch.Tensor, judged: torch.Tensor, relevance: torch.Tensor
) -> None:
    gold[row, column] |= candidate.origin == "gold"
    if candidate.relevance is not None:
        judged[row, column] = True
        relevance[row, column] = candidate.relevance


@dataclass(frozen=True)
class ListBatch:
    """Queries with a list of their own candidates each (rerankers), padded to the longest.

    Attributes:
        pairs: (query, candidate) of every filled place, row by row.
        filled: [q k] which places hold a candidate.
        targets: [q k]; places that are not filled are not comparable.
        keys: of the queries, for messages.
        number: how many batches came before.
        source: the data set that the examples are of.
    """

    pairs: tuple[tuple[Item, Item], ...]
    filled: torch.Tensor
    targets: Targets
    keys: tuple[str, ...]
    number: int
    source: str = ""

    @property
    def encoded(self) -> int:
        """How many pairs a step scores."""
        return len(self.pairs)

    @property
    def masked(self) -> int:
        """As of a `Batch`."""
        return int((self.filled & ~self.targets.comparable).sum())

    @property
    def lists(self) -> tuple[tuple[Item, tuple[Item, ...]], ...]:
        """Each query with its candidates, in the order of the columns."""
        found, start = [], 0
        for count in self.filled.sum(dim=1).tolist():
            row = self.pairs[start : start + count]
            found.append((row[0][0], tuple(item for _, item in row)))
            start += count
        return tuple(found)


def listed(examples: Sequence[Example], number: int) -> ListBatch:
    """Every query against its own candidates only; what is not comparable is as in `shared`."""
    width = max(len(example.candidates) for example in examples)
    shape = (len(examples), width)
    filled, gold, judged = (torch.zeros(shape, dtype=torch.bool) for _ in range(3))
    relevance = torch.zeros(shape)
    pairs = []
    for row, example in enumerate(examples):
        for column, candidate in enumerate(example.candidates):
            filled[row, column] = True
            _note(candidate, row, column, gold, judged, relevance)
            pairs.append((example.query, candidate.item))
    comparable = filled.clone()
    for row, example in enumerate(examples):
        known = {g.content for g in example.gold} | example.related
        for column, candidate in enumerate(example.candidates):
            if not gold[row, column] and candidate.item.content in known:
                comparable[row, column] = False
    keys = tuple(example.query.key for example in examples)
    return ListBatch(tuple(pairs), filled, Targets(gold, judged, relevance, comparable), keys, number, examples[0].source)
