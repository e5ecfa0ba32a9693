"""Where the vectors of an index that is written come from: an earlier build of it, or the model."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from hardwon.errors import BadItems, BadRow, ModelError
from hardwon.items import Item
from hardwon.models.scorer import Encoder
from hardwon.search.index import encoded
from hardwon.search.narrowed import Narrowing
from hardwon.search.stores import Space, Store
from hardwon.stages.counts import Counts


class Source:
    """Gives vectors as an index keeps them, and looks at the whole ones first where less than those is kept.

    Args:
        encoder: the model.
        store: that the vectors are for.
        counts: of the run, which are kept here where they are about vectors.
        earlier: a build of the index whose vectors fit (`copyable`); None: all are made by the model.

    Attributes:
        earlier: see above.
        narrowing: what is lost of whole vectors; None where all of them is kept.
    """

    def __init__(self, encoder: Encoder, store: Store, counts: Counts, earlier: Store | None = None):
        self.earlier, self._counts, self._fresh = earlier, counts, not len(store)
        self.narrowing = Narrowing(store.space) if store.space.narrowed else None
        self._encoder, self._space = encoder, store.space
        rows = () if earlier is None else earlier.rows()
        keys = ((json.loads(row.payload).get("key", ""), row.id) for row in rows)
        self._there = {key: id for key, id in keys if key}  # an earlier version has not written them down

    @property
    def all_seen(self) -> bool:
        """Whether `narrowing` has seen the whole vector of every row of the index."""
        seen = 0 if self.narrowing is None else self.narrowing.among
        return self._fresh and seen == self._counts.encoded + self._counts.copied

    def vectors(self, items: dict[str, Item]) -> dict[str, np.ndarray]:
        """Vectors by `Item.key`; what the model cannot use is left out.

        Raises:
            ModelError: the model gives vectors that cannot be used, of any item.
            ArtifactError: the earlier build cannot be read.
        """
        made = self._copied([key for key in items if key in self._there])
        self._counts.copied += len(made)
        left = {key: item for key, item in items.items() if key not in made}
        new = self._encoded(left) if left else {}
        self._counts.encoded += len(new)
        return made | new

    def _copied(self, keys: list[str]) -> dict[str, np.ndarray]:
        if not keys or self.earlier is None:
            return {}
        kept = self.earlier.space
        vectors = self.earlier.vectors([self._there[key] for key in keys])
        made = replace(self._space, width=kept.dim).cut(vectors)
        if self.narrowing is not None and not kept.narrowed:
            self.narrowing.add(vectors)
        return dict(zip(keys, made, strict=True))

    def _encoded(self, items: dict[str, Item]) -> dict[str, np.ndarray]:
        """What the model makes; what it cannot use is listed and left out."""
        while items:
            try:
                whole = encoded(self._encoder, list(items.values()), "")
                made = self._space.cut(whole)
            except BadItems as error:
                bad = {bad.item: bad.reason for bad in error.items}
            except ModelError as error:
                if len(items) == 1:
                    bad = dict.fromkeys(items.values(), str(error))
                else:  # one of them is too large, say
                    return {k: v for each, item in items.items() for k, v in self._encoded({each: item}).items()}
            else:
                if self.narrowing is not None:
                    self.narrowing.add(whole)
                return dict(zip(items, made, strict=True))
            left = {key: item for key, item in items.items() if item not in bad}
            assert len(left) < len(items), "the model names items that it was not given"
            self._counts.failed += [BadRow(_shown(item), 1, reason) for item, reason in bad.items()]
            items = left
        return {}


def copyable(there: Space, wanted: Space) -> bool:
    """Whether vectors of one kind can be had from those of another without the model: all that is wanted of them is there."""
    if wanted.dim > there.dim or there.dtype not in ("float32", wanted.dtype):
        return False
    return replace(there, dim=wanted.dim, dtype=wanted.dtype) == wanted


def _shown(item: Item) -> str:
    return str(item.pictures[0]) if item.pictures and isinstance(item.pictures[0], Path) else item.label
