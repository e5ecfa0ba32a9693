"""The embedded store: a folder of segments and a head that names them; exact, searched in memory.

A write adds one segment, a safetensors file with vectors and ids beside JSON lines, and then, atomically, a head that names all
segments with their checksums and is sealed with one of its own. So a killed writer leaves the store as it was before or after
the write, and a file that was cut or has a flipped bit is found out when it is opened. Writers take turns by a lock; readers
keep what they have read until they look again, so an answer always comes from one version. Small segments are merged as they
become many.
"""

import contextlib
import fcntl
import hashlib
import json
import math
import os
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from hardwon.artifacts import checksum, replacing, write_atomically
from hardwon.errors import ArtifactError
from hardwon.search.compressed import Compressed, Form
from hardwon.search.stores.base import Entry, Match, Space, check_id, checked, missing

HEAD, LOCK = "head.json", ".lock"
WAIT_S = 120.0  # for another writer
MERGED_AT, GROWTH = 8, 8  # segments of about one size that become one, and how far sizes of one class lie apart
_OPENINGS = 50  # tries to read a store that others rewrite meanwhile


def seal(body: Mapping[str, Any]) -> str:
    """Checksum of a JSON object, 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def write_sealed(path: Path, body: Mapping[str, Any]) -> None:
    """Write a JSON object with its checksum, whole or not at all, and to the disk."""
    write_atomically(path, json.dumps({"seal": seal(body), **body}, indent=1, sort_keys=True) + "\n")
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_sealed(path: Path) -> dict[str, Any]:
    """What `write_sealed` wrote.

    Raises:
        ArtifactError: not there, or not what was written.
    """
    try:
        body = json.loads(path.read_bytes())
        said = body.pop("seal")
    except FileNotFoundError:
        raise ArtifactError(f"{path} does not exist: make an index with `hardwon index`") from None
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ArtifactError(f"{path} is damaged ({error}): build the index again with --rebuild") from error
    if said != seal(body):
        raise ArtifactError(f"{path} has changed since it was written: build the index again with --rebuild")
    return body


@contextlib.contextmanager
def one_writer(folder: Path, wait: float = WAIT_S) -> Iterator[None]:
    """Wait for the turn to write.

    Raises:
        ArtifactError: another process writes for longer than `wait` seconds.
    """
    with open(folder / LOCK, "a") as file:
        end = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > end:
                    raise ArtifactError(f"another process has been writing {folder} for {wait:g} s: wait for it") from None
                time.sleep(0.005)
        yield


@dataclass(frozen=True)
class _Segment:
    """One file of vectors and one of payloads, opened and compared with their checksums."""

    name: str
    vectors: np.ndarray  # mapped
    ids: list[bytes]
    gone: list[bytes]
    starts: np.ndarray  # of the payloads in `text`
    text: np.ndarray  # mapped

    def payload(self, row: int) -> str:
        return bytes(self.text[self.starts[row] : self.starts[row + 1]]).decode("ascii")


@dataclass(frozen=True)
class _Version:
    """What the store held at one moment."""

    names: tuple[str, ...]
    segments: tuple[_Segment, ...]
    places: dict[bytes, tuple[int, int]]  # id -> segment, row
    lock: threading.Lock = field(default_factory=threading.Lock)
    made: list[Any] = field(default_factory=list)  # the searcher, when somebody has searched

    def entry(self, key: bytes) -> Entry:
        segment, row = self.places[key]
        return Entry(key.hex(), self.segments[segment].payload(row))

    def keys(self) -> list[bytes]:
        return list(self.places)

    def take(self, keys: Sequence[bytes], dim: int) -> np.ndarray:
        """Vectors of rows, float32."""
        where = np.array([self.places[key] for key in keys], dtype=np.int64).reshape(-1, 2)
        return _gathered(self.segments, where, dim)


def _gathered(segments: Sequence[_Segment], where: np.ndarray, dim: int) -> np.ndarray:
    made = np.empty((len(where), dim), dtype=np.float32)
    for number in np.unique(where[:, 0]).tolist():
        those = where[:, 0] == number
        made[those] = segments[number].vectors[where[those, 1]]
    return made


class Embedded:
    """See the module.

    Args:
        folder: where it lies.
        space: what its vectors are.
        form: how vectors are kept in memory for searching; what lies on disk is the same for all of them.
    """

    def __init__(self, folder: Path, space: Space, form: Form | None = None):
        self.folder, self._space, self.form = folder, space, form or Form()
        self._segments: dict[str, _Segment] = {}
        self._seen: tuple[int, ...] = ()
        space.check(read_sealed(folder / HEAD)["space"], str(folder))
        self._version = _Version((), (), {})
        self._looking = threading.Lock()
        self.refresh()

    @classmethod
    def create(cls, folder: Path, space: Space, form: Form | None = None) -> "Embedded":
        """A new, empty store.

        Raises:
            ArtifactError: there is something already.
        """
        if folder.exists() and any(path.name != LOCK for path in folder.iterdir()):
            raise ArtifactError(f"{folder} is not empty: choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        write_sealed(folder / HEAD, {"kind": "store", "space": space.to_json(), "segments": []})
        return cls(folder, space, form)

    @property
    def space(self) -> Space:
        """As `Store.space`."""
        return self._space

    def upsert(self, entries: Sequence[Entry], vectors: np.ndarray) -> None:
        """As `Store.upsert`."""
        vectors = checked(entries, vectors, self._space)
        if entries:
            self._commit([_key(entry.id) for entry in entries], [entry.payload for entry in entries], vectors, [])

    def delete(self, ids: Sequence[str]) -> None:
        """As `Store.delete`."""
        if ids:
            nothing = np.zeros((0, self._space.dim), dtype=np.float32)
            self._commit([], [], nothing, sorted(set(map(_key, ids))))

    def search(self, vectors: np.ndarray, k: int) -> list[list[Match]]:
        """As `Store.search`; of a form smaller than float32, as far as that form can tell."""
        version = self._version
        if not version.places:
            return [[] for _ in vectors]
        keys, searcher = self._searcher(version)
        found = searcher.search(vectors, min(k, len(keys)))
        return [
            [Match(version.entry(keys[place]), float(score)) for place, score in zip(ids, scores, strict=True) if place >= 0]
            for ids, scores in zip(found.ids.tolist(), found.scores.tolist(), strict=True)
        ]

    def rows(self, ids: Sequence[str] | None = None) -> Iterator[Entry]:
        """As `Store.rows`."""
        version = self._version
        for key in version.keys() if ids is None else map(_key, ids):
            if key in version.places:
                yield version.entry(key)

    def vectors(self, ids: Sequence[str]) -> np.ndarray:
        """As `Store.vectors`."""
        version, keys = self._version, list(map(_key, ids))
        missing(ids, {key.hex(): None for key in keys if key in version.places})
        return version.take(keys, self._space.dim)

    def __len__(self) -> int:
        return len(self._version.places)

    def refresh(self) -> bool:
        """As `Store.refresh`."""
        status = os.stat(self.folder / HEAD)
        seen = (status.st_ino, status.st_mtime_ns, status.st_size)
        if seen == self._seen:
            return False
        with self._looking:
            for attempt in range(_OPENINGS):
                names = self._head()
                try:
                    self._read(names)
                    break
                except FileNotFoundError:
                    # Merged into another segment since: the head is another now, unless a file was taken away.
                    if self._head() == names or attempt == _OPENINGS - 1:
                        raise ArtifactError(
                            f"{self.folder} lacks a file that its head names: build the index again with --rebuild"
                        ) from None
            self._seen = seen
        return True

    def compact(self) -> None:
        """Merge everything into one segment, without the rows that are gone."""
        with one_writer(self.folder):
            if len(self._head()) > 1 or any(segment.gone for segment in self._segments.values()):
                self._merge(0)
        self.refresh()

    def close(self) -> None:
        """As `Store.close`."""
        self._segments.clear()

    def _head(self) -> dict[str, Any]:
        """Checksums of the files of each segment, by its name, in their order."""
        body = read_sealed(self.folder / HEAD)
        return {segment["name"]: segment for segment in body["segments"]}

    def _read(self, names: Mapping[str, Any]) -> None:
        opened = {name: self._segments.get(name) or _opened(self.folder, name, about) for name, about in names.items()}
        before, order = self._version, tuple(opened)
        same = order[: len(before.names)] == before.names
        places = dict(before.places) if same else {}
        for number, name in enumerate(order):
            if same and number < len(before.names):
                continue
            for key in opened[name].gone:
                places.pop(key, None)
            for row, key in enumerate(opened[name].ids):
                places[key] = (number, row)
        self._segments, self._version = opened, _Version(order, tuple(opened.values()), places)

    def _searcher(self, version: _Version) -> tuple[list[bytes], Compressed]:
        with version.lock:
            if not version.made:
                keys = version.keys()
                where = np.array([version.places[key] for key in keys], dtype=np.int64).reshape(-1, 2)
                whole = _Whole(version.segments, where, self._space.dim)
                version.made.extend((keys, Compressed(whole, self.form)))
            return version.made[0], version.made[1]

    def _commit(self, keys: list[bytes], payloads: list[str], vectors: np.ndarray, gone: list[bytes]) -> None:
        with one_writer(self.folder):
            head = self._head()
            about = self._write(keys, payloads, vectors, gone)
            self._name([*head.values(), about])
            self._tidy()
            start = _many([segment["rows"] for segment in self._head().values()])
            if start is not None:
                self._merge(start)

    def _write(self, keys: list[bytes], payloads: list[str], vectors: np.ndarray, gone: list[bytes]) -> dict[str, Any]:
        """A segment's files; nobody reads them before the head names them."""
        name = secrets.token_hex(8)
        lines = [payload.encode("ascii") for payload in payloads]
        starts = np.cumsum([0, *map(len, lines)], dtype=np.int64)
        tensors = {
            "vectors": np.ascontiguousarray(vectors, dtype=self._space.dtype),
            "ids": _packed(keys),
            "gone": _packed(gone),
            "starts": starts,
        }
        with replacing(self.folder / f"{name}.safetensors") as neighbour:
            save_file(tensors, neighbour)
        write_atomically(self.folder / f"{name}.rows", b"".join(lines))
        sums = {suffix: checksum(self.folder / f"{name}.{suffix}") for suffix in ("safetensors", "rows")}
        return {"name": name, "rows": len(keys), "sums": sums}

    def _name(self, segments: Sequence[Mapping[str, Any]]) -> None:
        body = {"kind": "store", "space": self._space.to_json(), "segments": list(segments)}
        write_sealed(self.folder / HEAD, body)

    def _merge(self, start: int) -> None:
        """Make one segment of those from `start` on; held under the lock."""
        head = list(self._head().values())
        tail = [self._segments.get(each["name"]) or _opened(self.folder, each["name"], each) for each in head[start:]]
        places: dict[bytes, tuple[int, int]] = {}
        gone: set[bytes] = set()
        for number, segment in enumerate(tail):
            gone.update(segment.gone)
            for key in segment.gone:
                places.pop(key, None)
            for row, key in enumerate(segment.ids):
                places[key] = (number, row)
        keys, where = list(places), np.array(list(places.values()), dtype=np.int64).reshape(-1, 2)
        payloads = [tail[number].payload(row) for number, row in where.tolist()]
        # What lies before may hold older rows of the same ids.
        kept = sorted(gone - places.keys()) if start else []
        about = self._write(keys, payloads, _gathered(tail, where, self._space.dim), kept)
        self._name([*head[:start], about])
        self._tidy()

    def _tidy(self) -> None:
        """Remove files that the head does not name: merged, or left by a writer that was killed; held under the lock."""
        named = self._head()
        for path in self.folder.iterdir():
            if path.suffix in (".safetensors", ".rows", ".tmp") and path.stem not in named:
                path.unlink(missing_ok=True)


