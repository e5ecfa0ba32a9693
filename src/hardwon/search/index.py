"""`Index`: items, their vectors and the encoder that made them; exact, in memory, saved as an artifact."""

import contextlib
import functools
import gc
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from safetensors import safe_open
from safetensors.numpy import save_file

from hardwon import artifacts
from hardwon.errors import ArtifactError, DataError, ModelError
from hardwon.items import Item, Picture, item_from_json
from hardwon.models.scorer import Encoder, ListScorer, Scorer
from hardwon.search.hits import Hit, Hits, searched
from hardwon.search.rescore import Rescorer
from hardwon.search.retrieve import as_float32, check_unit, nearest

KIND, ITEMS, VECTORS = "index", "items.jsonl", "vectors.safetensors"


@dataclass(frozen=True, eq=False)
class Index:
    """Items that can be searched by words, by picture, or by both: a query is an item like any other.

    Attributes:
        items: the items, all different (`Item.key`).
        contents: `Item.content` of each, kept so that pictures need not be read again.
        vectors: their unit vectors; read-only.
        fingerprint: of the encoder that made the vectors; no other may search.
        encoder: that encoder, or None when the index was loaded without it.
    """

    items: tuple[Item, ...]
    contents: tuple[str, ...]
    vectors: Float32[np.ndarray, "n d"]
    fingerprint: str
    encoder: Encoder | None = None

    def __post_init__(self) -> None:
        assert len(self.items) == len(self.contents) == len(self.vectors)
        self.vectors.setflags(write=False)
        if self.encoder is not None:
            self._check_encoder(self.encoder)

    @classmethod
    def build(cls, encoder: Encoder, items: Sequence[Item], *, progress: str = "indexing") -> "Index":
        """Encode items and make them searchable. Items with equal keys are encoded and stored once, where the first stood.

        Args:
            encoder: turns items into vectors; queries are encoded by it too.
            items: what can be found.
            progress: name of the work in the progress bar; "" shows none.

        Raises:
            DataError: no items.
            ModelError: vectors that are not finite, not of unit length, or not as many or as wide as they should be.
        """
        distinct: dict[str, Item] = {}
        for item in items:
            distinct.setdefault(item.key, item)
        if not distinct:
            raise DataError("there are no items to index")
        kept = tuple(distinct.values())
        fingerprint = encoder.fingerprint  # taken first: weights that change under way are noticed below
        vectors = encoded(encoder, kept, progress).view()  # the array of the encoder stays writable
        return cls(kept, tuple(item.content for item in kept), vectors, fingerprint, encoder)

    def __len__(self) -> int:
        return len(self.items)

    def search(
        self,
        query: Item,
        k: int = 10,
        rerank: Rescorer | Scorer | ListScorer | None = None,
        *,
        exclude_self: bool = False,
        progress: str = "",
    ) -> Hits:
        """The best k hits for one query; see `search_many`."""
        return self.search_many([query], k, rerank, exclude_self=exclude_self, progress=progress)[0]

    def search_many(
        self,
        queries: Sequence[Item],
        k: int = 10,
        rerank: Rescorer | Scorer | ListScorer | None = None,
        *,
        exclude_self: bool = False,
        progress: str = "",
    ) -> list[Hits]:
        """The best k hits for each query, best first; fewer when the index holds fewer.

        Args:
            queries: items of any kind; each with the instruction that the encoder was trained to see on queries.
            k: hits per query.
            rerank: puts the best `rerank.depth` in the order of its own scores, equal ones as they were; hits beyond that
                depth keep their places below. A bare reranker is taken as `Fused(reranker)`. Queries with fewer candidates
                are handed to it separately, so that every array it sees is full.
            exclude_self: leave out hits that show the same as the query (`Item.content`): for a search by a picture that is
                itself in the index.
            progress: name of the work in progress bars; "" shows none.

        Raises:
            DataError: `k` or the depth is below 1.
            ArtifactError: the index was loaded without its encoder, or the encoder's weights have changed since.
            ModelError: query vectors, or scores of `rerank`, that are not finite or of the wrong shape.
        """

        def find(count: int) -> list[Hits]:
            if self.encoder is None:
                raise ArtifactError("this index was loaded without its encoder: Index.load(path, encoder) loads it with one")
            self._check_encoder(self.encoder)
            vectors = encoded(self.encoder, queries, progress)
            exclude = [self._showing.get(query.content, ()) for query in queries] if exclude_self else None
            found = nearest(vectors, self.vectors, min(count, len(self)), exclude=exclude)
            return [self._hits(*row) for row in zip(queries, found.ids, found.scores, strict=True)]

        return searched(find, k, rerank, progress=progress)

    def save(self, path: Path | str) -> None:
        """Write the index to a folder; an index that is there is replaced, anything else that is there is left alone.

        Pictures stay where they are: their places relative to the folder are written down, so that an index moved together
        with its pictures still finds them.

        Raises:
            DataError: an item holds a picture as bytes.
            ArtifactError: the folder holds something else.
        """
        path = Path(path).resolve()
        if (path / artifacts.MANIFEST).exists():
            artifacts.load(path, KIND, verify=False)
        folders = {p.parent for item in self.items for p in map(_settled, item.pictures) if isinstance(p, Path)}
        root = Path(os.path.commonpath(folders)) if folders else path
        for item in self.items:
            if any(isinstance(picture, bytes) for picture in item.pictures):
                item.to_json(root)  # raises, before anything is written
        inputs = {"encoder": self.fingerprint, "root": os.path.relpath(root, path)}
        with artifacts.writing(path, KIND, inputs) as draft:
            with open(draft.path / ITEMS, "w", encoding="utf-8") as file:
                for item, content in zip(self.items, self.contents, strict=True):
                    there = replace(item, images=tuple(map(_settled, item.images)), video=tuple(map(_settled, item.video)))
                    file.write(json.dumps({"content": content, "item": there.to_json(root)}) + "\n")
            # The manifest has no checksum of its own; with this one a damaged root or fingerprint is noticed.
            save_file({"vectors": self.vectors}, draft.path / VECTORS, metadata={"inputs": artifacts.fingerprint(inputs)})
            draft.stats |= {"items": len(self), "dim": self.vectors.shape[1]}

    @classmethod
    def load(cls, path: Path | str, encoder: Encoder | None = None) -> "Index":
        """Read what `save` wrote, after comparing every file with its checksum.

        Args:
            path: the folder.
            encoder: the encoder that built the index; without it items and vectors can be read but not searched.

        Raises:
            ArtifactError: unfinished, damaged, not an index, or built by another encoder.
        """
        path = Path(path)
        manifest = artifacts.load(path, KIND)
        with safe_open(path / VECTORS, "numpy") as file:
            vectors, metadata = file.get_tensor("vectors"), file.metadata()
        if metadata["inputs"] != artifacts.fingerprint(manifest.inputs):
            raise ArtifactError(f"{path / artifacts.MANIFEST} has changed since it was written: delete {path} and build again")
        root = (path.resolve() / manifest.inputs["root"]).resolve()
        items, contents = [], []
        with open(path / ITEMS, encoding="utf-8") as file, _uncollected():
            for row in map(json.loads, file):
                items.append(item_from_json(row["item"], root))
                contents.append(row["content"])
        return cls(tuple(items), tuple(contents), vectors, manifest.inputs["encoder"], encoder)

    @functools.cached_property
    def _showing(self) -> dict[str, list[int]]:
        """Positions of the items with the same content."""
        places = defaultdict(list)
        for place, content in enumerate(self.contents):
            places[content].append(place)
        return dict(places)

    def _check_encoder(self, encoder: Encoder) -> None:
        if encoder.fingerprint != self.fingerprint or encoder.dim != self.vectors.shape[1]:
            raise ArtifactError(
                f"the index was built by encoder {self.fingerprint} (width {self.vectors.shape[1]}), but this one is "
                f"{encoder.fingerprint} (width {encoder.dim}), and vectors of two encoders cannot be compared: "
                "use the encoder that built the index, or build it again: Index.build(encoder, index.items)"
            )

    def _hits(self, query: Item, ids: np.ndarray, scores: np.ndarray) -> Hits:
        places = [int(place) for place in ids if place >= 0]
        values = scores[: len(places)].tolist()
        return Hits(query, [Hit(self.items[p], s, n, p) for n, (p, s) in enumerate(zip(places, values, strict=True), 1)])


def encoded(encoder: Encoder, items: Sequence[Item], progress: str) -> Float32[np.ndarray, "n d"]:
    """Vectors that have been looked at: as many and as wide as promised, finite, of unit length.

    Raises:
        ModelError: they are not; names the first item.
    """
    vectors = encoder.encode(items, progress=progress)
    if vectors.shape != (len(items), encoder.dim):
        raise ModelError(f"the encoder gave vectors of shape {list(vectors.shape)}, not {[len(items), encoder.dim]}")
    vectors = as_float32(vectors)
    check_unit(vectors, lambda n: f"the vector of item {_named(items[n])}")
    return vectors


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """While a million items are made, nothing of which is garbage, none is looked for: that costs a tenth of the time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _settled(picture: Picture) -> Picture:
    """The picture's path with links followed, since reading refuses one that leads out of the root."""
    return picture if isinstance(picture, bytes) else picture.resolve()


def _named(item: Item) -> str:
    return f"{item.key[:12]} ({item.text[:60]!r}, {len(item.pictures)} pictures)"
