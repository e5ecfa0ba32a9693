r"""What an evaluation costs: encoding calls, overhead beside encoding, and a second run with the same model.

    python -m benchmarks.evaluation --data runs/demo/data --model runs/demo/base/model \
        --out benchmarks/evaluation_<hardware>_<date>.md
    python -m benchmarks.evaluation --queries 100          # a smaller one

**Benchmark.** mmeb-small as the demo makes it (`--data`: a folder that holds it, made there when it does not), all of it or
a sample of `--queries`. **Model.** The small backbone that comes with the project, untrained (`--model`: any other): its cost
does not depend on what it has learned.

**Rows.** "first" starts with an empty store, "second" has what the first one kept, in a new process's memory: the model is
loaded again. Encoding is the time inside the encoder; ranking is scoring, ties and what came first; report is building,
printing and writing the report with its intervals; other is what is left of the whole: keys, the revision of the data, the
store. **Contents** are the distinct (content, instruction) of all data sets, counted apart from the code under test;
**encoded** is how many items the encoder was asked for, repeats included.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.losses import describe
from hardwon.artifacts import write_json
from hardwon.evaluation import Benchmark, Report, evaluate, read_benchmark, sampled
from hardwon.items import Item
from hardwon.models import Embedder
from hardwon.stages import Workspace
from hardwon.stages.learn import Backbone
from hardwon.stages.sample import SampleData

COLUMNS = (
    "run",
    "contents",
    "encoded",
    "encoding s",
    "ranking s",
    "report s",
    "other s",
    "overhead %",
    "whole s",
    "of first %",
)


@dataclass
class Counting:
    """An encoder that counts and times what it is asked for."""

    inner: Embedder
    asked: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def fingerprint(self) -> str:
        """Of the model."""
        return self.inner.fingerprint

    @property
    def dim(self) -> int:
        """Of the model."""
        return self.inner.dim

    def encode(self, items: Sequence[Item], *, progress: str = "") -> np.ndarray:
        """As the model."""
        self.asked += [item.key for item in items]
        start = time.perf_counter()
        made = self.inner.encode(items, progress=progress)
        self.seconds += time.perf_counter() - start
        return made


def contents(benchmark: Benchmark) -> int:
    """Distinct (content, instruction) of all data sets."""
    items = (item for task in benchmark.tasks for item in (*task.queries, *task.corpus))
    return len({(item.content, item.instruction) for item in items})


def measure(folder: Path, benchmark: Benchmark, store: Path) -> dict[str, float]:
    """One run, with a model that was just loaded; loading is not part of it."""
    model = Counting(Embedder.load(folder, device="cpu"))
    start = time.perf_counter()
    report = evaluate(model, benchmark, store=store, progress=False)
    evaluated = time.perf_counter()
    write_json(store.parent / "report.json", report.to_json())
    str(Report.from_json(json.loads((store.parent / "report.json").read_text())))
    done = time.perf_counter()
    parts = {"encoding": model.seconds, "ranking": float(report.made["seconds_ranking"]), "report": done - evaluated}
    return {"encoded": len(model.asked), **parts, "other": done - start - sum(parts.values()), "whole": done - start}


def cells(name: str, distinct: int, run: dict[str, float], first: dict[str, float]) -> tuple[str, ...]:
    """A row of the table."""
    seconds = [f"{run[part]:.2f}" for part in ("encoding", "ranking", "report", "other")]
    overhead = 100 * (run["whole"] - run["encoding"]) / first["encoding"]
    share = 100 * run["whole"] / first["whole"]
    return (name, f"{distinct:,}", f"{run['encoded']:,}", *seconds, f"{overhead:.2f}", f"{run['whole']:.2f}", f"{share:.1f}")


def ready(data: Path | None, model: str, home: Path) -> tuple[Benchmark, Path]:
    """The benchmark and the model's folder; what is not given is made below `home`."""
    workspace = Workspace(home)
    if data is None:
        workspace.run(SampleData("data"))
    if not model:
        workspace.run(Backbone("base"))
    return read_benchmark((data or home / "data") / "mmeb-small"), Path(model) if model else home / "base" / "model"


def main(arguments: Sequence[str]) -> None:
    """Measure, show, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluation", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder that holds mmeb-small; made if left out")
    parser.add_argument("--model", default="", help="folder of an embedder; the small backbone, untrained, if left out")
    parser.add_argument("--queries", type=int, default=0, help="ask a sample; all if 0")
    parser.add_argument("--out", type=Path, help="FILE.md")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        benchmark, model = ready(asked.data, asked.model, home)
        if asked.queries:
            benchmark = sampled(benchmark, asked.queries)
        runs = [measure(model, benchmark, home / "store") for _ in range(2)]
    distinct = contents(benchmark)
    rows = [cells(name, distinct, run, runs[0]) for name, run in zip(("first", "second"), runs, strict=True)]
    title = f"{benchmark.name}: {len(benchmark.tasks)} data sets, {sum(len(task.queries) for task in benchmark.tasks)} queries"
    table = Table(*COLUMNS, title=title)
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, width=140).print(table)
    if asked.out:
        about = [f"- {key}: {value}" for key, value in describe(arguments, "evaluation", "src/hardwon/evaluation").items()]
        lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS), *(f"| {' | '.join(row)} |" for row in rows)]
        asked.out.write_text("\n".join(["# What an evaluation costs", "", title, "", *about, "", *lines, ""]))


if __name__ == "__main__":
    main(sys.argv[1:])
