"""`hardwon compare A.json B.json`: two reports on the same queries, as a table and as a page with pictures."""

from collections.abc import Sequence
from pathlib import Path

from hardwon.errors import ArtifactError, DataError
from hardwon.evaluation import GROUPS, Benchmark, Comparison, Difference, Report, Task, TaskResult, changed
from hardwon.items import Item
from hardwon.serve.comparison import Answered, ComparisonPage, Line, Moved, write_comparison
from hardwon.stages.evaluating import benchmark_of

SHOWN = 12  # queries won, and as many lost, that a data set shows


def write_page(reports: Sequence[Report], found: Comparison, path: Path, benchmark: str = "", root: Path | None = None) -> None:
    """Write the page of a comparison.

    Args:
        reports: the first and the second.
        found: their difference.
        path: the HTML file.
        benchmark: what was asked; what a report says if empty. Without one that is there the page shows no queries, and why.
        root: folder of the benchmark's data.

    Raises:
        ArtifactError: a benchmark that was named and is not the one of the reports.
    """
    asked, missing = None, ""
    try:
        asked = benchmark_of(reports, benchmark, root)
    except (ArtifactError, DataError) as error:
        if benchmark:
            raise
        missing = f"No queries are shown: {error}"
    content = ComparisonPage(
        title=f"{found.first} against {found.second} on {found.benchmark}",
        first=found.first,
        second=found.second,
        about=_about(reports, found),
        means=tuple(_line(d, mean=True) for d in sorted(found.means, key=lambda d: d.name != "all")),
        tasks=tuple(_line(d) for d in found.tasks),
        moved=_moved(reports, found, asked) if asked is not None else (),
        missing=missing,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_comparison(content, path)


def _line(row: Difference, mean: bool = False) -> Line:
    name = f"mean: {GROUPS[row.name]}" if mean else row.name  # a data set may be called as a group is
    return Line(name, row.value.mean, row.value.low, row.value.high, row.p, row.verdict, row.won, row.lost)


def _about(reports: Sequence[Report], found: Comparison) -> tuple[tuple[str, str], ...]:
    told = [(name, report.about()) for name, report in zip((found.first, found.second), reports, strict=True)]
    method = f"paired bootstrap over queries, 95 %, {found.draws} draws, seed {found.seed}; p by sign flips, per row"
    return (*told, ("method", method))


def _moved(reports: Sequence[Report], found: Comparison, benchmark: Benchmark) -> tuple[Moved, ...]:
    tasks = {task.name: task for task in benchmark.tasks}
    made = []
    for row in found.tasks:
        if row.won or row.lost:
            pair = (reports[0].result(row.name), reports[1].result(row.name))
            both = changed(*pair)
            won, lost = ([_answered(tasks[row.name], n, pair) for n in rows[:SHOWN]] for rows in (both.won, both.lost))
            made.append(Moved(_line(row), tuple(won), tuple(lost)))
    return tuple(sorted(made, key=lambda data: -(data.line.won + data.line.lost)))


def _answered(task: Task, row: int, pair: tuple[TaskResult, TaskResult]) -> Answered:
    def first(result: TaskResult) -> Item | None:
        return task.corpus[result.firsts[row]] if result.firsts else None

    gold = tuple(task.corpus[n] for n in task.gold[row])
    return Answered(row, task.queries[row], gold, first(pair[0]), first(pair[1]), (pair[0].ranks[row], pair[1].ranks[row]))
