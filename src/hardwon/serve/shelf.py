"""What is served of an index in memory: its rows by their ids, as text that fits into an address."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from hardwon.errors import DataError
from hardwon.items import Item
from hardwon.models.scorer import Encoder
from hardwon.randomness import generator
from hardwon.search import Hits, Index
from hardwon.search.rescore import Rescorer


@dataclass(frozen=True)
class Row:
    """An item of an index.

    Attributes:
        id: of the row.
        source: what it came from.
        place: where it is.
        item: the item.
    """

    id: str
    source: str
    place: str
    item: Item

    @property
    def picture(self) -> Path | None:
        """The first picture of the item."""
        return next((p for p in self.item.pictures if isinstance(p, Path)), None)


class Shelf:
    """An index, and where it lies.

    Args:
        index: the index.
        folder: where it lies.
    """

    def __init__(self, index: Index, folder: Path):
        self._index, self.folder = index, folder
        folders = {p.parent for item in index.items for p in item.pictures if isinstance(p, Path)}
        self._root = Path(os.path.commonpath(folders)) if folders else folder

    def __len__(self) -> int:
        return len(self._index)

    def with_encoder(self, encoder: Encoder) -> "Shelf":
        """The same with another encoder of the same fingerprint."""
        return Shelf(replace(self._index, encoder=encoder), self.folder)

    def search(self, query: Item, k: int, rerank: Rescorer | None = None, *, exclude_self: bool = False) -> Hits:
        """See `Index.search`."""
        return self._index.search(query, k, rerank, exclude_self=exclude_self)

    def row(self, id: str) -> Row:
        """Raises DataError for an id that is not there."""
        if not id.isdecimal() or len(id) > 9 or int(id) >= len(self):
            raise DataError(f"there is no item {id[:40]!r} in this index")
        item = self._index.items[int(id)]
        path = next((p for p in item.pictures if isinstance(p, Path)), None)
        place = path.relative_to(self._root) if path else Path("texts")
        source = place.parts[0] if len(place.parts) > 1 else self._root.name if path else "texts"
        return Row(id, source, str(place), item)

    def rows(self, ids: Sequence[str] | None = None) -> list[Row]:
        """Rows by their ids; all of them without."""
        return [self.row(id) for id in (map(str, range(len(self))) if ids is None else ids)]

    def sample(self, most: int, seed: int = 0) -> tuple[list[Row], Float32[np.ndarray, "n d"]]:
        """Rows and vectors; all if there are no more than `most`."""
        drawn = sorted(generator(seed, "shelf").sample(range(len(self)), min(most, len(self))))
        return self.rows([str(n) for n in drawn]), self._index.vectors[drawn]

    def sources(self) -> dict[str, int]:
        """Sources and how many rows each has, the largest first."""
        return dict(Counter(row.source for row in self.rows()).most_common())
