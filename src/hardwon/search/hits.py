"""`Hits`: what a search found, and the same looked at once more."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from hardwon.errors import DataError
from hardwon.items import Item
from hardwon.models.scorer import ListScorer, Scorer
from hardwon.search.about import Row
from hardwon.search.rerank import rescorer
from hardwon.search.rescore import Rescorer, rescored
from hardwon.search.retrieve import check_positive


@dataclass(frozen=True)
class Hit:
    """An item that a search found.

    Attributes:
        item: the item.
        score: cosine with the query; of a hit that was reranked, the score that the reranker gave.
        rank: place in the result, from 1.
        id: position in `Index.items`; of a `StoredIndex` the id of its row.
        row: of a `StoredIndex`, as it was when it was found; else None.
    """

    item: Item
    score: float
    rank: int
    id: int | str
    row: Row | None = field(default=None, compare=False, repr=False)


class Hits(list[Hit]):
    """The hits of one query, best first.

    Attributes:
        query: what was searched for.
        pairs: (query, candidate) pairs that a reranker read for them; None if none was asked.
    """

    def __init__(self, query: Item, hits: Iterable[Hit], pairs: int | None = None):
        super().__init__(hits)
        self.query, self.pairs = query, pairs

    def rerank(self, rerank: Rescorer | Scorer | ListScorer, *, progress: str = "") -> "Hits":
        """The same hits, the first `rerank.depth` of them in the order of its scores, equal ones as they were.

        As searching with `rerank`, but only among what was found: search for at least `rerank.depth` hits. A bare reranker is
        taken as `Fused(reranker)`.

        Raises:
            DataError: hits that were reranked before, whose scores are no cosines any more.
            ModelError: scores of `rerank` that are not finite or of the wrong shape.
        """
        return reranked([self], rerank, progress=progress)[0]


def searched(
    find: Callable[[int], list[Hits]], k: int, rerank: Rescorer | Scorer | ListScorer | None, *, progress: str = ""
) -> list[Hits]:
    """The best k hits of each query, after `rerank` has read as many as it wants.

    Args:
        find: gives so many hits for each query, by their cosines.
        k: hits per query.
        rerank: see `Index.search_many`.
        progress: see `Index.search_many`.

    Raises:
        DataError: `k` or the depth is below 1.
        ModelError: scores of `rerank` that are not finite or of the wrong shape.
    """
    check_positive("k", k)
    if rerank is None:
        return find(k)
    rerank = rescorer(rerank)
    check_positive("depth of rerank", rerank.depth)
    hits = reranked(find(max(k, rerank.depth)), rerank, progress=progress)
    return [Hits(row.query, row[:k], row.pairs) for row in hits]


def reranked(found: Sequence[Hits], rerank: Rescorer | Scorer | ListScorer, *, progress: str = "") -> list[Hits]:
    """`Hits.rerank` of many queries together: what a budget is spent on, and what is read at once, is decided among them."""
    if any(hits.pairs is not None for hits in found):
        raise DataError("these hits were reranked before: search without rerank, then rerank what was found")
    queries = [hits.query for hits in found]
    scores = [np.array([hit.score for hit in hits]) for hits in found]
    new = rescored(rescorer(rerank), queries, [[hit.item for hit in hits] for hits in found], scores, progress=progress)
    return [_ordered(hits, values, pairs) for hits, values, pairs in zip(found, new.scores, new.read, strict=True)]


def _ordered(hits: Hits, scores: np.ndarray, pairs: int) -> Hits:
    """The first hits by their new scores, the others below as they were."""
    order = np.argsort(-scores, kind="stable").tolist()
    head = [replace(hits[n], score=float(scores[n]), rank=rank) for rank, n in enumerate(order, 1)]
    return Hits(hits.query, [*head, *hits[len(scores) :]], pairs)
