"""The table of a study: means, intervals against the baseline and against each row's own control, cost and gap."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from hardwon.artifacts import write_json
from hardwon.errors import ArtifactError
from studies.measure import unpacked
from studies.plan import TEACHER, Reranking, Suite, Training
from studies.statistics import Spread, difference, spread
from studies.suites import suite_of

META = {  # of the small MMEB's data sets, by the start of their names
    "category": "classification",
    "skin_tone": "classification",
    "position": "vqa",
    "grounding": "grounding",
}
WIDE, MOST_IN_80 = 140, 4  # columns of a terminal that has room for all; how many of the table's fit into 80
APART = ("evaluate", "start")  # work that is no part of a training
UNSEEN = ("_openmoji", "_far", "_unseen")  # endings of data sets out of distribution


@dataclass(frozen=True, eq=False)
class Results:
    """All cells of a suite.

    Attributes:
        suite: the plan they belong to.
        cells: results by (entry, seed).
    """

    suite: Suite
    cells: Mapping[tuple[str, int], Mapping[str, Any]]

    def seeds(self, name: str) -> list[int]:
        """For which there is a result."""
        return sorted(seed for entry, seed in self.cells if entry == name)

    def hits(self, name: str, seeds: Sequence[int], which: str = "hits") -> dict[str, np.ndarray]:
        """By data set: a row for each seed."""
        rows = [unpacked(self.cells[name, seed][which]) for seed in seeds]
        return {task: np.stack([row[task] for row in rows]) for task in rows[0]}

    def mean_of(self, name: str, what: str) -> float:
        """A number of the cells, or the mean of a mapping's values, averaged over seeds."""
        values = [self.cells[name, seed][what] for seed in self.seeds(name)]
        return float(np.mean([np.mean(list(v.values())) if isinstance(v, Mapping) else v for v in values]))


@dataclass(frozen=True)
class Line:
    """A row of the table.

    Attributes:
        entry: of the plan.
        seeds: it was trained for.
        means: mean P@1 of all data sets ("all") and of groups of them.
        validation: mean P@1 on the held-out pairs.
        chosen: the same less the baseline's, on the seeds that both have: what a recipe is chosen by.
        gained: over the baseline; None for the baseline.
        fair: over the row's own control; None where that is the baseline.
        gap: see `Measured.gap`, mean over data sets.
        training: encodings (or pairs) of the training.
        before: of mining, grouping, judging; with the teacher's training where there has to be one.
        seconds: processor seconds of the training; without evaluation, and the start that all rows of a seed share.
    """

    entry: Training | Reranking
    seeds: tuple[int, ...]
    means: Mapping[str, float]
    validation: float
    chosen: float
    gained: Spread | None
    fair: Spread | None
    gap: float
    training: float
    before: float
    seconds: float


def keep(rows: Iterable[Mapping[str, Any]], file: Path) -> None:
    """Results of cells in one file, without the hits on validation; those of other cells that stand there already stay."""
    file.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    some = known + [{what: value for what, value in row.items() if what != "held out"} for row in rows]
    last = {(row["name"], row["seed"]): row for row in some}
    write_json(file, [last[place] for place in sorted(last)])


def load(folder: Path, suite: str) -> Results:
    """Read what `keep` wrote. Raises ArtifactError if there is none."""
    file = folder / f"{suite}.json"
    name = folder.absolute().name if suite == "results" else suite
    plan = suite_of(name)  # before the file: a folder of another name is no run's
    if not file.is_file():
        how = f"--suite {name}" + ("" if suite == "results" else " --keep")
        raise ArtifactError(f"{file} does not exist: `python -m studies run {how}` makes it")
    rows = json.loads(file.read_text(encoding="utf-8"))
    return Results(plan, {(row["name"], row["seed"]): row for row in rows})


def group_of(task: str) -> tuple[str, str]:
    """(meta-task, distribution) of a data set."""
    meta = next((meta for start, meta in META.items() if task.startswith(start)), "retrieval")
    return meta, "ood" if task.endswith(UNSEEN) else "ind"


