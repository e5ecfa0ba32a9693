"""What the embedder finds for each query in its pool, without anything that may belong to it.

What was found is kept (see `retrieved`). Whether it is known is decided by keys alone, so then no vector is made or looked at.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hardwon.artifacts import checksum_of
from hardwon.items import Example, Item
from hardwon.mining import retrieved
from hardwon.mining.choose import Found, Hit, looked_at
from hardwon.mining.copies import Copies
from hardwon.mining.retrieved import Hits
from hardwon.mining.settings import Mining
from hardwon.models import CachedEncoder, Encoder
from hardwon.randomness import generator
from hardwon.search.retrieve import Found as Nearest
from hardwon.search.retrieve import checked, nearest_below
from hardwon.spread.models import SpreadEncoder
from hardwon.spread.search import Asked, nearest_of

BLOCK = 1024  # queries searched between two writes


def rows_to_mine(examples: Sequence[Example], settings: Mining) -> list[int]:
    """Rows to mine for: the same share of every source."""
    rows = list(range(len(examples)))
    if settings.queries is None or settings.queries >= len(rows):
        return rows
    groups: dict[str, list[int]] = {}
    for n in rows:
        groups.setdefault(examples[n].source, []).append(n)
    chosen: list[int] = []
    for source, group in sorted(groups.items()):
        share = round(settings.queries * len(group) / len(rows))
        chosen += generator(settings.seed, "mine", source).sample(group, min(max(share, 1), len(group)))
    return sorted(chosen)


def pools(examples: Sequence[Example], settings: Mining) -> dict[str, dict[str, Item]]:
    """The candidates that may be retrieved, by source (by "" if sources are not kept apart) and key."""
    made: dict[str, dict[str, Item]] = {}
    for example in examples:
        pool = made.setdefault(example.source if settings.within_source else "", {})
        pool.update((c.item.key, c.item) for c in example.candidates)
    return made


def retrieve_all(
    examples: Sequence[Example],
    rows: Sequence[int],
    embedder: Encoder,
    settings: Mining,
    store: Path | None = None,
) -> list[Found]:
    """The most similar candidates of the pool for each of the rows; each distinct item is embedded once.

    With a store, what was found before is not searched for again, and an interrupted search goes on at the next block.
    """
    by_source = pools(examples, settings)
    blocks = _blocks(examples, rows, by_source, settings)
    search = _Search(blocks, by_source, [examples[row] for row in rows], embedder, settings)
    inputs = _inputs(blocks, by_source, search, settings)
    found: dict[int, Found] = {}
    for block, hits in zip(
        blocks, retrieved.through(store, inputs, [len(block.places) for block in blocks], search), strict=True
    ):
        pool = by_source[block.pool]
        of_each = zip(block.places, hits.gold_similarity, hits.candidates, hits.similarities, hits.apart, strict=True)
        for n, gold, keys, *numbers in of_each:
            listed = enumerate(zip((pool[key] for key in keys), *numbers, strict=True))
            hit = [Hit(item, score, rank, apart) for rank, (item, score, apart) in listed]
            found[n] = looked_at(rows[n], hit, gold, settings)
    return [found[n] for n in range(len(rows))]


@dataclass(frozen=True)
class _Block:
    """Queries that are searched for together, in one pool.

    Attributes:
        pool: its name.
        places: places among the rows to mine for.
        barred: for each, positions in the pool that it must not get.
    """

    pool: str
    places: list[int]
    barred: list[list[int]]


def _blocks(
    examples: Sequence[Example], rows: Sequence[int], by_source: Mapping[str, Mapping[str, Item]], settings: Mining
) -> list[_Block]:
    made = []
    for source, pool in by_source.items():
        members = [n for n, row in enumerate(rows) if not settings.within_source or examples[row].source == source]
        holding = _holding(list(pool.values())) if members else {}
        for start in range(0, len(members), BLOCK):
            part = members[start : start + BLOCK]
            barred = [[n for c in sorted(_own(examples[rows[m]])) for n in holding.get(c, ())] for m in part]
            made.append(_Block(source, part, barred))
    return made


class _Search:
    """Finds the hits of one block after the other, once everything is embedded."""

    def __init__(
        self,
        blocks: Sequence[_Block],
        by_source: Mapping[str, Mapping[str, Item]],
        asked: Sequence[Example],
        embedder: Encoder,
        settings: Mining,
    ):
        self.blocks, self.by_source, self.embedder = blocks, by_source, embedder
        self.depth, self.ceiling = settings.depth, settings.ceiling
        self.asked, self.copies = asked, None if settings.copies is None else Copies()
        self.queries, self.golds = [e.query.key for e in asked], [e.gold[0].key for e in asked]
        self._corpus: tuple[str, np.ndarray] | None = None
        own = embedder.encoder if isinstance(embedder, CachedEncoder) else embedder
        self.spread = own if isinstance(own, SpreadEncoder) else None  # whose workers search, too

    def prepare(self) -> None:
        """Embed queries and candidates."""
        everything = {key: item for pool in self.by_source.values() for key, item in pool.items()}
        # At once, so that whatever cannot be read is named together.
        items = [*(e.query for e in self.asked), *everything.values()]
        vectors = self.embedder.encode(items, progress="embedding queries and candidates")
        count = len(self.asked)
        self._vectors = vectors[:count], vectors[count:], {key: n for n, key in enumerate(everything)}

    def __call__(self, number: int) -> Hits:
        block = self.blocks[number]
        queries = self._vectors[0]
        if self._corpus is None or self._corpus[0] != block.pool:
            self._corpus = block.pool, self._pool(block.pool)
        asked = checked(queries[block.places], self._corpus[1][:0])[0]
        return self._hits(block, nearest_below(asked, self._corpus[1], self.depth, self.ceiling, exclude=block.barred))

    def each(self, numbers: Sequence[int]) -> Iterator[Hits]:
        """As `Search.each`; by several workers, if there are any."""
        if self.spread is None or not numbers:
            yield from map(self, numbers)
            return
        spread = self.spread
        blocks = [self.blocks[n] for n in numbers]
        pools = {name: self._pool(name) for name in dict.fromkeys(block.pool for block in blocks)}
        asked = checked(self._vectors[0], self._vectors[1][:0])[0]
        wanted = [Asked(block.pool, block.places, block.barred) for block in blocks]
        found = nearest_of(
            asked,
            pools,
            blocks=wanted,
            depth=self.depth,
            workers=spread.workers,
            below=spread.below,
            ceiling=self.ceiling,
        )
        for block, hits in zip(blocks, found, strict=True):
            yield self._hits(block, hits)

    def _pool(self, name: str) -> np.ndarray:
        """Vectors of a pool."""
        queries, vectors, places = self._vectors
        own = vectors[[places[key] for key in self.by_source[name]]] if len(self.by_source) > 1 else vectors
        return checked(queries[:0], own)[1]

    def _hits(self, block: _Block, hits: Nearest) -> Hits:
        queries, vectors, places = self._vectors
        pool = self.by_source[block.pool]
        keys = list(pool)
        there = [ids[ids >= 0].tolist() for ids in hits.ids]
        found = [[keys[i] for i in ids] for ids in there]
        return Hits(
            [self.queries[n] for n in block.places],
            [_cosine(queries[n], vectors[places[self.golds[n]]]) for n in block.places],
            found,
            [scores[: len(ids)].tolist() for ids, scores in zip(there, hits.scores, strict=True)],
            self._apart(block.places, [[pool[key] for key in those] for those in found]),
        )

    def _apart(self, places: Sequence[int], found: Sequence[Sequence[Item]]) -> list[list[float | None]]:
        """How far what was found is from being copies of the positives."""
        if self.copies is None:
            return [[None] * len(items) for items in found]
        return self.copies.apart([(self.asked[n].gold, items) for n, items in zip(places, found, strict=True)])


def _inputs(
    blocks: Sequence[_Block], by_source: Mapping[str, Mapping[str, Item]], search: _Search, settings: Mining
) -> dict[str, Any]:
    """All that hits depend on: model, settings, and by their keys and in their order queries and pools."""
    asked = [[b.pool, [[search.queries[n], search.golds[n]] for n in b.places], b.barred] for b in blocks]
    told = {"depth": settings.depth, "within_source": settings.within_source, "copies": settings.copies is not None}
    return {
        "embedder": search.embedder.fingerprint,
        # Without a ceiling nothing is said of it: what was kept before there was one in the search stays of use.
        "settings": told if settings.ceiling is None else told | {"ceiling": settings.ceiling},
        "queries": {"count": len(search.queries), "fingerprint": _digest(asked)},
        "pool": {
            "count": len({key for pool in by_source.values() for key in pool}),
            "fingerprint": _digest({name: list(pool) for name, pool in by_source.items()}),
        },
    }


def _digest(value: Any) -> str:
    """As `artifacts.fingerprint`, for plain values of any size; the order of keys plays a part."""
    return checksum_of(json.dumps(value).encode())[:32]


def _holding(items: Sequence[Item]) -> dict[str, list[int]]:
    """Positions in the pool by content."""
    places: dict[str, list[int]] = {}
    for n, item in enumerate(items):
        places.setdefault(item.content, []).append(n)
    return places


def _own(example: Example) -> set[str]:
    """What may belong to the query, by content: copies of its gold, related items, and the query itself."""
    own = {g.content for g in example.gold} | example.related | {example.query.content}
    # With the bare picture that a composed query starts from.
    return own | ({example.query.wordless.content} if example.query.wordless else set())


def barred(example: Example, contents: Sequence[str]) -> list[int]:
    """Positions in a pool of such contents that may belong to the query, and are never retrieved for it."""
    own = _own(example)
    return [n for n, content in enumerate(contents) if content in own]


def _cosine(query: np.ndarray, other: np.ndarray) -> float:
    """As `retrieve` scores a pair: summed in float64, rounded to float32."""
    return float(np.float32((query.astype(np.float64) * other.astype(np.float64)).sum()))
