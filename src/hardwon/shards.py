"""Work in shards: files that any number of processes, on any number of machines with one file system, claim one by one.

A job is a folder:

    task.json                     what is to be done with a shard, for whoever comes to help
    todo/NAME                     rows of a shard as JSON lines; NAME is the hash of them
    claimed/NAME@WORKER           the same file, while a worker is at it: claiming is renaming, which only one can do
    done/NAME-SHA256.safetensors  what came out; the name says whether the bytes are whole
    failed/NAME.json              why nothing came out

Nothing is kept anywhere else, so any process can be killed at any moment. The claim of a worker that died, or that was not
heard of for the time of a lease, is renamed back to `todo`, again by one only. A worker that was given up and goes on all the
same does no harm: its output has the same content and so the same name, or lies beside the other, and the first is taken.
"""

import contextlib
import functools
import hashlib
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load as tensors_of
from safetensors.numpy import save as bytes_of

from hardwon.artifacts import checksum_of, fingerprint, write_atomically, write_json
from hardwon.errors import ArtifactError

LEASE_S = 60.0
DEATHS = 5  # workers that may die over one shard before it is given up
POLL_S = 0.05
TASK = "task.json"


@dataclass(frozen=True)
class Output:
    """What came of a shard.

    Attributes:
        arrays: by name; a row for each row of the shard.
        notes: texts by name.
    """

    arrays: Mapping[str, np.ndarray]
    notes: Mapping[str, str] = field(default_factory=dict)


Work = Callable[[list[Any]], Output]  # of the rows of a shard


class Job:
    """A folder of shards.

    Args:
        folder: shared by all workers.
        lease_s: seconds without a sign of life after which a claim is given up, if one cannot see that its worker has died.
        task: what is to be done with a shard, if this process is one that collects.
    """

    def __init__(self, folder: Path, lease_s: float = LEASE_S, task: Mapping[str, Any] | None = None):
        self.folder, self.lease_s, self.task = folder, lease_s, task
        self.todo, self.claimed, self.done, self.failed = (folder / name for name in ("todo", "claimed", "done", "failed"))

    @classmethod
    def create(cls, folder: Path, task: Mapping[str, Any], lease_s: float = LEASE_S) -> "Job":
        """The job of a task; `task` stands in `task.json`."""
        job = cls(folder, lease_s, {**task, "lease_s": lease_s})
        job._make()
        write_json(folder / TASK, job.task)
        return job

    @classmethod
    def open(cls, folder: Path) -> tuple["Job", dict[str, Any]]:
        """A job that is there, and its task.

        Raises:
            ArtifactError: there is none.
        """
        try:
            task = json.loads((folder / TASK).read_text(encoding="utf-8"))
            return cls(folder, float(task.pop("lease_s"))), task
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"{folder} holds no work ({error}): name the folder that `--workers` has printed") from error

    def stand(self) -> None:
        """Put the folder up again, if another process that collects the same has cleared it away at its own end."""
        if self.task is not None and not (self.folder / TASK).exists():
            self._make()
            write_json(self.folder / TASK, self.task)

    def _make(self) -> None:
        for folder in (self.todo, self.claimed, self.done, self.failed):
            folder.mkdir(parents=True, exist_ok=True)

    def put(self, rows: Sequence[Any]) -> str:
        """Have a shard worked at, unless that was done or begun; its name."""
        name = name_of(rows)
        if not self.known(name):
            self._make()
            write_atomically(self.todo / name, _lines(rows))
        return name

    def known(self, name: str) -> bool:
        """Whether a shard is anywhere; looked for twice, since it may move meanwhile."""
        for _ in range(2):
            if self._output(name) or (self.failed / f"{name}.json").exists() or (self.todo / name).exists():
                return True
            if any(self.claimed.glob(f"{name}@*")):
                return True
        return False

    def claim(self, worker: str, names: Collection[str] | None = None) -> "Claim | None":
        """The next shard that nobody is at; None if there is none.

        Args:
            worker: see `worker_id`.
            names: only one of these.
        """
        for name in sorted(_names(self.todo)):
            if names is not None and name not in names:
                continue
            mine = self.claimed / f"{name}@{worker}"
            with contextlib.suppress(FileNotFoundError):  # somebody else was quicker
                os.utime(self.todo / name)  # before it is claimed: an old file must not look like an old claim
                (self.todo / name).rename(mine)
                return Claim(self, name, mine)
        return None

    def recover(self) -> int:
        """Put back what dead or silent workers have claimed; how many shards that were."""
        found, now = 0, None
        for entry in _names(self.claimed):
            name, _, worker = entry.partition("@")
            path = self.claimed / entry
            if not _died(worker):
                now = self._now() if now is None else now
                with contextlib.suppress(FileNotFoundError):
                    if now - path.stat().st_mtime <= self.lease_s:
                        continue
            with contextlib.suppress(FileNotFoundError):
                if self._output(name):  # killed between writing and forgetting the claim
                    path.unlink()
                    continue
                path.rename(self.todo / name)
                found += 1
                self._count_death(name)
        return found

    def _count_death(self, name: str) -> None:
        deaths = self.failed / f"{name}.deaths"
        with open(deaths, "ab") as file:
            file.write(b"x")
        if deaths.stat().st_size >= DEATHS:
            self.give_up(name, "died", f"{DEATHS} workers died over it (killed for want of memory?)")
            (self.todo / name).unlink(missing_ok=True)

    def give_up(self, name: str, kind: str, reason: str) -> None:
        """Say that nothing will come of a shard."""
        write_json(self.failed / f"{name}.json", {"kind": kind, "reason": reason})

    def failure(self, name: str) -> tuple[str, str] | None:
        """Kind ("error", "died") and reason, if nothing came of a shard."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            told = json.loads((self.failed / f"{name}.json").read_text(encoding="utf-8"))
            return told["kind"], told["reason"]
        return None

    @property
    def begun(self) -> bool:
        """Whether anybody is at a shard, or was when it died."""
        return bool(_names(self.claimed))

    def idle(self, names: Collection[str] | None = None) -> bool:
        """Whether nothing is left to do or under way."""
        return not any(
            names is None or entry.partition("@")[0] in names
            for folder in (self.todo, self.claimed)
            for entry in _names(folder)
        )

    def write(self, name: str, output: Output) -> None:
        """Keep what came of a shard, for good when this returns."""
        data = bytes_of({k: np.ascontiguousarray(v) for k, v in output.arrays.items()}, dict(output.notes) or None)
        write_atomically(self.done / f"{name}-{checksum_of(data)}.safetensors", data)

    def output(self, name: str) -> Output | None:
        """What came of a shard; a file that is damaged is put aside, as if it had never been."""
        for path in self._output(name):
            data = path.read_bytes()
            if checksum_of(data) == path.stem.partition("-")[2]:
                head = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
                return Output(tensors_of(data), head.get("__metadata__", {}))
            path.rename(path.with_name(f"{path.name}.damaged"))
        return None

    def forget(self, name: str) -> None:
        """Remove what came of a shard, once it is kept elsewhere."""
        for path in (*self._output(name), *self.failed.glob(f"{name}.*")):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove the folder, unless others still work there."""
        if self.idle():
            shutil.rmtree(self.folder, ignore_errors=True)

    def _output(self, name: str) -> list[Path]:
        return sorted(self.done.glob(f"{name}-*.safetensors"))

    def _now(self) -> float:
        """The time on the clock that the files have; that of another machine may differ from ours."""
        clock = self.folder / f".clock-{worker_id()}"
        clock.touch()
        try:
            return clock.stat().st_mtime
        finally:
            clock.unlink(missing_ok=True)


