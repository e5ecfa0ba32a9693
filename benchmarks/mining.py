"""Time and memory of exact retrieval: the nearest 50 of a whole pool for every query of a training set.

    python -m benchmarks.mining --out benchmarks/mining_<hardware>_<date>.md
    python -m benchmarks.mining --queries 4000 --pool 40000 --rounds 3

**Time.** The floor is the bare product in float32 of the same blocks, `numpy.matmul` into memory that is there already. Every
contender starts at unit vectors in memory and ends with ids and scores. Everything is run once per round, in an order that
rotates; medians are over rounds, after a smaller run that is not counted.

**Agreement.** For some queries, the products with the whole pool are made in float64 and sorted: recall is the share of these
nearest 50 that a contender found in its last round, and the ids of `hardwon` must be the same, in the same order.

**Memory.** Each contender once more, in a process of its own, as `benchmarks.losses` measures it: the largest resident memory
while it runs, less the resident memory just before; ids and scores are part of it. An index of faiss holds a copy of the pool;
building it is part of its memory and not of its time.

**Contenders.** `hardwon` is `hardwon.search.retrieve`, which checks the vectors, scores what float32 proposes again in float64,
and orders ties by id. faiss: `IndexFlatIP.search`, and `faiss.knn` on the arrays, both in float32 alone.
"""

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.losses import MIB, ROOT, describe, resident
from hardwon.search import retrieve

K, BLOCK, CHECKED = 50, 1024, 100  # nearest asked for; queries at a time; queries that are checked in float64
COLUMNS = 8192  # of the pool, multiplied at a time for the floor
COLUMN_NAMES = ("contender", "median s", "x floor", "recall@50", "MiB")

Ids = np.ndarray
Run = Callable[[], Ids]


@dataclass(frozen=True)
class Row:
    """What was measured of one contender.

    Attributes:
        contender: name.
        seconds: of each round.
        floor: median seconds of the bare product.
        recall: share of the true nearest that it found; None for the floor.
        mib: memory above the inputs; None where it was not measured.
    """

    contender: str
    seconds: tuple[float, ...]
    floor: float
    recall: float | None = None
    mib: float | None = None

    @property
    def cells(self) -> tuple[str, ...]:
        """The columns of the table."""
        middle = statistics.median(self.seconds)
        cells = ((middle, ".2f"), (middle / self.floor, ".3f"), (self.recall, ".4f"), (self.mib, ",.0f"))
        return self.contender, *("" if number is None else format(number, form) for number, form in cells)


def make_vectors(count: int, width: int, seed: int) -> np.ndarray:
    """Vectors as a trained model places them: 64 directions matter, the others hold a little."""
    rng = np.random.default_rng(seed)
    spread = np.random.default_rng(0).standard_normal((64, width), dtype=np.float32)
    made = np.empty((count, width), dtype=np.float32)
    for start in range(0, count, 16_384):
        part = made[start : start + 16_384]
        part[:] = rng.standard_normal((len(part), 64), dtype=np.float32) @ spread
        part += rng.standard_normal(part.shape, dtype=np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return made


def products(queries: np.ndarray, pool: np.ndarray) -> Ids:
    room = np.empty((BLOCK, COLUMNS), dtype=np.float32)
    for start in range(0, len(queries), BLOCK):
        some = queries[start : start + BLOCK]
        for first in range(0, len(pool), COLUMNS):
            part = pool[first : first + COLUMNS]
            np.matmul(some, part.T, out=room[: len(some), : len(part)])
    return np.empty((0, K), dtype=np.int64)


def ours(queries: np.ndarray, pool: np.ndarray) -> Ids:
    return retrieve(queries, pool, K, block=BLOCK).ids


def flat(queries: np.ndarray, pool: np.ndarray) -> Ids:
    import faiss

    index = faiss.IndexFlatIP(pool.shape[1])
    index.add(pool)
    return index.search(queries, K)[1]


def knn(queries: np.ndarray, pool: np.ndarray) -> Ids:
    import faiss

    return faiss.knn(queries, pool, K, metric=faiss.METRIC_INNER_PRODUCT)[1]


FLOOR, OURS, FLAT, KNN = "floor: numpy.matmul", "hardwon retrieve", "faiss IndexFlatIP", "faiss knn"
CONTENDERS: dict[str, Callable[[np.ndarray, np.ndarray], Ids]] = {FLOOR: products, OURS: ours, FLAT: flat, KNN: knn}


def prepared(name: str, queries: np.ndarray, pool: np.ndarray) -> Run:
    """A contender without what is not part of its time."""
    if name != FLAT:
        return lambda: CONTENDERS[name](queries, pool)
    import faiss

    index = faiss.IndexFlatIP(pool.shape[1])
    index.add(pool)
    return lambda: index.search(queries, K)[1]


def truth(queries: np.ndarray, pool: np.ndarray) -> Ids:
    """The nearest of some queries by products in float64, ties by id."""
    wide, step = queries.astype(np.float64), 65_536
    scores = np.concatenate([wide @ pool[n : n + step].T.astype(np.float64) for n in range(0, len(pool), step)], axis=1)
    scores = scores.astype(np.float32)
    return np.stack([np.lexsort((np.arange(len(row)), -row))[:K] for row in scores])


def time_all(names: Sequence[str], queries: np.ndarray, pool: np.ndarray, rounds: int) -> list[Row]:
    """Medians of interleaved rounds, the floor among them."""
    few, little = queries[: BLOCK // 4], pool[: 2 * COLUMNS]
    for name in names:
        CONTENDERS[name](few, little)
    runs = {name: prepared(name, queries, pool) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    found: dict[str, Ids] = {}
    for n in range(rounds):
        shift = n % len(runs)
        for name in [*runs][shift:] + [*runs][:shift]:
            gc.collect()
            start = time.perf_counter()
            found[name] = runs[name]()
            seconds[name].append(time.perf_counter() - start)
    picked = np.linspace(0, len(queries) - 1, min(CHECKED, len(queries))).astype(int)
    right = truth(queries[picked], pool)
    if OURS in found and not np.array_equal(found[OURS][picked], right):
        sys.exit("hardwon retrieve gives other ids, or another order, than products in float64")
    floor = statistics.median(seconds[FLOOR])
    scores = {name: None if name == FLOOR else recall(found[name][picked], right) for name in names}
    return [Row(name, tuple(seconds[name]), floor, scores[name]) for name in names]


def recall(found: Ids, right: Ids) -> float:
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found.tolist(), right.tolist(), strict=True)]))


