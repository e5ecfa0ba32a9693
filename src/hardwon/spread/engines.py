"""Who works: processes of this machine, or Ray, which may have others. Either helps with all jobs of a folder."""

import contextlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from hardwon import shards
from hardwon.errors import HardwonError, MissingExtra, RecipeError, unknown
from hardwon.shards import Job, Output

Engine = Literal["local", "ray"]
Entry = Callable[[str, int], int]
PATIENCE_S = 1e6  # workers wait for the next job until they are told to end
FAILURES = 3  # workers that may end one after the other without anything being done

# One thread for each library that has its own: what several workers compute must not depend on how many there are.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "HARDWON_THREADS")


@dataclass(frozen=True)
class Workers:
    """How work is spread.

    What comes of it depends on none of this but `threads`: with another number of threads the last bits of vectors may differ.

    Attributes:
        count: workers at a time.
        engine: "local" for processes of this machine, "ray" for a cluster (or this machine) by Ray.
        threads: of each worker.
        lease_s: see `hardwon.shards.Job`.
    """

    count: int = 1
    engine: Engine = "local"
    threads: int = 1
    lease_s: float = shards.LEASE_S

    def __post_init__(self) -> None:
        if self.engine not in get_args(Engine):
            raise RecipeError(unknown("engine", self.engine, get_args(Engine)))
        for name in ("count", "threads"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} of workers must be at least 1, got {getattr(self, name)}")
        if not self.lease_s > 0:
            raise RecipeError(f"lease_s must be above 0, got {self.lease_s}")


class Crew(Protocol):
    """Workers that were started for the jobs of a folder."""

    def check(self, job: Job) -> None:
        """Replace those that ended before the work did. Raises HardwonError if that leads nowhere."""
        ...

    def stop(self) -> None:
        """End them all."""
        ...


class _Local:
    """Processes of this machine. They end when this one does."""

    def __init__(self, below: Path, workers: Workers):
        self.below, self.workers = below, workers
        self.log = below / "log"
        self.log.mkdir(parents=True, exist_ok=True)
        self.ended = 0
        self.processes = [self._start(n) for n in range(workers.count)]

    def _start(self, n: int) -> subprocess.Popen[bytes]:
        command = [*COMMAND, str(self.below), "--parent", str(os.getpid()), "--wait", str(PATIENCE_S)]
        with open(self.log / f"{os.getpid()}-{n}.txt", "wb") as log:
            env = os.environ | dict.fromkeys(_THREADS, str(self.workers.threads)) | _device(n)
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env)

    def check(self, job: Job) -> None:
        """As `Crew.check`."""
        for n, process in enumerate(self.processes):
            code = process.poll()
            if code is None:
                continue
            # One that is killed at a shard has done nothing wrong: the job counts that. One that never gets so far has: where
            # memory is short, loading the model ends like that every time.
            self.ended = self.ended + 1 if code > 0 or not job.begun else 0
            job.recover()
            if self.ended >= FAILURES * self.workers.count:
                said = (self.log / f"{os.getpid()}-{n}.txt").read_text(errors="replace").strip().splitlines()[-1:]
                told = " ".join(said) or ("killed, for want of memory? Take fewer workers" if code < 0 else "nothing was said")
                raise HardwonError(f"workers in {self.below} end with code {code}: {told}")
            self.processes[n] = self._start(n)

    def stop(self) -> None:
        """As `Crew.stop`."""
        for n, process in enumerate(self.processes):
            process.kill()
            process.wait()
            (self.log / f"{os.getpid()}-{n}.txt").unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # others work here, too
            self.log.rmdir()
            self.below.rmdir()


COMMAND = (sys.executable, "-m", "hardwon.cli", "work")


def _device(n: int) -> dict[str, str]:
    """Each worker sees one of the GPUs."""
    if "torch" not in sys.modules:
        return {}
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {"CUDA_VISIBLE_DEVICES": str(n % count)} if count > 1 and "CUDA_VISIBLE_DEVICES" not in os.environ else {}


