"""Rows and vectors in memory, as a recipe's index has them: read, never written."""

from collections.abc import Iterator, Sequence

import numpy as np

from hardwon.errors import ArtifactError
from hardwon.search.retrieve import as_float32, nearest
from hardwon.search.stores.base import Entry, Match, Space, missing


class Array:
    """A store around an array.

    Args:
        entries: rows with ids that are all different.
        vectors: of unit length, [n d].
        space: what they are.
    """

    def __init__(self, entries: Sequence[Entry], vectors: np.ndarray, space: Space):
        self._entries, self._vectors, self.space = list(entries), as_float32(vectors), space
        self._places = {entry.id: n for n, entry in enumerate(self._entries)}

    def upsert(self, entries: Sequence[Entry], vectors: np.ndarray) -> None:
        """Refuse: see `delete`."""
        self.delete([])

    def delete(self, ids: Sequence[str]) -> None:
        """Raise ArtifactError."""
        raise ArtifactError(
            "an index made by a recipe is not changed: run its stage again, or make one with `hardwon index MODEL`"
        )

    def search(self, vectors: np.ndarray, k: int) -> list[list[Match]]:
        """As `Store.search`."""
        found = nearest(as_float32(vectors), self._vectors, min(k, len(self)))
        return [
            [Match(self._entries[place], float(score)) for place, score in zip(ids, scores, strict=True) if place >= 0]
            for ids, scores in zip(found.ids.tolist(), found.scores.tolist(), strict=True)
        ]

    def rows(self, ids: Sequence[str] | None = None) -> Iterator[Entry]:
        """As `Store.rows`."""
        if ids is None:
            yield from self._entries
        else:
            yield from (self._entries[self._places[each]] for each in ids if each in self._places)

    def vectors(self, ids: Sequence[str]) -> np.ndarray:
        """As `Store.vectors`."""
        missing(ids, self._places)
        return self._vectors[[self._places[each] for each in ids]]

    def __len__(self) -> int:
        return len(self._entries)

    def refresh(self) -> bool:
        """As `Store.refresh`."""
        return False

    def close(self) -> None:
        """As `Store.close`."""
