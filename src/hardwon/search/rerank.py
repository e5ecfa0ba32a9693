"""Fusion of an embedder's and a reranker's scores."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hardwon.items import Item
from hardwon.models import Scorer


@dataclass(frozen=True)
class Fused:
    """Reorders the first `depth` candidates of a query by cosine + weight x log-odds.

    Attributes:
        reranker: gives log-odds.
        depth: how many candidates it reads per query.
        weight: of the log-odds; 0 leaves the embedder's order alone.
    """

    reranker: Scorer
    depth: int = 10
    weight: float = 0.05

    def rescore(
        self, queries: Sequence[Item], items: Sequence[Sequence[Item]], scores: np.ndarray, *, progress: str = ""
    ) -> np.ndarray:
        """Scores that decide the order among the given candidates only.

        Args:
            queries: q of them.
            items: for each query its candidates, best first; `scores.shape[1]` each.
            scores: cosines of the embedder, [q k].
            progress: name of the work in a bar.
        """
        pairs = [(query, item) for query, row in zip(queries, items, strict=True) for item in row]
        odds = self.reranker.score_pairs(pairs, progress=progress)
        return scores + self.weight * odds.reshape(scores.shape)
