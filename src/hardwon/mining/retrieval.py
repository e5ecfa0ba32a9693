"""What the embedder finds for each query in the whole pool, without anything that may belong to it."""

from collections.abc import Sequence

import numpy as np

from hardwon.items import Example, Item
from hardwon.mining.choose import Found, looked_at
from hardwon.mining.settings import Mining
from hardwon.models import Encoder
from hardwon.randomness import generator
from hardwon.search import retrieve


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


def retrieve_all(examples: Sequence[Example], rows: Sequence[int], embedder: Encoder, settings: Mining) -> list[Found]:
    """The most similar candidates of the pool for each of the rows; each distinct item is embedded once."""
    by_source = pools(examples, settings)
    queries = embedder.encode([examples[n].query for n in rows], progress="embedding queries")
    everything = {key: item for pool in by_source.values() for key, item in pool.items()}
    vectors = embedder.encode(list(everything.values()), progress="embedding candidates")
    places = {key: n for n, key in enumerate(everything)}
    found: dict[int, Found] = {}
    for source, pool in by_source.items():
        members = [n for n, row in enumerate(rows) if not settings.within_source or examples[row].source == source]
        if members:
            items = list(pool.values())
            corpus = vectors[[places[key] for key in pool]] if len(by_source) > 1 else vectors
            holding = _holding(items)
            exclude = [[n for c in _own(examples[rows[m]]) for n in holding.get(c, ())] for m in members]
            hits = retrieve(queries[members], corpus, settings.depth, exclude=exclude)
            for n, ids, scores in zip(members, hits.ids, hits.scores, strict=True):
                hit = [
                    (items[i], s, rank) for rank, (i, s) in enumerate(zip(ids.tolist(), scores.tolist(), strict=True)) if i >= 0
                ]
                gold = vectors[places[examples[rows[n]].gold[0].key]]
                found[n] = looked_at(rows[n], hit, _cosine(queries[n], gold), settings)
    return [found[n] for n in range(len(rows))]


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
