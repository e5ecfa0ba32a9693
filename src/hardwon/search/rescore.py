"""The one way to look at candidates once more: searching, evaluating and `hits.rerank` all go through `rescored`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float

from hardwon.errors import DataError, ModelError
from hardwon.items import Item


@runtime_checkable
class Rescorer(Protocol):
    """Looks at the best candidates once more."""

    @property
    def depth(self) -> int:
        """How many candidates of each query it is given."""
        ...

    def rescore(
        self, queries: Sequence[Item], items: Sequence[Sequence[Item]], scores: Float[np.ndarray, "q k"], *, progress: str
    ) -> Float[np.ndarray, "q k"]:
        """New scores, higher is better, for `items[i]` given to query i, best first, with the scores they have so far."""
        ...


@dataclass(frozen=True)
class Reading:
    """New scores, and which candidates were read for them.

    Attributes:
        scores: of each candidate, higher is better.
        read: whether its pair was read; the others were left out to save time, or because their query was left alone.
    """

    scores: Float[np.ndarray, "q k"]
    read: Bool[np.ndarray, "q k"]


@runtime_checkable
class Reader(Rescorer, Protocol):
    """A rescorer that does not read everything, and says what it read."""

    def reread(
        self, queries: Sequence[Item], items: Sequence[Sequence[Item]], scores: Float[np.ndarray, "q k"], *, progress: str
    ) -> Reading:
        """As `rescore`, for lists that may differ in length: scores are -inf beyond the end of a shorter one."""
        ...


@dataclass(frozen=True)
class Rescored:
    """What came out of looking once more.

    Attributes:
        scores: for each query, the new scores of its first `depth` candidates.
        read: how many of them were read.
    """

    scores: tuple[Float[np.ndarray, " _"], ...]
    read: tuple[int, ...]

    @property
    def pairs(self) -> int:
        """How many (query, candidate) pairs were read in all."""
        return sum(self.read)

    @property
    def queries(self) -> int:
        """How many queries had at least one candidate read."""
        return sum(count > 0 for count in self.read)


def rescored(
    rerank: Rescorer,
    queries: Sequence[Item],
    items: Sequence[Sequence[Item]],
    scores: Sequence[Float[np.ndarray, " _"]],
    *,
    progress: str = "",
    where: str = "",
) -> Rescored:
    """Have the first `rerank.depth` candidates of each query scored again, and check what comes back.

    Queries with fewer candidates are handed over separately, so that every array a rescorer sees is full. Only a `Reader` is
    shown all at once: it may have something to share out among them.

    Args:
        rerank: gives the scores.
        queries: what was asked.
        items: for each query its candidates, best first.
        scores: for each query the scores that its candidates have so far.
        progress: name of the work in progress bars; "" shows none.
        where: put before the message of an error.

    Raises:
        DataError: a depth below 1.
        ModelError: scores that are not finite or of the wrong shape.
    """
    if rerank.depth < 1:
        raise DataError(f"{where}depth of rerank must be at least 1, got {rerank.depth}")
    made: list[np.ndarray] = [np.zeros(0)] * len(queries)
    read = [0] * len(queries)
    counts = [min(len(candidates), rerank.depth) for candidates in items]
    together: dict[int, list[int]] = {}
    for row, count in enumerate(counts):
        if count:
            together.setdefault(0 if isinstance(rerank, Reader) else count, []).append(row)
    for _, rows in sorted(together.items(), reverse=True):
        theirs, offered = [queries[row] for row in rows], [items[row][: counts[row]] for row in rows]
        before = np.full((len(rows), max(map(len, offered))), -np.inf, dtype=scores[rows[0]].dtype)
        for line, row in enumerate(rows):
            before[line, : counts[row]] = scores[row][: counts[row]]
        if isinstance(rerank, Reader):
            found = rerank.reread(theirs, offered, before, progress=progress)
            new, looked = found.scores, found.read.sum(axis=1)
        else:
            new, looked = (
                np.asarray(rerank.rescore(theirs, offered, before, progress=progress)),
                np.full(len(rows), before.shape[1]),
            )
        _check(new, before, theirs, where)
        for row, values, those in zip(rows, new, looked.tolist(), strict=True):
            made[row], read[row] = values[: counts[row]], those
    return Rescored(tuple(made), tuple(read))


def _check(new: np.ndarray, scores: np.ndarray, queries: Sequence[Item], where: str) -> None:
    if new.shape != scores.shape:
        raise ModelError(f"{where}the reranker gives scores of shape {list(new.shape)}, asked were {list(scores.shape)}")
    broken = np.flatnonzero(~(np.isfinite(new) | np.isneginf(scores)).all(axis=1))
    if len(broken):
        first = queries[int(broken[0])].label
        raise ModelError(f"{where}scores of the reranker are not finite for {len(broken)} queries, first for {first}")