@dataclass(frozen=True)
class Claim:
    """A shard that a worker is at."""

    job: Job
    name: str
    path: Path

    def rows(self) -> list[Any]:
        """Its rows.

        Raises:
            ArtifactError: they are not what they were when they were written.
        """
        data = self.path.read_bytes()
        if _hash(data) != self.name:
            raise ArtifactError(f"{self.path} has changed since it was written")
        return [json.loads(line) for line in data.splitlines()]

    @contextlib.contextmanager
    def alive(self) -> Iterator[None]:
        """Give signs of life until the block ends."""
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(self.job.lease_s / 4):
                with contextlib.suppress(OSError):
                    os.utime(self.path)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def end(self) -> None:
        """Forget the claim."""
        self.path.unlink(missing_ok=True)


def work(job: Job, do: Work, *, names: Collection[str] | None = None, go_on: Callable[[], bool] = lambda: True) -> int:
    """Work at shards until none is left that anybody could have to do; how many were done here.

    Args:
        job: where they are.
        do: what is done with the rows of one.
        names: only these shards.
        go_on: asked before each shard.
    """
    worker, count = worker_id(), 0
    while go_on():
        claim = job.claim(worker, names)
        if claim is not None:
            count += _do(job, claim, do)
        elif not job.recover():
            if job.idle(names):
                break
            time.sleep(POLL_S)  # somebody is still at one, and may die
    return count


def _do(job: Job, claim: Claim, do: Work) -> bool:
    try:
        if job.output(claim.name) is None:
            with claim.alive():
                job.write(claim.name, do(claim.rows()))
    except Exception as error:  # whatever it is: who asked for the shard does it again, and gets to see it
        job.give_up(claim.name, "error", f"{type(error).__name__}: {error}")
    claim.end()
    return True


def name_of(rows: Sequence[Any]) -> str:
    """Name of a shard: equal rows give equal names."""
    return _hash(_lines(rows))


def folder_of(below: Path, task: Mapping[str, Any]) -> Path:
    """Where the job of a task belongs: equal tasks share their folder, so that interrupted work is found again."""
    return below / f"{task['kind']}-{fingerprint(task)[:16]}"


@functools.cache
def _host() -> str:
    """This machine, or container, as far as numbers of processes mean anything."""
    parts = [socket.gethostname()]
    for place in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        with contextlib.suppress(OSError):
            parts.append(str(Path(place).readlink()) if "ns" in place else Path(place).read_text())
    return hashlib.blake2b("|".join(parts).encode(), digest_size=6).hexdigest()


def _born(pid: int) -> str:
    """When a process began, so that another one with its number is not taken for it; "" if that cannot be known."""
    with contextlib.suppress(OSError, IndexError):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "dead" if state[0] in "ZX" else state[19]
    return ""


def worker_id() -> str:
    """This process, on whichever machine."""
    return f"{_host()}.{os.getpid()}.{_born(os.getpid())}"


def _died(worker: str) -> bool:
    """Whether one can see that a worker is no more; of one elsewhere one cannot."""
    host, _, process = worker.partition(".")
    pid, _, born = process.partition(".")
    if host != _host() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return _born(int(pid)) != born


def _names(folder: Path) -> list[str]:
    try:
        return [path.name for path in folder.iterdir() if path.suffix != ".tmp"]
    except FileNotFoundError:
        return []


def _lines(rows: Sequence[Any]) -> bytes:
    return b"".join(json.dumps(row, sort_keys=True).encode("ascii") + b"\n" for row in rows)


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
