"""A reranker that several processes read with as one, so that all of them spend the same budget."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hardwon.distributed import World
from hardwon.models.scorer import Pair, Scorer


@dataclass(frozen=True)
class Shared:
    """Each process reads its part of the pairs that it is asked about, and learns what the others read.

    All must ask for the same pairs in the same order. So whoever decides by the answers decides alike everywhere.

    Attributes:
        inner: this process's copy of the reranker.
        world: the processes.
    """

    inner: Scorer
    world: World

    @property
    def fingerprint(self) -> str:
        """Of the reranker."""
        return self.inner.fingerprint

    def score_pairs(self, pairs: Sequence[Pair], *, progress: str = "") -> np.ndarray:
        """As the reranker."""
        part, made = self.world.rows(len(pairs)), np.zeros(len(pairs), dtype=np.float32)
        with self.world.all_or_none("reranking"):
            if pairs[part]:
                made[part] = self.inner.score_pairs(pairs[part], progress=progress)
        return self.world.sum(torch.from_numpy(made).to(self.world.device)).cpu().numpy()
