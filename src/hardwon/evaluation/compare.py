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


@dataclass(frozen=True)
class Difference:
    """How far two models differ on a task or on a mean over tasks.

    Attributes:
        name: of the task, or a key of `GROUPS`.
        value: mean hit of the first model minus that of the second, with its 95 % interval over queries.
        p: two-sided permutation p value.
    """

    name: str
    value: Interval
    p: float

    @property
    def verdict(self) -> str:
        """What may be said: "above", "below", or "not distinguishable" when the interval holds zero."""
        if self.value.low > 0:
            return "above"
        return "below" if self.value.high < 0 else "not distinguishable"


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
        title = f"{self.first} − {self.second} on {self.benchmark}, hit@1 in points"
        caption = f"paired bootstrap over queries, 95 %, {self.draws} draws, seed {self.seed}; p by sign flips, per row"
        made = Table(title=title, caption=caption)
        made.add_column("data set")
        for heading in ("difference", "p"):
            made.add_column(heading, justify="right")
        made.add_column("first is")
        for rows in (self.tasks, self.means):
            for row in rows:
                made.add_row(GROUPS.get(row.name, row.name), percent(row.value, "+"), f"{row.p:.4f}", row.verdict)
            made.add_section()
        return made

    def __rich__(self) -> Table:
        return self.table()

    def __str__(self) -> str:
        return rendered(self.table())


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
    return Difference(name, found.difference, found.p)
