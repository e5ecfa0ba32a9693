"""Artifacts: folders that stages write and read, with a manifest that says what made them.

A stage writes its files into `path`; `manifest.json` is written last, atomically, with a checksum of every file. So a
folder without a manifest is unfinished, and one whose files do not match it is damaged. Work that was interrupted is
found again by the fingerprint of its inputs, kept in `started.json` while the work is under way. An artifact that was
finished at the same place before lies beside it until then, as `.NAME.before`.
"""

import contextlib
import datetime
import errno
import fcntl
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from hardwon.errors import ArtifactError

MANIFEST, STARTED = "manifest.json", "started.json"
VERSIONS_OF = ("hardwon", "torch", "transformers", "sentence-transformers", "numpy", "faiss-cpu")


def plain(value: Any) -> Any:
    """`value` as JSON knows it: dataclasses become objects with their type's name, paths become strings."""
    if is_dataclass(value) and not isinstance(value, type):
        return {"type": type(value).__name__} | {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (set, frozenset)):
        return sorted(plain(v) for v in value)
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TypeError(f"{type(value).__name__} has no place in a manifest")


def fingerprint(value: Any) -> str:
    """Hash of anything that `plain` understands, 32 hexadecimal digits; the order of keys plays no part."""
    text = json.dumps(plain(value), sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def checksum(path: Path) -> str:
    """sha256 of a file, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum_of(data: bytes) -> str:
    """`checksum` of a file that holds these bytes."""
    return hashlib.sha256(data).hexdigest()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file beside `path` to write into: flushed to disk and renamed over it when the block ends without an exception.

    Its name is used once, so that two processes (of two machines, even) can write the same target: the last one stays.
    """
    neighbour = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        yield neighbour
        with open(neighbour, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(neighbour, path)
    finally:
        neighbour.unlink(missing_ok=True)


def write_atomically(path: Path, data: str | bytes) -> None:
    """Write a whole file or nothing: to a neighbour first, flushed to disk, then renamed over the target."""
    with replacing(path) as neighbour:
        neighbour.write_bytes(data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data)


def write_json(path: Path, value: Any) -> None:
    """`write_atomically` for JSON."""
    write_atomically(path, json.dumps(plain(value), indent=1, sort_keys=True, ensure_ascii=False) + "\n")


@dataclass(frozen=True)
class Manifest:
    """What made an artifact.

    Attributes:
        kind: what the folder holds ("model", "negatives", "report" ...).
        inputs: the resolved recipe of the stage and the fingerprints of its parents.
        files: checksum (sha256) of every file, by path relative to the folder.
        stats: what the stage wants to be known (counts, seconds, losses).
        made: versions of packages, hardware, when and in how many seconds.
    """

    kind: str
    inputs: dict[str, Any]
    files: dict[str, str]
    stats: dict[str, Any] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Identity of the content: changes when any file of the artifact does."""
        return fingerprint([self.kind, self.files])


@dataclass
class Draft:
    """An artifact that is being written.

    Attributes:
        path: the folder to write into.
        resumed: whether an interrupted run with the same inputs left its files here.
        stats: filled by the stage; copied into the manifest.
    """

    path: Path
    resumed: bool
    stats: dict[str, Any]


def load(path: Path, kind: str | None = None, *, verify: bool = True) -> Manifest:
    """The manifest of a finished artifact.

    Raises:
        ArtifactError: unfinished, of another kind, or (with `verify`) a file that is missing or has changed.
    """
    try:
        manifest = Manifest(**json.loads((path / MANIFEST).read_text(encoding="utf-8")))
    except FileNotFoundError:
        state = "is unfinished" if (path / STARTED).exists() else "is not an artifact" if path.exists() else "does not exist"
        kept = f"; what it held before lies in {_before(path)}" if _ours(_before(path)) else ""
        raise ArtifactError(f"{path} {state}: run the stage that makes it (again){kept}") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{path / MANIFEST} cannot be read ({error}): delete {path} and run its stage again") from error
    if not all(isinstance(part, dict) for part in (manifest.inputs, manifest.files, manifest.stats, manifest.made)):
        raise ArtifactError(f"{path / MANIFEST} is no manifest: delete {path} and run its stage again")
    if kind is not None and manifest.kind != kind:
        raise ArtifactError(f"{path} holds a {manifest.kind}, not a {kind}")
    if verify:
        for name, digest in manifest.files.items():
            if not (path / name).is_file():
                raise ArtifactError(f"{path / name} is missing: delete {path} and run its stage again")
            if checksum(path / name) != digest:
                raise ArtifactError(f"{path / name} has changed since it was written: delete {path} and run its stage again")
    return manifest


def finished(path: Path, kind: str, inputs: Any) -> Manifest | None:
    """The manifest if the artifact is complete, undamaged and made from these inputs, else None."""
    try:
        manifest = load(path, kind)
    except ArtifactError:
        return None
    return manifest if fingerprint(manifest.inputs) == fingerprint(inputs) else None


def started(path: Path, kind: str, inputs: Any) -> bool:
    """Whether an artifact was begun from these inputs and is not finished."""
    return _read_started(path) == {"kind": kind, "inputs": fingerprint(plain(inputs))}


@contextlib.contextmanager
def writing(path: Path, kind: str, inputs: Any) -> Iterator[Draft]:
    """Write an artifact: the manifest is added when the block ends without an exception.

    What an interrupted run with the same inputs left is kept (`Draft.resumed`); anything else in the folder makes room, but
    only if the folder is an artifact or empty: a folder of the user's own is never touched. A finished artifact is moved
    aside and removed when its successor is finished, so there is always a whole one (and, meanwhile, room for two is needed).

    Raises:
        ArtifactError: the folder is the user's own, or another process is writing there from other inputs.
    """
    inputs = plain(inputs)
    started = {"kind": kind, "inputs": fingerprint(inputs)}
    resumed = True

    def prepare() -> None:
        nonlocal resumed
        resumed = _read_started(path) == started
        if not resumed:
            _clear(path, aside=_before(path))
            path.mkdir(parents=True, exist_ok=True)
            write_json(path / STARTED, started)

    with _alone(path, fingerprint(started), prepare):
        draft = Draft(path, resumed, {})
        yield from _written(draft, kind, inputs)


def _written(draft: Draft, kind: str, inputs: Any) -> Iterator[Draft]:
    path, resumed, clock = draft.path, draft.resumed, time.perf_counter()
    yield draft
    files = {
        str(file.relative_to(path)): checksum(file)
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name not in (STARTED, MANIFEST) and not file.name.endswith(".tmp")
    }
    made = environment() | {"seconds": round(time.perf_counter() - clock, 1), "resumed": resumed}
    write_json(path / MANIFEST, asdict(Manifest(kind, inputs, files, plain(draft.stats), made)))
    (path / STARTED).unlink(missing_ok=True)  # another process may have written the very same beside us
    if _ours(_before(path)):
        _remove(_before(path))


@contextlib.contextmanager
def _alone(path: Path, what: str, prepare: Callable[[], None]) -> Iterator[None]:
    """While this lasts, no other process writes anything else at `path`; one that writes the very same may.

    The lock ends with the process that holds it, however that ends. `prepare` is called by the first of several, before any
    other may begin.

    Raises:
        ArtifactError: another process writes something else there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.parent / f".{path.name}.lock"
    while True:
        file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            first = _locked(file, fcntl.LOCK_EX)
            if not (first or _locked(file, fcntl.LOCK_SH)) or not _is_still(lock, file):
                time.sleep(0.005)  # another one is just beginning or ending
                continue
            if first:
                os.ftruncate(file, 0)
                os.pwrite(file, what.encode(), 0)
                prepare()
                _locked(file, fcntl.LOCK_SH)
            elif os.pread(file, 64, 0).decode("ascii", "replace") != what:
                raise ArtifactError(f"{path} is being written by another process, from other inputs: wait for its end")
            try:
                yield
            finally:
                if _locked(file, fcntl.LOCK_EX):  # nobody else writes the same
                    lock.unlink(missing_ok=True)
            return
        finally:
            os.close(file)


def _locked(file: int, how: int) -> bool:
    """Whether a file could be locked now. Where the file system knows no locks, it counts as locked."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
    return True


def _is_still(lock: Path, file: int) -> bool:
    try:
        return os.stat(lock).st_ino == os.fstat(file).st_ino
    except FileNotFoundError:
        return False


def describe(path: Path, kind: str, inputs: Any, stats: Mapping[str, Any], files: Mapping[str, str]) -> None:
    """Write the manifest of a folder that is no draft; arguments as in `Manifest`. In a draft, its own replaces it."""
    write_json(path / MANIFEST, asdict(Manifest(kind, plain(inputs), dict(files), plain(stats), environment())))


class Growing:
    """The manifest of a folder that several runs add files to, and that is of use before it is finished, if it ever is.

    Each run that ends writes the manifest anew, with the checksums of the files that it has read or written. Files that a
    manifest does not name have come later; they are used as they are.

    Args:
        path: the folder.
        kind: as in `Manifest`.
        inputs: as in `Manifest`: what all its files were made from.

    Attributes:
        stats: as in the manifest that is there, JSON; empty if there is none.
    """

    def __init__(self, path: Path, kind: str, inputs: Any):
        self.path, self.kind, self.inputs = path, kind, plain(inputs)
        self._sums: dict[str, tuple[str, int]] = {}  # with the time of the file that was looked at
        self._said: dict[str, str] = {}
        self.stats: dict[str, Any] = {}
        with contextlib.suppress(ArtifactError):
            there = load(path, kind, verify=False)
            self._said, self.stats = there.files, there.stats

    def whole(self, name: str) -> bool:
        """Whether a file is what the manifest says. One that is not is renamed to NAME.damaged, where nobody reads it."""
        file = self.path / name
        time_ns, found = file.stat().st_mtime_ns, checksum(file)
        if self._said.get(name, found) != found:
            file.replace(file.with_name(f"{name}.damaged"))
            return False
        self._sums[name] = found, time_ns
        return True

    def wrote(self, name: str) -> None:
        """A file was written just now, whatever the manifest says of one of that name."""
        self._said.pop(name, None)
        self._sums[name] = checksum(self.path / name), (self.path / name).stat().st_mtime_ns

    def write(self, stats: Mapping[str, Any]) -> None:
        """Write the manifest, if it would say anything new."""
        files = {}
        for name, (found, time_ns) in sorted(self._sums.items()):
            with contextlib.suppress(FileNotFoundError):
                now = (self.path / name).stat().st_mtime_ns  # another run may have written the very same rows
                files[name] = found if now == time_ns else checksum(self.path / name)
        told = plain(stats)
        if (files, told) != (self._said, self.stats) or not (self.path / MANIFEST).exists():
            describe(self.path, self.kind, self.inputs, told, files)
            self._said, self.stats = files, told


def _before(path: Path) -> Path:
    return path.parent / f".{path.name}.before"


def _read_started(path: Path) -> dict[str, Any] | None:
    try:
        started = json.loads((path / STARTED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return started if isinstance(started, dict) else None


def _clear(path: Path, aside: Path | None = None) -> None:
    """Leave nothing at `path`; what was finished is moved to `aside`, if that is given."""
    if not path.exists():
        return
    if path.is_symlink() or not path.is_dir():
        raise ArtifactError(f"{path} is a {'link' if path.is_symlink() else 'file'}; choose another folder")
    if any(path.iterdir()) and not _ours(path):
        raise ArtifactError(f"{path} is not empty and was not made by hardwon; choose another folder or empty it")
    if aside is not None and (path / MANIFEST).exists():
        _clear(aside)
        path.rename(aside)
    else:
        _remove(path)


def _remove(path: Path) -> None:
    """Remove a folder of ours, that which says so last: what is left when this is interrupted is still known to be ours."""
    for inside in path.iterdir():
        if inside.is_dir() and not inside.is_symlink():
            shutil.rmtree(inside)
        elif inside.name not in (MANIFEST, STARTED):
            inside.unlink()
    shutil.rmtree(path)


def _ours(path: Path) -> bool:
    """Whether hardwon made the folder. Others write a manifest.json too, so the beginning is looked at: damage spares it."""
    if "inputs" in (_read_started(path) or {}):
        return True
    try:
        return (path / MANIFEST).read_text(encoding="utf-8", errors="replace").startswith('{\n "files": {')
    except OSError:
        return False


@functools.cache
def code() -> str:
    """Hash of the package's source files, 32 hexadecimal digits: changes when the code does, released or not."""
    home, made = Path(__file__).parent, hashlib.blake2b(digest_size=16)
    for file in sorted(home.rglob("*.py")):
        made.update(file.relative_to(home).as_posix().encode() + b"\x00" + file.read_bytes() + b"\x00")
    return made.hexdigest()


def environment() -> dict[str, Any]:
    """Versions, code, machine and time, for manifests and reports."""
    versions = {}
    for package in VERSIONS_OF:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "versions": versions | {"python": platform.python_version()},
        "code": code(),
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count(), "system": platform.system()},
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
