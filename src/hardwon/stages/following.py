"""One run over a path: what an index has to be told to be what lies there."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from hardwon.artifacts import fingerprint, write_json
from hardwon.data.gather import File, Listing, Reading, Thing, listed, things
from hardwon.errors import BadItems, BadRow, DataError, ModelError
from hardwon.items import Item
from hardwon.models.scorer import Encoder
from hardwon.progress import bar
from hardwon.search.about import About, Row
from hardwon.search.compressed import Recall
from hardwon.search.index import encoded
from hardwon.search.stores import Store
from hardwon.search.stores.embedded import Embedded
from hardwon.stages import media

FAILED = "failed.json"
BATCH = 256  # rows between two writes: what a kill may cost
DEAD = 0.3  # share of rows that may be gone before an embedded store is written anew


@dataclass
class Counts:
    """What came of a run, in rows.

    Attributes:
        added: not there before.
        updated: there with another content.
        unchanged: there as they are.
        removed: not below the path any more.
        encoded: that the model had to read; the others of those added had been there under another name.
        failed: what cannot be used, and why.
        others: files of each suffix that were passed over.
        rows: in the index now.
        recall: what the form finds of what whole vectors find; None for whole vectors, or if it was measured before.
    """

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    removed: int = 0
    encoded: int = 0
    failed: list[BadRow] = field(default_factory=list)
    others: dict[str, int] = field(default_factory=dict)
    rows: int = 0
    recall: Recall | None = None

    def __str__(self) -> str:
        return (
            f"{self.added:,} added, {self.updated:,} updated, {self.unchanged:,} unchanged, {self.removed:,} removed, "
            f"{len(self.failed):,} failed; {self.rows:,} rows, {self.encoded:,} encoded"
        )


@dataclass(frozen=True)
class _Known:
    """What is remembered of a row that is there; what an earlier version has not written down is ""."""

    key: str
    file: str
    place: str
    mark: str
    pictured: bool
    made: frozenset[str]  # pictures of the index's own that it shows


class Run:
    """One run over a path."""

    def __init__(self, encoder: Encoder, path: Path, out: Path, about: About, store: Store, reading: Reading, counts: Counts):
        self.encoder, self.path, self.out, self.store, self.reading = encoder, path, out, store, reading
        self.made, self.counts = media.there(out), counts
        found = listed(path, reading)
        inside = out.resolve()
        self.listing: Listing = replace(found, files=tuple(f for f in found.files if not f.path.is_relative_to(inside)))
        for suffix, number in found.others.items():
            counts.others[suffix] = counts.others.get(suffix, 0) + number
        about, self.root = _rooted(about, found.root, out)
        place = os.path.relpath(path.resolve(), inside)
        self.about = about if place in about.paths else replace(about, paths=(*about.paths, place))
        self.known = {entry.id: _known(entry.payload) for entry in store.rows()}
        self.by_key = {row.key: id for id, row in self.known.items() if row.key}  # rows that vectors can be taken from
        self.said = self.about.space.instruction

    def run(self) -> None:
        """Do it."""
        seen = set[str]()
        waiting = list(self._rows(seen))
        with bar("indexing", len(waiting), "items") if waiting else nullcontext(lambda n=1, note="": None) as advance:
            for start in range(0, len(waiting), BATCH):
                self._write(waiting[start : start + BATCH], seen)
                advance(len(waiting[start : start + BATCH]))
        self._remove(seen)
        self.store.refresh()
        self.counts.rows = len(self.store)
        if isinstance(self.store, Embedded) and self.counts.removed > DEAD * max(self.counts.rows, 1):
            self.store.compact()
        self._list_failures()

    def _rows(self, seen: set[str]) -> Iterator[Row]:
        """The rows that are new or have changed; ids of all that are there go into `seen`."""
        ids: dict[str, list[str]] = {}
        for key, row in self.known.items():
            ids.setdefault(row.file, []).append(key)
        settings = fingerprint(self.reading)[:8]
        files = [f for f in self.listing.files if not self._done(f, settings, ids.get(f"{self.root}/{f.name}", []), seen)]
        with bar("reading", len(files), "files") if files else nullcontext(lambda n=1, note="": None) as advance:
            for file in files:
                yield from self._read(file, settings, seen)
                advance()

    def _done(self, file: File, settings: str, ids: Sequence[str], seen: set[str]) -> bool:
        """Whether all rows of a file are there as it stands."""
        marks = {self.known[key].mark for key in ids}
        if len(marks) != 1:
            return False
        (mark,) = marks
        if mark != f"{file.mark}:{settings}/{len(ids)}" or (
            file.kind == "rows" and any(self.known[key].pictured for key in ids)
        ):
            return False  # pictures that rows name may have changed where the rows have not
        if any(not self.known[key].made <= self.made for key in ids):
            return False  # another build of the index has had no use for them
        self.counts.unchanged += len(ids)
        seen.update(ids)
        return True

    def _read(self, file: File, settings: str, seen: set[str]) -> list[Row]:
        """Rows of one file that have to be written."""
        good: list[Thing] = []
        bad = len(self.counts.failed)
        try:
            for each in things(file, self.listing.root, self.out / media.MEDIA, self.reading):
                good.append(each) if isinstance(each, Thing) else self.counts.failed.append(each)
        except DataError as error:
            self.counts.failed.append(BadRow(str(file.path), 1, str(error)))
            good = []
        made = []
        total = len(good) + len(self.counts.failed) - bad  # so that a file of which something failed is read again
        for each in good:
            item = each.item if each.item.instruction or not self.said else replace(each.item, instruction=self.said)
            place = f"{self.root}/{each.place}"
            key = hashlib.blake2b(place.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
            row = Row(key, item.content, self._source(file), place, item, "", "" if each.made else self.root)
            row = replace(row, mark=f"{file.mark}:{settings}/{total}", key=item.key, file=f"{self.root}/{file.name}")
            before = self.known.get(key)
            if before is not None and before.key == row.key:
                seen.add(key)
                self.counts.unchanged += 1
                if before.mark == row.mark:
                    continue
            made.append(row)
        return made

    def _source(self, file: File) -> str:
        first, slash, _ = file.name.partition("/")
        return first if slash else file.name if file.kind == "rows" else self.root

    def _write(self, rows: Sequence[Row], seen: set[str]) -> None:
        """Encode what no row has the vector of, and write all."""
        vectors: dict[str, np.ndarray] = {}
        old = {row.key: self.by_key[row.key] for row in rows if row.key in self.by_key}
        if old:
            vectors |= zip(old, self.store.vectors(list(old.values())), strict=True)
        new = {row.key: row.item for row in rows if row.key not in vectors}
        made = self._encoded(new) if new else {}
        self.counts.encoded += len(made)
        vectors |= made
        good = [row for row in rows if row.key in vectors]
        bases = {root: self.about.at(self.out, root) for root in {row.root for row in good}}
        entries = {row.id: row.entry(bases[row.root]) for row in good}
        if good:
            self.store.upsert(list(entries.values()), np.stack([vectors[row.key] for row in good]))
            self.store.refresh()
        for row in good:  # before any of them is noted: two rows may have changed places
            before = self.known.get(row.id)
            if before is not None and self.by_key.get(before.key) == row.id:
                del self.by_key[before.key]  # that vector is overwritten
        for row in good:
            if row.id not in seen:
                self.counts.added += row.id not in self.known
                self.counts.updated += row.id in self.known
            seen.add(row.id)
            self.known[row.id] = _known(entries[row.id].payload)
            self.by_key.setdefault(row.key, row.id)

    def _encoded(self, items: dict[str, Item]) -> dict[str, np.ndarray]:
        """Vectors by key; what the model cannot use is listed and left out."""
        while items:
            try:
                made = self.about.space.cut(encoded(self.encoder, list(items.values()), ""))
                return dict(zip(items, made, strict=True))
            except BadItems as error:
                bad = {bad.item: bad.reason for bad in error.items}
            except ModelError as error:
                if len(items) == 1:
                    bad = dict.fromkeys(items.values(), str(error))
                else:  # one of them is too large, say
                    return {k: v for each, item in items.items() for k, v in self._encoded({each: item}).items()}
            left = {key: item for key, item in items.items() if item not in bad}
            assert len(left) < len(items), "the model names items that it was not given"
            self.counts.failed += [BadRow(_shown(item), 1, reason) for item, reason in bad.items()]
            items = left
        return {}

    def _remove(self, seen: set[str]) -> None:
        scope = self._scope()
        gone = [key for key, row in self.known.items() if key not in seen and scope(row)]
        if gone:
            self.store.delete(gone)
        self.counts.removed += len(gone)

    def _scope(self) -> Callable[[_Known], bool]:
        """Whether a row is one that this run is about."""
        if self.path.is_dir():
            return lambda row: row.place.startswith(f"{self.root}/")
        name = f"{self.root}/{self.path.name}"
        return lambda row: row.file == name

    def _list_failures(self) -> None:
        write_json(self.out / FAILED, [row._asdict() for row in self.counts.failed])


def _rooted(about: About, root: Path, out: Path) -> tuple[About, str]:
    """The index with a name for the root, and that name."""
    for name in about.roots:
        if about.at(out, name) == root:
            return about, name
    base = root.name or "root"
    name, number = base, 1
    while name in about.roots:
        number += 1
        name = f"{base}-{number}"
    return replace(about, roots={**about.roots, name: os.path.relpath(root, out.resolve())}), name


def _known(payload: str) -> _Known:
    body = json.loads(payload)
    file = body.get("file") or body["place"].split("#")[0]  # of an earlier version, which names with a # mislead
    pictured = len(body["item"].keys() & {"images", "video"}) > 0
    return _Known(body.get("key", ""), file, body["place"], body["mark"], pictured, media.names(body))


def _shown(item: Item) -> str:
    return str(item.pictures[0]) if item.pictures and isinstance(item.pictures[0], Path) else item.label
