"""A real process that mines and is killed again and again: what it was asked to compute, and what came of it."""

import multiprocessing
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import processes

STAGES = {"embed": "embedding", "search": "retrieving", "judge": "judging"}  # words of the log


@dataclass
class Survived:
    """What became of a run that was killed, beside one that was left alone.

    Attributes:
        kills: how often it was killed.
        work: each piece of work that was begun, in order, as a word and the keys of its rows; the same of the calm run.
        repeated: words of the pieces that were begun more than once.
        late: pieces that were begun again although they had not been under way when it was killed.
        lost: words of the pieces of the calm run that the killed one never did, or "order".
        differ: files of the artifact that are not byte for byte the calm run's.
    """

    kills: int
    work: tuple[list[str], list[str]]
    repeated: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    differ: list[str] = field(default_factory=list)


def start(out: Path, pause: float, queries: int):
    """The process, which mines for so many queries and takes its time over each piece of work."""
    out.mkdir(exist_ok=True)
    multiprocessing.set_forkserver_preload(["hardwon.training.run", "sentence_transformers"])  # as `together`
    process = multiprocessing.get_context("forkserver").Process(target=processes.mining, args=(out, pause, queries))
    process.start()
    return process


def finish(out: Path, queries: int) -> None:
    """Let it come to its end."""
    process = start(out, 0.0, queries)
    process.join(300)
    assert process.exitcode == 0


def work(out: Path) -> list[str]:
    """The pieces of work that were begun."""
    return (out / "log").read_text().splitlines() if (out / "log").exists() else []


def killed(folder: Path, kills: int, seed: int, queries: int) -> Survived:
    """Mine once undisturbed, and once killed so many times at random moments."""
    calm, out = folder / "calm", folder / "killed"
    finish(calm, queries)
    rng = np.random.default_rng(seed)
    calmly = work(calm)
    for n in range(kills):
        # Spread over the whole run; then at any moment of that piece or the next.
        goal = min((n + rng.uniform()) * len(calmly) / kills, len(calmly) - 2)
        before = len(work(out))
        process, deadline = start(out, 0.05, queries), time.monotonic() + 120
        while (len(work(out)) == before or len(set(work(out))) < goal) and process.is_alive():
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(float(rng.uniform(0, 0.07)))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "it ended by itself"
    finish(out, queries)
    return compared(kills, calmly, work(out), calm / "artifact", out / "artifact")


def compared(kills: int, calmly: list[str], done: list[str], calm: Path, out: Path) -> Survived:
    """What the two runs did, and what they made."""
    again = [n for n, line in enumerate(done) if line in done[:n]]
    late = [done[n].split()[0] for n in again if done[n] != done[n - 1]]
    names = {path.name for folder in (calm, out) for path in folder.iterdir()} - {"manifest.json"}  # which holds the time
    differ = [n for n in sorted(names) if not (out / n).exists() or (out / n).read_bytes() != (calm / n).read_bytes()]
    once = [line for n, line in enumerate(done) if n not in again]
    lost = [] if once == calmly else [line.split()[0] for line in calmly if line not in once] or ["order"]
    return Survived(kills, (calmly, done), [done[n].split()[0] for n in again], late, lost, differ)