class _Ray:
    """Tasks of Ray, which work at shards as long as they are wanted. Ray places them, and starts anew those that are lost.

    What is done and what is not is never Ray's to say: its own checkpoint of a job has redone 2,600 of 4,000 rows.
    """

    def __init__(self, below: Path, workers: Workers, entry: Entry):
        try:
            import ray
        except ImportError as error:
            raise MissingExtra("ray", "ray") from error
        self.ray, self.below = ray, below
        self.own = not ray.is_initialized()
        if self.own:
            cores = None if os.environ.get("RAY_ADDRESS") else workers.count * workers.threads
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING, num_cpus=cores)
        env: Any = {"env_vars": dict.fromkeys(_THREADS, str(workers.threads))}
        gpus = 1 if ray.cluster_resources().get("GPU", 0) >= workers.count else 0
        # -1: a worker that is killed is no fault of the work; a shard over which several die is given up by the job.
        self.task = ray.remote(entry).options(
            num_cpus=workers.threads, num_gpus=gpus, max_retries=-1, runtime_env=env, scheduling_strategy="SPREAD"
        )
        self.threads = workers.threads
        self.running = [self._start() for _ in range(workers.count)]

    def _start(self) -> Any:
        return self.task.remote(str(self.below.resolve()), self.threads)

    def check(self, job: Job) -> None:
        """As `Crew.check`."""
        job.recover()
        ended, self.running = self.ray.wait(self.running, num_returns=len(self.running), timeout=0)
        for one in ended:
            try:
                self.ray.get(one)
            except Exception as error:
                raise HardwonError(f"a worker in {self.below} failed under Ray: {str(error).strip()[-500:]}") from error
            self.running.append(self._start())

    def stop(self) -> None:
        """As `Crew.stop`."""
        for one in self.running:
            self.ray.cancel(one, force=True)
        if self.own:
            self.ray.shutdown()


class _Kept:
    """Crews that stay for several jobs."""

    def __init__(self) -> None:
        self.crews: dict[tuple[Path, Workers], Crew] = {}
        self.open = 0


_KEPT = _Kept()


@contextlib.contextmanager
def keeping() -> Iterator[None]:
    """Within this, workers stay from one job to the next: starting them, and loading a model, takes seconds."""
    _KEPT.open += 1
    try:
        yield
    finally:
        _KEPT.open -= 1
        if not _KEPT.open:
            while _KEPT.crews:
                _KEPT.crews.popitem()[1].stop()


@contextlib.contextmanager
def _crew(below: Path, workers: Workers, entry: Entry) -> Iterator[Crew]:
    with keeping():
        if (below, workers) not in _KEPT.crews:
            made: Crew = _Ray(below, workers, entry) if workers.engine == "ray" else _Local(below, workers)
            _KEPT.crews[below, workers] = made
        yield _KEPT.crews[below, workers]


def spread(
    below: Path,
    task: Mapping[str, Any],
    *,
    rows: Sequence[Sequence[Any]],
    workers: Workers,
    entry: Entry,
    renew: Callable[[], None] = lambda: None,
) -> Iterator[Output | None]:
    """What comes of shards, in their order; None for one that failed, which the caller does itself, to see why.

    Each is forgotten when the next is asked for: keep it before. What an interrupted run has left is used.

    Args:
        below: folder for the folder of the job.
        task: what is done with each; its "kind" is known to `help_with`.
        rows: of each shard.
        workers: who does it.
        entry: what a task of Ray does: help with all jobs below a folder, with so many threads.
        renew: called again and again: puts back what the task names, if another run that needed the same has cleared it away.

    Raises:
        HardwonError: workers that cannot start, or die over a shard again and again.
    """
    job = Job.create(shards.folder_of(below, task), task, workers.lease_s)
    names = [job.put(part) for part in rows]
    with _crew(below, workers, entry) as those:
        for part, name in zip(rows, names, strict=True):
            while True:
                output = job.output(name)
                failed = None if output else job.failure(name)
                if output or failed:
                    break
                those.check(job)
                renew()
                job.stand()
                if not job.known(name):  # damaged, or taken by another run that needed the same
                    job.put(part)
                time.sleep(shards.POLL_S)
            if failed and failed[0] == "died":
                job.forget(name)  # or the next run would be told the same without a try
                raise HardwonError(f"shard {name} of {job.folder} is given up: {failed[1]}. Run again to try once more")
            yield output
            job.forget(name)
    job.close()