def means(hits: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Mean of all data sets, of each meta-task, in and out of distribution."""
    groups: dict[str, list[float]] = {"all": []}
    for task, values in hits.items():
        for name in ("all", *group_of(task)):
            groups.setdefault(name, []).append(float(values.mean()))
    return {name: float(np.mean(values)) for name, values in groups.items()}


@cache
def versus(results: Results, one: str, other: str, which: str = "hits") -> Spread | None:
    """One row less another on the seeds that both have; None where there is none. `which`: of the first row's hits."""
    seeds = [s for s in results.seeds(one) if (other, s) in results.cells and which in results.cells[one, s]]
    if one == other or not seeds:
        return None
    return spread(difference(results.hits(one, seeds, which), results.hits(other, seeds)))


@cache
def lines(results: Results) -> list[Line]:
    """All rows that there are results of; worked out once."""
    made = []
    for entry in results.suite.rows:
        seeds = tuple(results.seeds(entry.name))
        if not seeds:
            continue
        cells = [results.cells[entry.name, seed] for seed in seeds]
        control = entry.control or TEACHER
        made.append(
            Line(
                entry,
                seeds,
                means(results.hits(entry.name, seeds)),
                results.mean_of(entry.name, "validation"),
                chosen(results, entry.name),
                versus(results, entry.name, TEACHER),
                versus(results, entry.name, control) if control != TEACHER else None,
                results.mean_of(entry.name, "gap"),
                float(np.mean([cell["encodings"]["training"] for cell in cells])),
                before(results, entry, seeds),
                float(np.mean([sum(v for what, v in cell["cpu"].items() if what not in APART) for cell in cells])),
            )
        )
    return made


def chosen(results: Results, name: str) -> float:
    """Validation less the baseline's, on common seeds; 0 where there are none."""
    seeds = sorted(set(results.seeds(name)) & set(results.seeds(TEACHER)))
    gains = [results.cells[name, seed]["validation"] - results.cells[TEACHER, seed]["validation"] for seed in seeds]
    return float(np.mean(gains)) if gains else 0.0


def before(results: Results, entry: Training | Reranking, seeds: Sequence[int]) -> float:
    """Encodings and judged pairs that had to be spent before the training, the teacher's training among them."""
    total = 0.0
    for seed in seeds:
        own = results.cells[entry.name, seed]["encodings"]
        total += sum(count for what, count in own.items() if what != "training")
        seen: set[str] = set()
        left = list(entry.needs)
        while left:
            name = left.pop()
            if name not in seen and (name, seed) in results.cells:
                seen.add(name)
                total += sum(results.cells[name, seed]["encodings"].values())
                left += results.suite.entry(name).needs
    return total / len(seeds)


def shown(results: Results, width: int = 160) -> Table:
    """For people; what does not fit into a narrow terminal is left out: the page has it."""
    table = Table(
        title=f"P@1 in per cent; differences in points with 95 % intervals over seeds and queries ({results.suite.name})"
    )
    columns = {
        "row": lambda line: line.entry.title,
        "P@1": lambda line: f"{100 * line.means['all']:.1f}",
        "over InfoNCE": lambda line: points(line.gained),
        "over its control": lambda line: points(line.fair),
        "seeds": lambda line: str(len(line.seeds)),
        "valid.": lambda line: f"{100 * line.validation:.1f}",
        "in": lambda line: f"{100 * line.means['ind']:.1f}",
        "out": lambda line: f"{100 * line.means['ood']:.1f}",
        "gap": lambda line: f"{line.gap:.3f}",
        "cost": lambda line: f"{(line.training + line.before) / 1000:.0f}k",
        "CPU s": lambda line: f"{line.seconds:.0f}",
    }
    for heading in list(columns)[MOST_IN_80:] if width < WIDE else ():
        del columns[heading]
    for heading in columns:
        left = heading == "row"
        table.add_column(heading, justify="left" if left else "right", no_wrap=not left, overflow="fold")
    family = ""
    for line in lines(results):
        if family and line.entry.family != family:
            table.add_section()
        family = line.entry.family
        table.add_row(*(told(line) for told in columns.values()))
    return table


def points(value: Spread | None) -> str:
    """A difference in points with its interval."""
    return "" if value is None else f"{100 * value.mean:+.1f} [{100 * value.low:+.1f}, {100 * value.high:+.1f}]"


def total(results: Results, names: Iterable[str] | None = None) -> dict[str, float]:
    """Processor and wall seconds of all cells."""
    rows = [row for (name, _), row in results.cells.items() if names is None or name in set(names)]
    return {kind: sum(sum(row[kind].values()) for row in rows) for kind in ("cpu", "seconds")}


__all__ = ["Line", "Results", "group_of", "keep", "lines", "load", "means", "points", "shown", "total", "versus"]
