"""`StoredIndex`: an index in a folder, whose rows and vectors lie in a store that can grow, change and be shared."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hardwon.errors import ArtifactError, DataError
from hardwon.items import Item, item_from_json
from hardwon.models.scorer import Encoder, ListScorer, Scorer
from hardwon.randomness import generator
from hardwon.search import canaries, stores
from hardwon.search.about import About, Row
from hardwon.search.hits import Hit, Hits, searched
from hardwon.search.index import Index, encoded
from hardwon.search.rescore import Rescorer
from hardwon.search.retrieve import check_positive
from hardwon.search.stores.array import Array
from hardwon.search.stores.base import Entry, Match, Space, Store, missing

FILE = "index.json"
RECIPES = "index/manifest.json"  # of an index that a recipe has made
# Fields that change nothing for readers.
_PASSING: dict[str, Any] = {"roots": {}, "settings": {}, "measured": {}, "paths": (), "before": ()}
_LOOKS = 5  # tries to read rows and vectors that others change meanwhile
COPIES = 16  # fetched beyond those asked for where copies of the query are left out


class StoredIndex:
    """An index in a folder; see `open_index`.

    Searching may be done from several threads. Before each search it is looked whether another process has changed the index
    or built it anew, and a search is answered from one version alone.

    Args:
        folder: of the index.
        encoder: of queries; None if nothing is to be encoded.
        address: the store with a password in it, where libpq is not to find that itself; "" for what the index says.

    Attributes:
        folder: see above.
        encoder: see above.
    """

    def __init__(self, folder: Path | str, encoder: Encoder | None = None, *, address: str = ""):
        self.folder, self.encoder = Path(folder), encoder
        self._watched = _Watched(self.folder, address)
        if encoder is not None:
            self._check_encoder(encoder)

    @property
    def about(self) -> About:
        """What the index is, as it was last looked at."""
        return self._watched.now[0]

    @property
    def store(self) -> Store:
        """Where rows are kept, as it was last looked at."""
        return self._watched.now[1]

    @property
    def space(self) -> Space:
        """What its vectors are."""
        return self.about.space

    @property
    def store_name(self) -> str:
        """The kind of store: "embedded", "lance", "postgresql" or "qdrant"."""
        return stores.kind_of(self.about.store)

    @property
    def changes(self) -> int:
        """How often it was seen that another process had written; what a server keeps (PostgreSQL, Qdrant) does not tell."""
        return self._watched.changes

    def __len__(self) -> int:
        return len(self._watched.looked()[1])

    def with_encoder(self, encoder: Encoder) -> StoredIndex:
        """The same index with another encoder of the same fingerprint; what one of them sees, the other sees at once.

        Raises:
            ArtifactError: another model's.
        """
        self._check_encoder(encoder)
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__, encoder=encoder)
        return made

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
        """The best k hits for each query, best first; fewer when the index holds fewer. `Hit.id` is the id of its row.

        Arguments and errors as of `Index.search_many`.
        """

        def find(count: int) -> list[Hits]:
            if self.encoder is None:
                raise ArtifactError("this index was opened without its encoder: open_index(folder, encoder) opens it with one")
            about, store = self._watched.looked()
            self._check_encoder(self.encoder, about)
            if not queries:
                return []
            vectors = about.space.cut(encoded(self.encoder, queries, progress))
            if exclude_self:
                pairs = zip(vectors, queries, strict=True)
                found = [_without(store, vector, count, query.content) for vector, query in pairs]
            else:
                found = store.search(vectors, count)
            return [self._hits(about, query, matches) for query, matches in zip(queries, found, strict=True)]

        return searched(find, k, rerank, progress=progress)

    def search_vectors(self, vectors: np.ndarray, k: int) -> list[list[tuple[Row, float]]]:
        """The best k rows for each query vector, with their cosines, best first.

        Args:
            vectors: [q d] as the encoder gives them, or as `vectors` does.
            k: rows for each.

        Raises:
            ModelError: vectors of another width, not finite or not of unit length.
            DataError: `k` below 1.
        """
        check_positive("k", k)
        about, store = self._watched.looked()
        kept = replace(about.space, width=about.space.dim)
        space = kept if vectors.ndim == 2 and vectors.shape[1] == about.space.dim else about.space
        return [self._rows(about, found) for found in store.search(space.cut(vectors), k)]

    def row(self, id: str) -> Row:
        """One row. Raises DataError: there is none of that id."""
        return self.rows([id])[0]

    def rows(self, ids: Sequence[str] | None = None) -> list[Row]:
        """Rows by id, in their order; all of them for None.

        Raises:
            DataError: an id that is not there.
        """
        about, store = self._watched.looked()
        made = [self._row(about, entry) for entry in store.rows(ids)]
        missing(ids or (), {row.id: row for row in made})
        return made

    def vectors(self, ids: Sequence[str]) -> np.ndarray:
        """Unit vectors [n dim], float32, of rows by id. Raises DataError: an id that is not there."""
        return self._watched.looked()[1].vectors(ids)

    def sample(self, most: int, seed: int = 0) -> tuple[list[Row], np.ndarray]:
        """At most so many rows and their vectors, drawn at random with a seed, in their order; both of one version.

        Raises:
            ArtifactError: the index changes so fast that no two looks at it agree.
        """
        check_positive("most", most)
        for _ in range(_LOOKS):
            about, store = self._watched.looked()
            entries = list(store.rows())
            if len(entries) > most:
                chosen = sorted(generator(seed, "map").sample(range(len(entries)), most))
                entries = [entries[n] for n in chosen]
            ids = [entry.id for entry in entries]
            with contextlib.suppress(DataError):  # one of them is gone
                vectors = store.vectors(ids)
                if list(store.rows(ids)) == entries:
                    return [self._row(about, entry) for entry in entries], vectors
        raise ArtifactError(f"{self.folder} is being changed all the time: try again later")

    def sources(self) -> dict[str, int]:
        """How many rows each source has, the largest first."""
        found = Counter(json.loads(entry.payload)["source"] for entry in self._watched.looked()[1].rows())
        return dict(sorted(found.items(), key=lambda pair: (-pair[1], pair[0])))

    def refresh(self) -> bool:
        """See what another process has written, or built anew; whether there was anything."""
        return self._watched.refresh()

    def drift(self) -> float | None:
        """Mean cosine of the canaries' vectors with what they were when the index was made; None if there are none.

        Raises:
            ArtifactError: opened without an encoder.
        """
        if self.encoder is None:
            raise ArtifactError("this index was opened without its encoder: open_index(folder, encoder) opens it with one")
        return canaries.drift(self.encoder, self.folder, self.space.model)

    def close(self) -> None:
        """Let go of files and connections."""
        self.store.close()

    def _row(self, about: About, entry: Entry) -> Row:
        body = json.loads(entry.payload)
        item = item_from_json(body.pop("item"), about.at(self.folder, body["root"]))
        return Row(entry.id, item=item, **body)

    def _rows(self, about: About, found: Sequence[Match]) -> list[tuple[Row, float]]:
        return [(self._row(about, match.entry), match.score) for match in found]

    def _hits(self, about: About, query: Item, found: Sequence[Match]) -> Hits:
        rows = enumerate(self._rows(about, found), 1)
        return Hits(query, [Hit(row.item, score, rank, row.id, row) for rank, (row, score) in rows])

    def _check_encoder(self, encoder: Encoder, about: About | None = None) -> None:
        space = (about or self.about).space
        if encoder.fingerprint != space.model or encoder.dim != space.width:
            raise ArtifactError(
                f"the index was built by encoder {space.model} (width {space.width}), but this one is {encoder.fingerprint} "
                f"(width {encoder.dim}), and vectors of two encoders cannot be compared: use the model that built the index "
                f"({(about or self.about).model}), or build it anew: hardwon index MODEL PATH --out {self.folder} --rebuild"
            )


class _Watched:
    """What lies in the folder of an index now, for all who read it.

    Attributes:
        now: what it is, and its store, as last seen.
        changes: how often something new was seen.
    """

    def __init__(self, folder: Path, address: str):
        self._folder, self._address, self._lock = folder, address, threading.RLock()
        place = self._place()
        self._seen, self.changes = _status(place), 0  # taken first: what is written meanwhile is seen at the next look
        self.now = self._opened(place, None)

    def looked(self) -> tuple[About, Store]:
        """As it is now."""
        with self._lock:
            self.refresh()
            return self.now

    def refresh(self) -> bool:
        """As `StoredIndex.refresh`."""
        with self._lock:
            place = self._place()
            seen, before = _status(place), self.now
            if seen != self._seen:
                self.now, self._seen = self._opened(place, before), seen
            new = self.now[1] is not before[1] or self.now[1].refresh()
            self.changes += new
            return new

    def _place(self) -> Path:
        place = next((p for p in (self._folder / FILE, self._folder / RECIPES) if p.is_file()), None)
        if place is None:
            raise ArtifactError(f"{self._folder} holds no index: make one with `hardwon index`")
        return place

    def _opened(self, place: Path, before: tuple[About, Store] | None) -> tuple[About, Store]:
        if place.name != FILE:
            return _recipes(self._folder)
        about = About.read(place)
        if before is not None and replace(before[0], **_PASSING) == replace(about, **_PASSING):
            return about, before[1]
        return about, stores.opened(self._address or about.store, self._folder, about.name, about.space, about.form)


def _status(place: Path) -> tuple[int, ...]:
    status = os.stat(place)
    return status.st_ino, status.st_mtime_ns, status.st_size


def _without(store: Store, vector: np.ndarray, k: int, content: str) -> list[Match]:
    """The best k that do not show `content`."""
    fetch = k + COPIES
    while True:
        found = store.search(vector[None], fetch)[0]
        kept = [match for match in found if json.loads(match.entry.payload)["content"] != content]
        if len(kept) >= k or len(found) < fetch:
            return kept[:k]
        fetch *= 2


def _recipes(folder: Path) -> tuple[About, Store]:
    """A recipe's index as if `hardwon index` had made it."""
    index = Index.load(folder / "index")
    folders = {p.parent for item in index.items for p in item.pictures if isinstance(p, Path)}
    root = Path(os.path.commonpath(folders)) if folders else folder.resolve()
    space = Space(index.fingerprint, index.vectors.shape[1], index.vectors.shape[1])
    entries = []
    for number, (item, content) in enumerate(zip(index.items, index.contents, strict=True)):
        shown = item.to_json(root)
        place = next(iter([*shown.get("images", ()), *shown.get("video", ())]), f"item {number}")
        source = place.split("/")[0] if "/" in place else root.name if item.pictures else "texts"
        body = {"content": content, "source": source, "place": place, "item": shown, "mark": "", "root": "items"}
        entries.append(Entry(hashlib.blake2b(f"{number}:{content}".encode(), digest_size=16).hexdigest(), json.dumps(body)))
    roots = {"items": os.path.relpath(root, folder)}
    about = About(str(model_named(folder)), space, "embedded", "index", roots=roots)
    return about, Array(entries, index.vectors, space)


