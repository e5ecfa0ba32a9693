"""`Comparison`: two models on the same queries."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table

from hardwon import metrics
from hardwon.evaluation.result import DRAWS, GROUPS, SEED, TaskResult, percent
from hardwon.metrics import Interval

SURE = 0.05  # p up to which a difference is called one


@dataclass(frozen=True)
class Difference:
    """How far two models differ on a task or on a mean over tasks.

    Attributes:
        name: of the task, or a key of `GROUPS`.
        value: mean hit of the first model minus that of the second, with its 95 % interval over queries.
        p: two-sided permutation p value.
        won: queries that the first model answers better.
        lost: queries that it answers worse.
    """

    name: str
    value: Interval
    p: float
    won: int = 0
    lost: int = 0

    @property
    def verdict(self) -> str:
        """What may be said: "above", "below", or "not distinguishable" when the interval holds zero or p is above 0.05.

        On few queries the interval alone says too much: resampling cannot show what was never seen.
        """
        if self.p > SURE or self.value.low <= 0 <= self.value.high:
            return "not distinguishable"
        return "above" if self.value.low > 0 else "below"


@dataclass(frozen=True)
class Comparison:
    """Paired differences between two models, first minus second.

    Attributes:
        first: label of the first model.
        second: label of the second model.
        benchmark: name of the benchmark that both were asked.
        tasks: a difference per task.
        means: a difference per group of tasks; the last one is over all.
        seed: of every interval and p value here.
        draws: resamples of each.
    """

    first: str
    second: str
    benchmark: str
    tasks: tuple[Difference, ...]
    means: tuple[Difference, ...]
    seed: int = SEED
    draws: int = DRAWS

    def table(self) -> Table:
        """A row per task and mean."""
        title = f"{self.first} − {self.second} on {self.benchmark}, in points"
        caption = f"paired bootstrap over queries, 95 %, {self.draws} draws, seed {self.seed}; p by sign flips, per row"
        made = Table(title=title, caption=caption)
        made.add_column("data set")
        for heading in ("difference", "p", "won", "lost"):
            made.add_column(heading, justify="right")
        made.add_column("first is", no_wrap=True)
        for rows in (self.tasks, self.means):
            for row in rows:
                numbers = (percent(row.value, "+"), f"{row.p:.4f}", f"{row.won:,}", f"{row.lost:,}")
                made.add_row(GROUPS.get(row.name, row.name), *numbers, row.verdict)
            made.add_section()
        return made

    def __rich__(self) -> Table:
        return self.table()

    def __str__(self) -> str:
        return rendered(self.table())


@dataclass(frozen=True)
class Changed:
    """Queries of a task that two models answer differently.

    Attributes:
        won: positions of queries that the first model answers better, those first on which the second was furthest off.
        lost: those that it answers worse, in the same way.
    """

    won: tuple[int, ...]
    lost: tuple[int, ...]


def changed(first: TaskResult, second: TaskResult) -> Changed:
    """Queries whose hit differs between two results of the same task."""

    def better(one: TaskResult, two: TaskResult) -> tuple[int, ...]:
        found = [n for n, (a, b) in enumerate(zip(one.hits, two.hits, strict=True)) if a > b]
        return tuple(sorted(found, key=lambda n: (-two.ranks[n], n)))

    return Changed(better(first, second), better(second, first))


def rendered(table: Table) -> str:
    """A table as text of at most 120 columns."""
    out = io.StringIO()
    Console(file=out, width=120).print(table)
    return out.getvalue().rstrip()


def differences(
    first: Sequence[TaskResult], second: Sequence[TaskResult]
) -> tuple[tuple[Difference, ...], tuple[Difference, ...]]:
    """Differences per task and per group, for results of the same tasks in the same order."""
    tasks = tuple(_difference(a.name, [a], [b]) for a, b in zip(first, second, strict=True))
    groups = []
    for group in GROUPS:
        members = [n for n, result in enumerate(first) if result.within(group)]
        if members:
            groups.append(_difference(group, [first[n] for n in members], [second[n] for n in members]))
    return tasks, tuple(groups)


def _difference(name: str, first: Sequence[TaskResult], second: Sequence[TaskResult]) -> Difference:
    columns: list[list[torch.Tensor]] = [[result.tensor() for result in results] for results in (first, second)]
    found = metrics.paired(*columns, draws=DRAWS, seed=SEED)
    moved = [changed(a, b) for a, b in zip(first, second, strict=True)]
    return Difference(name, found.difference, found.p, sum(len(m.won) for m in moved), sum(len(m.lost) for m in moved))
