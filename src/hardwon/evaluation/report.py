"""`Report`: what a model did on a benchmark, with everything needed to compare it later."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from rich.markup import escape
from rich.table import Table

from hardwon import metrics
from hardwon.artifacts import fingerprint, plain
from hardwon.errors import ArtifactError, RecipeError, unknown
from hardwon.evaluation.compare import Comparison, differences, rendered
from hardwon.evaluation.result import DRAWS, GROUPS, SEED, TaskResult, checked_fields, percent
from hardwon.metrics import Interval

_FORMAT, _FORMATS = 2, (1, 2)  # written, and read
_TIES_WORTH_SAYING = 0.01
READ = ("pairs", "queries_read", "queries")  # in `Report.made["rerank"]`: how much a reranker read


@dataclass(frozen=True)
class Report:
    """What a model did on a benchmark.

    Attributes:
        model: fingerprint of the encoder.
        benchmark: name of the benchmark.
        revision: hash of everything the benchmark asks.
        tasks: names of all its tasks, asked or not.
        label: what to call the model in tables.
        results: one for each task that was asked.
        made: what the model is (see `described`), reranker, versions, hash of the code, hardware, time, seconds.
    """

    model: str
    benchmark: str
    revision: str
    tasks: tuple[str, ...]
    label: str
    results: tuple[TaskResult, ...]
    made: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [result.name for result in self.results]
        if not names:
            raise ArtifactError("a report needs the result of at least one task")
        for name in names:
            if name not in self.tasks:
                raise ArtifactError(unknown(f"task of {self.benchmark}", name, self.tasks))
            if names.count(name) > 1:
                raise ArtifactError(f"task {name} has {names.count(name)} results in one report")

    @property
    def missing(self) -> tuple[str, ...]:
        """Tasks of the benchmark without a result."""
        done = {result.name for result in self.results}
        return tuple(name for name in self.tasks if name not in done)

    @property
    def failed(self) -> dict[str, str]:
        """Why a task could not be asked, by its name; tasks that nobody asked for are not among them."""
        return dict(self.made.get("failed", {}))

    @property
    def digests(self) -> dict[str, str]:
        """Hash of everything that a task asks, by its name; empty for reports of older versions."""
        return dict(self.made.get("digests", {}))

    @property
    def fingerprint(self) -> str:
        """Identity of what made the numbers, 32 hexadecimal digits.

        It covers weights, prompts, pre-processing, number format and device of the models, the revision of the data, the
        version of the code and of the packages under it, and what else made vectors that were kept. Neither time nor label nor
        the machine's name plays a part, nor does how much a reranker read: within a budget of time that is never the same
        twice.
        """
        about = {name: self.made.get(name) for name in ("model", "rerank", "code", "versions")}
        if others := self.made.get("vectors_of_others"):
            about["vectors"] = others
        if about["rerank"]:
            about["rerank"] = {name: part for name, part in about["rerank"].items() if name not in READ}
        return fingerprint([self.model, self.revision, [result.name for result in self.results], about])

    def about(self) -> str:
        """One line: the fingerprint and what stands behind it."""
        model = self.made.get("model") or {}
        where = " on ".join(["+".join(model.get("dtype", ())), model["device"]]) if "device" in model else ""
        parts = [f"fingerprint {self.fingerprint[:12]}", f"model {self.model[:12]}", f"data {self.revision[:12]}"]
        code = str(self.made.get("code", ""))[:12]
        return ", ".join([*parts, *([f"code {code}"] if code else []), *([where] if where else [])])

    def result(self, task: str) -> TaskResult:
        """The result of one task. Raises RecipeError when there is none of that name."""
        for result in self.results:
            if result.name == task:
                return result
        raise RecipeError(unknown(f"task of {self.benchmark} with a result", task, [result.name for result in self.results]))

    def mean(self, group: str = "all", *, partial: bool = False) -> Interval:
        """Mean of the metric over data sets, never over means, with its 95 % bootstrap interval.

        Args:
            group: "all", a meta-task, "ind" or "ood".
            partial: give the mean of what there is although tasks of the benchmark are missing.

        Raises:
            ArtifactError: tasks are missing and `partial` is not set.
            RecipeError: an unknown group, or one that has no data sets.
        """
        tensors = [result.tensor() for result in self._members(group, partial)]
        return metrics.macro_interval(tensors, draws=DRAWS, seed=SEED)

    def means(self, *, partial: bool = False) -> dict[str, Interval]:
        """`mean` of every group that has data sets, "all" last."""
        groups = [group for group in GROUPS if any(result.within(group) for result in self.results)]
        return {group: self.mean(group, partial=partial) for group in groups}

    def chance(self, group: str = "all", *, partial: bool = False) -> float:
        """What guessing gets in the place of `mean`."""
        members = self._members(group, partial)
        return sum(result.chance for result in members) / len(members)

    def _members(self, group: str, partial: bool) -> list[TaskResult]:
        if group not in GROUPS:
            raise RecipeError(unknown("group", group, GROUPS))
        if self.missing and not partial:
            raise ArtifactError(f"no mean over {self.benchmark}: {self._gap()}; evaluate them, or ask with partial=True")
        members = [result for result in self.results if result.within(group)]
        if not members:
            raise RecipeError(f"{self.benchmark} has no data sets in group {group!r}")
        # By name, so that the resampling does not depend on the order of tasks in the benchmark.
        return sorted(members, key=lambda result: result.name)

    def _gap(self) -> str:
        return f"{len(self.missing)} of {len(self.tasks)} data sets are missing ({_listed(self.missing)})"

    def diff(self, other: "Report", *, partial: bool = False) -> Comparison:
        """Paired differences on the same queries, this report minus the other.

        Args:
            other: of another model on the same revision of the benchmark.
            partial: compare the tasks that both have although some are missing, be it from the benchmark that one of them was
                asked: then each of those tasks must be the same, not the revision.

        Raises:
            ArtifactError: another revision of the benchmark; missing tasks when `partial` is not set; no task in common.
        """
        if not (partial and self.digests and other.digests):
            _same_questions([self, other])
        for report in (self, other):
            if report.missing and not partial:
                raise ArtifactError(f"no comparison: in {report._name()} {report._gap()}; compare the rest with partial=True")
        theirs = {result.name: result for result in other.results}
        ours = sorted((result for result in self.results if result.name in theirs), key=lambda result: result.name)
        if not ours:
            raise ArtifactError(f"{self._name()} and {other._name()} have no task in common")
        changed = [result.name for result in ours if self.digests.get(result.name) != other.digests.get(result.name)]
        if self.revision != other.revision and changed:
            raise ArtifactError(f"{self._name()} and {other._name()} were asked other questions in {_listed(changed)}")
        tasks, means = differences(ours, [theirs[result.name] for result in ours])
        return Comparison(self._name(), other._name(), self.benchmark, tasks, means)

    def _name(self) -> str:
        return self.label or f"model {self.model[:12]}"

    def to_json(self) -> dict[str, Any]:
        """JSON form, every query's hit included, that `from_json` reads back to an equal report."""
        row = {f.name: getattr(self, f.name) for f in fields(self)} | {"format": _FORMAT}
        return plain(row | {"results": [result.to_json() for result in self.results]})

    @classmethod
    def from_json(cls, row: Any) -> "Report":
        """The report that `to_json` wrote. Raises ArtifactError for anything else, naming what is wrong."""
        checked_fields(row, [*(f.name for f in fields(cls)), "format"], "a report")
        if row["format"] not in _FORMATS:
            known = " and ".join(map(str, _FORMATS))
            raise ArtifactError(f"a report of format {row['format']!r}; this version reads formats {known}")
        for name in ("model", "benchmark", "revision", "label"):
            if not isinstance(row[name], str):
                raise ArtifactError(f"{name} of a report must be a string, got {row[name]!r}")
        if not isinstance(row["tasks"], list) or not all(isinstance(task, str) for task in row["tasks"]):
            raise ArtifactError("tasks of a report must be a list of names")
        if not isinstance(row["results"], list) or not isinstance(row["made"], dict):
            raise ArtifactError("results of a report must be a list, and made an object")
        results = tuple(TaskResult.from_json(result) for result in row["results"])
        heads = {name: row[name] for name in ("model", "benchmark", "revision", "label", "made")}
        return cls(**heads, tasks=tuple(row["tasks"]), results=results)

    def table(self) -> Table:
        """A row per data set and, when none is missing, per mean."""
        return _table([self], {self._name(): self})

    def __repr__(self) -> str:
        """One line; the hits of every query would fill pages."""
        mean = sum(result.tensor().mean().item() for result in self.results) / len(self.results)
        count = f"{len(self.results)} of {len(self.tasks)} data sets"
        return f"<Report of {self._name()} on {self.benchmark}: {count}, mean {_metrics(self)} {100 * mean:.1f} %>"

    def __rich__(self) -> Table:
        return self.table()

    def __str__(self) -> str:
        return rendered(self.table())


