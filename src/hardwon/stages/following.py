"""One run over a path: what an index has to be told to be what lies there."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hardwon.artifacts import fingerprint, write_json
from hardwon.data.gather import File, Listing, Reading, Thing, listed, things
from hardwon.errors import BadRow, DataError
from hardwon.progress import bar
from hardwon.randomness import generator
from hardwon.search.about import About, Row
from hardwon.search.stores import Store
from hardwon.search.stores.embedded import Embedded
from hardwon.stages import media
from hardwon.stages.counts import FAILED, Counts
from hardwon.stages.sourcing import Source

BATCH = 256  # rows between two writes: what a kill may cost
DEAD = 0.3  # share of rows that may be gone before an embedded store is written anew


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

    def __init__(self, source: Source, path: Path, out: Path, about: About, store: Store, reading: Reading, counts: Counts):
        self.source, self.path, self.out, self.store, self.reading = source, path, out, store, reading
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
        waiting = self._ordered(list(self._rows(seen)))
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

    def _ordered(self, rows: list[Row]) -> list[Row]:
        """In the order in which they are written: those first that ask what is lost of whole vectors, drawn at random."""
        if self.source.narrowing is None:
            return rows
        drawn = generator(0, "narrowing").sample(range(len(rows)), min(self.source.narrowing.most, len(rows)))
        first = set(drawn)
        return [rows[n] for n in drawn] + [row for n, row in enumerate(rows) if n not in first]

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
        """Get vectors of what no row has the vector of, and write all."""
        vectors: dict[str, np.ndarray] = {}
        old = {row.key: self.by_key[row.key] for row in rows if row.key in self.by_key}
        if old:
            vectors |= zip(old, self.store.vectors(list(old.values())), strict=True)
        new = {row.key: row.item for row in rows if row.key not in vectors}
        vectors |= self.source.vectors(new)
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
