"""Work that is spread over processes which are killed: the workers, the process that collects, and who kills them.

As a program it is a worker with a task of its own (python sharding.py FOLDER --parent PID), or the process that collects
(python sharding.py collect FOLDER ENGINE WORKERS SHARDS PAUSE).
"""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hardwon.artifacts import write_atomically
from hardwon.shards import Output
from hardwon.spread import engines, tasks

ROWS = 1000
HERE = Path(__file__).resolve()


def do(task):
    """The work: a number for each row, by its content alone; begun work is noted."""

    def numbers(rows):
        note(Path(task["log"]), f"{rows[0]['n']} {os.getpid()}")
        time.sleep(task["pause"])
        made = [int(hashlib.sha256(json.dumps(row).encode()).hexdigest()[:8], 16) for row in rows]
        return Output({"numbers": np.array(made, dtype=np.int64), "n": np.array([row["n"] for row in rows])})

    return numbers


def note(log, line):
    """In one write, so that whoever reads sees whole lines."""
    with open(log, "ab", buffering=0) as file:
        file.write(f"{line}\n".encode())


def helping(folder, parent=0):
    """What a worker does, as `hardwon work` with a task that is known here."""
    tasks.TASKS = {"numbers": do}
    return tasks.help_with(Path(folder), parent=parent, wait_s=1000)


def by_ray(folder, threads):
    """The same under Ray."""
    return helping(folder)


def rows_of(count):
    """The rows of all shards."""
    return [[{"n": n, "text": f"row {n}"} for n in range(start, start + ROWS)] for start in range(0, count * ROWS, ROWS)]


def collect(out, engine, workers, count, pause):
    """Keep each shard as it comes, and at the end all of them in one file."""
    engines.COMMAND = (sys.executable, str(HERE))
    kept = out / "kept"
    kept.mkdir(parents=True, exist_ok=True)
    missing = [n for n in range(count) if not (kept / f"{n:04d}.json").exists()]
    everything = rows_of(count)
    task = {"kind": "numbers", "pause": pause, "log": str(out / "log")}
    how = engines.Workers(workers, engine, lease_s=20.0)
    outputs = engines.spread(out / "work", task, rows=[everything[n] for n in missing], workers=how, entry=by_ray)
    for n, output in zip(missing, outputs, strict=True):
        made = [output.arrays["n"].tolist(), output.arrays["numbers"].tolist()]
        write_atomically(kept / f"{n:04d}.json", json.dumps(made))
    whole = [pair for n in range(count) for pair in zip(*json.loads((kept / f"{n:04d}.json").read_text()), strict=True)]
    write_atomically(out / "whole.json", json.dumps(whole))


@dataclass
class Survived:
    """What became of work whose processes were killed.

    Attributes:
        kills: processes that were killed: workers, and those that collect.
        lost: rows that are missing at the end.
        doubled: rows that are there twice.
        redone: shards that were begun again.
        allowed: how many may be: one for each worker that died.
        same: whether the file is byte for byte that of the calm run.
    """

    kills: Counter
    lost: int
    doubled: int
    redone: int
    allowed: int
    same: bool


def start(out, engine, workers, count, pause):
    """The process that collects."""
    out.mkdir(exist_ok=True)
    told = [sys.executable, str(HERE), "collect", str(out), engine, str(workers), str(count), str(pause)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE.parents[1] / "src")]), "OMP_NUM_THREADS": "1"}
    with open(out / "err", "ab") as err:
        return subprocess.Popen(told, env=env, stdout=err, stderr=err, start_new_session=True)


def finish(process, out):
    """Wait for its end."""
    assert process.wait(300) == 0, (out / "err").read_text()[-2000:]


def calm(folder, count):
    """What comes of it when nobody is killed, by one process."""
    finish(start(folder, "local", 1, count, 0.0), folder)
    return (folder / "whole.json").read_bytes()


def at_work(out):
    """Processes that have claimed something."""
    found = {path.name.partition("@")[2].split(".")[1] for path in out.glob("work/*/claimed/*@*")}
    return sorted(int(pid) for pid in found if Path(f"/proc/{pid}").exists())


def begun_in(out):
    """How often each shard was begun."""
    return Counter(line.split()[0] for line in (out / "log").read_text().splitlines()) if (out / "log").exists() else Counter()


def killed(folder, kills, seed, engine, *, workers=2, drivers=0.2, count=None, pause=0.15):
    """Run calmly, and again with `kills` kills at random moments, a share of `drivers` of them of the process that collects."""
    rng, count = random.Random(seed), count or max(10, kills)
    folder.mkdir(parents=True, exist_ok=True)
    truth, out, counted, allowed = calm(folder / "calm", count), folder / "killed", Counter(), 0
    process = start(out, engine, workers, count, pause)
    while counted.total() < kills:
        goal = min((counted.total() + rng.random()) * count / (kills + 1), count - 2)
        deadline = time.monotonic() + 120
        while len(begun_in(out)) < goal or not (found := at_work(out)):
            assert process.poll() is None and time.monotonic() < deadline, (goal, (out / "err").read_text()[-2000:])
            time.sleep(0.002)
        time.sleep(rng.random() * 1.5 * pause)
        if rng.random() < drivers:
            allowed += len(found) if engine == "ray" else 0  # Ray ends the workers of a driver that is gone, in the middle
            os.killpg(process.pid, signal.SIGKILL) if engine == "ray" else process.kill()
            process.wait()
            counted["collecting"] += 1
            process = start(out, engine, workers, count, pause)
            continue
        try:
            os.kill(rng.choice(found), signal.SIGKILL)
        except ProcessLookupError:
            continue
        counted["working"] += 1
        allowed += 1
    finish(process, out)
    whole = json.loads((out / "whole.json").read_bytes())
    numbers = Counter(n for n, _ in whole)
    begun = begun_in(out)
    lost = sum(n not in numbers for n in range(count * ROWS))
    redone = begun.total() - len(begun)
    return Survived(counted, lost, numbers.total() - len(numbers), redone, allowed, (out / "whole.json").read_bytes() == truth)


if __name__ == "__main__":
    if sys.argv[1] == "collect":
        collect(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]), float(sys.argv[6]))
    else:
        helping(sys.argv[1], int(sys.argv[3]))