def with_memory(row: Row, asked: argparse.Namespace) -> Row:
    """The row with its memory, measured in a process of its own; as it is where the system does not tell."""
    if row.contender == FLOOR or not Path("/proc/self/clear_refs").exists():
        return row
    options = f"-m benchmarks.mining --queries {asked.queries} --pool {asked.pool} --width {asked.width} --memory-of".split()
    run, environment = [sys.executable, *options, row.contender], {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(MIB)}
    said = subprocess.run(run, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    return replace(row, mib=float(said.split()[-1]))


def measure_here(name: str, queries: np.ndarray, pool: np.ndarray) -> float:
    """MiB above the inputs, in this process, which has done nothing else. An eighth of the queries needs what all need."""
    CONTENDERS[name](queries[:BLOCK], pool[:COLUMNS])
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    kept = CONTENDERS[name](queries[: max(BLOCK, len(queries) // 8)], pool)
    largest = (resident("VmHWM") - before) / 1024
    rest = len(queries) - len(kept)
    return largest + rest * K * 12 / MIB  # ids and scores of the others


def title(asked: argparse.Namespace) -> str:
    return f"top {K} of {asked.pool:,} for {asked.queries:,} queries, d = {asked.width}, float32"


def main(arguments: Sequence[str]) -> None:
    """Measure, show, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mining", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--queries", type=int, default=20_000)
    parser.add_argument("--pool", type=int, default=200_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=[*CONTENDERS], default=[*CONTENDERS], help="contenders besides the floor")
    parser.add_argument("--out", type=Path, nargs="+", default=[], help="FILE.md: the table; FILE.jsonl: a line for every row")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)  # processes of their own are started with this
    asked = parser.parse_args(arguments)
    queries, pool = make_vectors(asked.queries, asked.width, 1), make_vectors(asked.pool, asked.width, 2)
    if asked.memory_of:
        print(measure_here(asked.memory_of, queries, pool))
        return
    if bad := [str(path) for path in asked.out if path.suffix not in (".md", ".jsonl")]:
        parser.error(f"--out takes .md and .jsonl files, not {', '.join(bad)}")
    names = [FLOOR, *(name for name in CONTENDERS if name in asked.only and name != FLOOR)]
    about = describe(arguments, "mining", "src/hardwon/search")
    rows = time_all(names, queries, pool, asked.rounds)
    del queries, pool
    rows = [with_memory(row, asked) for row in rows]
    table = Table(title=title(asked))
    for n, column in enumerate(COLUMN_NAMES):
        table.add_column(column, justify="right" if n else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row.cells)
    Console(highlight=False, width=140).print(table)
    for path in asked.out:
        lines = [json.dumps({**asdict(row), "size": title(asked), **about}) + "\n" for row in rows]
        path.write_text(as_markdown(rows, asked, about) if path.suffix == ".md" else "".join(lines))


def as_markdown(rows: Sequence[Row], asked: argparse.Namespace, about: dict[str, str]) -> str:
    """The whole result as a page."""
    lines = ["# Time and memory of exact retrieval", "", *(f"- {key}: {value}" for key, value in about.items())]
    lines += ["", f"## {title(asked)}", "", f"| {' | '.join(COLUMN_NAMES)} |", "|---|---:|---:|---:|---:|"]
    lines += [f"| {' | '.join(row.cells)} |" for row in rows]
    lines += [
        "",
        "Medians of interleaved rounds against the bare product; MiB above queries and pool, ids and scores included.",
    ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main(sys.argv[1:])