class _Whole:
    """The vectors of a version by position: mapped, and read when they are asked for."""

    def __init__(self, segments: Sequence[_Segment], where: np.ndarray, dim: int):
        self._segments, self._where, self._dim = segments, where, dim

    def __len__(self) -> int:
        return len(self._where)

    @property
    def dim(self) -> int:
        return self._dim

    def take(self, places: np.ndarray | slice) -> np.ndarray:
        return _gathered(self._segments, self._where[places], self._dim)


def _key(id: str) -> bytes:
    return bytes.fromhex(check_id(id))


def _packed(keys: Sequence[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, 16).copy()


def _unpacked(array: np.ndarray) -> list[bytes]:
    raw = array.tobytes()
    return [raw[n : n + 16] for n in range(0, len(raw), 16)]


def _many(sizes: Sequence[int]) -> int | None:
    """Where the segments begin that should become one; None if there are not enough of about one size at the end."""
    classes = [int(math.log(max(size, 1), GROWTH)) for size in sizes]
    start = len(classes)
    while start and classes[start - 1] <= classes[-1]:
        start -= 1
    return start if len(classes) - start >= MERGED_AT else None


def _opened(folder: Path, name: str, about: Mapping[str, Any]) -> _Segment:
    """Read a segment after comparing both files with their checksums."""
    for suffix, said in about["sums"].items():
        path = folder / f"{name}.{suffix}"
        if checksum(path) != said:
            raise ArtifactError(f"{path} has changed since it was written: build the index again with --rebuild")
    path = folder / f"{name}.safetensors"
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        tensors = json.loads(file.read(length))
    mapped = {key: _mapped(path, 8 + length, tensors[key]) for key in ("vectors", "ids", "gone", "starts")}
    text = (
        np.memmap(folder / f"{name}.rows", np.uint8, "r") if (folder / f"{name}.rows").stat().st_size else np.zeros(0, np.uint8)
    )
    return _Segment(name, mapped["vectors"], _unpacked(mapped["ids"]), _unpacked(mapped["gone"]), mapped["starts"], text)


_NUMPY = {"F32": np.float32, "F16": np.float16, "U8": np.uint8, "I64": np.int64}


def _mapped(path: Path, base: int, about: Mapping[str, Any]) -> np.ndarray:
    """A tensor of a safetensors file where it lies; `safe_open` would read it into memory."""
    begin, end = about["data_offsets"]
    shape, kind = tuple(about["shape"]), _NUMPY[about["dtype"]]
    if begin == end:
        return np.zeros(shape, kind)
    return np.memmap(path, kind, "r", base + begin, shape)