def open_index(folder: Path | str, encoder: Encoder | None = None, *, address: str = "") -> StoredIndex:
    """Open an index: of `hardwon index`, whatever keeps it, or of a recipe.

    Args:
        folder: the index.
        encoder: the model that built it; without it rows can be read but no items searched for.
        address: see `StoredIndex`.

    Raises:
        ArtifactError: no index, a damaged one, one that another model built, or a store out of reach.
        MissingExtra: the store needs a package that is not installed.
    """
    return StoredIndex(folder, encoder, address=address)


def is_index(folder: Path | str) -> bool:
    """Whether a folder holds an index: one of `hardwon index`, or of a recipe."""
    folder = Path(folder)
    return (folder / FILE).is_file() or (folder / "model.json").is_file()


def model_named(folder: Path | str) -> Path | str:
    """Folder or name of the model that made an index.

    Raises:
        ArtifactError: no index, or a damaged one.
    """
    folder = Path(folder)
    if (folder / FILE).is_file():
        model = About.read(folder / FILE).model
    elif (folder / "model.json").is_file():
        model = json.loads((folder / "model.json").read_text(encoding="utf-8"))["model"]
    else:
        raise ArtifactError(f"{folder} holds no index: make one with `hardwon index`")
    return (folder / model).resolve() if model.startswith(".") else model
