"""What fewer numbers of vectors, or numbers of 16 bits, cost: measured while an index is written, against whole vectors.

An index that keeps 128 of 384 numbers has not got the others any more, so what they would have found has to be found out while
they go by. The first vectors ask, each of all the others; of these nothing is held but the best so far, by whole vectors and by
what is kept of them. So memory is bounded, whatever the number of items.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32

from hardwon import metrics
from hardwon.metrics import Interval
from hardwon.search.compressed import MOST_QUERIES, SEED
from hardwon.search.stores.base import Space

_TIE = 1e-6  # what is so near to the k-th in whole vectors counts as found


@dataclass(frozen=True)
class Narrowed:
    """What the numbers that are kept find of what whole vectors find.

    Attributes:
        space: what is kept.
        value: share of the best k that an exact search over what is kept finds, with its 95 % interval over queries.
        asked: items that searched, for others than themselves.
        among: items that were searched, those that asked among them.
        k: results that were looked at.
    """

    space: Space
    value: Interval
    asked: int
    among: int
    k: int

    def __str__(self) -> str:
        kept, whole = self.space.dim, self.space.width
        numbers = f"{kept} of {whole} numbers" if kept < whole else f"{whole} numbers"
        return (
            f"{numbers} in {self.space.dtype} find {self.value.mean:.3f} [{self.value.low:.3f}, {self.value.high:.3f}] of the "
            f"best {self.k} of whole vectors ({whole} in float32); {self.asked:,} items asked, among {self.among:,}"
        )


class Narrowing:
    """Measures it, from whole vectors as they come.

    Args:
        space: what is kept.
        k: results that are looked at.
        most: how many ask: the first that come, so they should be a random sample.
    """

    def __init__(self, space: Space, k: int = 10, most: int = MOST_QUERIES):
        self.space, self.k, self.most, self.among = space, k, most, 0
        self._first: list[np.ndarray] = []  # until there are as many as are to ask
        self._whole = self._kept = np.zeros((0, 0), dtype=np.float32)  # of those that ask

    def add(self, vectors: Float32[np.ndarray, "n width"]) -> None:
        """Look through more whole vectors, of items that were not there before.

        Raises:
            ModelError: as `Space.cut`.
        """
        self.among += len(vectors)
        if len(self._whole):
            self._look(vectors)
        else:
            self._first.append(vectors.copy())
            if self.among >= self.most:
                self._begin()

    def result(self) -> Narrowed | None:
        """What came out; None of fewer than two items."""
        if self.among < 2:
            return None
        if not len(self._whole):
            self._begin()
        k = min(self.k, self.among - 1)
        last = -np.sort(-self._best, axis=1)[:, k - 1 : k]
        order = np.argsort(-self._found, axis=1)[:, :k]
        shares = (np.take_along_axis(self._true, order, axis=1) >= last - _TIE).mean(axis=1)
        value = metrics.interval(torch.from_numpy(shares), seed=SEED)
        return Narrowed(self.space, value, len(self._whole), self.among, k)

    def _begin(self) -> None:
        first = np.concatenate(self._first)
        self._first.clear()
        self._whole = first[: self.most]
        self._kept = self.space.cut(self._whole)
        nothing = np.full((len(self._whole), self.k), -np.inf, dtype=np.float32)
        # The best by whole vectors; those by what is kept, and what they are by whole vectors.
        self._best, self._found, self._true = nothing, nothing, nothing
        self._look(first, themselves=True)

    def _look(self, vectors: np.ndarray, *, themselves: bool = False) -> None:
        kept = self.space.cut(vectors).astype(self.space.dtype).astype(np.float32)
        whole, found = self._whole @ vectors.T, self._kept @ kept.T
        if themselves:  # who asks is not looked for
            np.fill_diagonal(whole, -np.inf)
            np.fill_diagonal(found, -np.inf)
        best = np.concatenate([self._best, whole], axis=1)
        self._best = -np.partition(-best, self.k - 1, axis=1)[:, : self.k]
        found, true = np.concatenate([self._found, found], axis=1), np.concatenate([self._true, whole], axis=1)
        order = np.argpartition(-found, self.k - 1, axis=1)[:, : self.k]
        self._found, self._true = (np.take_along_axis(each, order, axis=1) for each in (found, true))