def _metrics(report: Report) -> str:
    """What its numbers are."""
    return " and ".join(sorted({result.metric for result in report.results}))


def comparison_table(reports: Mapping[str, Report]) -> Table:
    """Reports side by side, a column for each label, beside what guessing gets.

    Raises:
        ArtifactError: reports on different revisions of a benchmark.
        RecipeError: no report at all.
    """
    if not reports:
        raise RecipeError("there is no report to show")
    _same_questions(list(reports.values()))
    return _table(list(reports.values()), reports)


def _same_questions(reports: Sequence[Report]) -> None:
    first = reports[0]
    for other in reports[1:]:
        if other.revision != first.revision:
            raise ArtifactError(
                f"{first._name()} was asked {first.benchmark} {first.revision[:12]}, {other._name()} {other.benchmark} "
                f"{other.revision[:12]}: only answers to the same questions compare; evaluate both on one of them"
            )


def _table(reports: Sequence[Report], columns: Mapping[str, Report]) -> Table:
    first = reports[0]
    title = f"{first.benchmark} {first.revision[:12]}, {_metrics(first)} in %, 95 % intervals over queries"
    made = Table(title=title, caption=escape(_notes(columns)), caption_justify="left")
    made.add_column("data set")
    for heading in ("queries", "candidates", "chance", *columns):
        made.add_column(heading, justify="right")
    known = {result.name: result for report in reports for result in report.results}
    order = list(GROUPS)
    for name in sorted(known, key=lambda name: (order.index(known[name].meta_task), known[name].distribution, name)):
        task = known[name]
        cells = [percent(report.result(name).interval()) if name not in report.missing else "missing" for report in reports]
        shown = name if task.metric == "hit@1" else f"{name} ({task.metric})"
        made.add_row(shown, f"{task.queries}", f"{task.candidates}", f"{100 * task.chance:.1f}", *cells)
    made.add_section()
    complete = [report for report in reports if not report.missing]
    means = {id(report): report.means() for report in complete}
    for group in means[id(complete[0])] if complete else ():
        cells = [percent(means[id(report)][group]) if id(report) in means else "" for report in reports]
        chance = f"{100 * complete[0].chance(group):.1f}"
        made.add_row(f"mean: {GROUPS[group]}", "", "", chance, *cells, style="bold")
    return made


def _notes(columns: Mapping[str, Report]) -> str:
    """What a reader must know before believing a column."""
    notes = []
    for label, report in columns.items():
        notes.append(f"{label}: {report.about()}")
        if report.missing:
            notes.append(f"{label}: no means, {report._gap()}")
        notes += [f"{label}: missing: {reason}" for reason in report.failed.values()]
        notes.append(_ties(label, report))
    return "\n".join(notes)


def _ties(label: str, report: Report) -> str:
    share = sum(result.tied for result in report.results) / len(report.results)
    said = f"{label}: gold ties with other candidates for {100 * share:.1f} % of queries"
    tied = [result.name for result in report.results if result.tied > _TIES_WORTH_SAYING]
    if not tied:
        return said
    strict = sum(result.strict for result in report.results) / len(report.results)
    lost = "" if math.isnan(strict) else f"; were every tie lost, the mean would be {100 * strict:.1f} %"
    return f"WARNING: {said} ({_listed(tied)}){lost}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
