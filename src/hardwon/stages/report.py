"""The stage that gathers a run into one page."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from hardwon import artifacts
from hardwon.artifacts import Draft
from hardwon.data import read
from hardwon.evaluation import GROUPS, Report, read_benchmark
from hardwon.items import Example, Item
from hardwon.metrics import Interval
from hardwon.mining import Entry, read_ledger
from hardwon.progress import console
from hardwon.randomness import generator
from hardwon.search import Index
from hardwon.serve import report_content as page
from hardwon.serve.report import write_report
from hardwon.stages.base import Workspace
from hardwon.stages.examples import found_examples
from hardwon.stages.learn import load_encoder, shown
from hardwon.stages.measure import model_of

CURVE_POINTS = 120


@dataclass(frozen=True)
class Query:
    """A search that the report shows.

    Attributes:
        kind: how it is asked ("by words").
        text: words.
        picture: path of a picture.
        instruction: that the model was trained to see on such queries.
    """

    kind: str
    text: str = ""
    picture: str = ""
    instruction: str = ""


@dataclass(frozen=True)
class WriteReport:
    """Write `report.html`.

    Attributes:
        out: see `Stage`.
        title: headline.
        subtitle: one sentence below it.
        data: training examples, for samples.
        evaluations: stages whose reports are compared, in order.
        trainings: stages whose curves are shown.
        negatives: stage that mined with a judge.
        index: stage whose index is searched.
        queries: the searches.
        models: (label, model) of the rounds whose finds are shown.
        tasks: data sets that example queries are taken from.
        notes: paragraphs.
    """

    out: str
    title: str
    subtitle: str
    data: str
    evaluations: tuple[str, ...]
    trainings: tuple[str, ...] = ()
    negatives: str = ""
    index: str = ""
    queries: tuple[Query, ...] = ()
    models: tuple[tuple[str, str], ...] = ()
    benchmark: str = ""
    tasks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    kind: ClassVar[str] = "report"
    verb: ClassVar[str] = "report"

    def reads(self) -> tuple[str, ...]:
        """All stages that are shown."""
        return (self.data, *self.evaluations, *self.trainings, *(p for p in (self.negatives, self.index) if p))

    def make(self, workspace: Workspace, draft: Draft) -> str:
        """Gather and write."""
        reports = [_report(workspace, name) for name in self.evaluations]
        results = _results(reports) if reports else None
        examples = list(read(workspace.path(self.data), on_error="skip"))
        ledger = read_ledger(workspace.path(self.negatives) / "ledger.parquet") if self.negatives else []
        benchmark = read_benchmark(workspace.path(self.benchmark)) if self.benchmark else None
        content = page.ReportContent(
            title=self.title,
            subtitle=self.subtitle,
            command=workspace.command,
            environment=artifacts.environment(),
            stages=_stages(workspace),
            pairs=_samples(examples),
            results=results,
            curves=tuple(_curve(workspace, name) for name in self.trainings),
            examples=found_examples(workspace, benchmark, self.tasks, self.models) if benchmark else (),
            negatives=_mined(examples, ledger),
            judge=_judge(workspace, self.negatives) if self.negatives else None,
            searches=_searches(workspace, self.index, self.queries) if self.index else (),
            notes=self.notes,
        )
        write_report(content, draft.path / "report.html")
        draft.stats["differences"] = [
            {"later": d.later, "earlier": d.earlier, "mean": d.mean, "low": d.low, "high": d.high, "p": d.p}
            for d in (results.differences if results else ())
        ]
        return f"report.html, {(draft.path / 'report.html').stat().st_size / 1e6:.1f} MB"


def _report(workspace: Workspace, stage: str) -> Report:
    return Report.from_json(json.loads((workspace.path(stage) / "report.json").read_text(encoding="utf-8")))


def _estimate(interval: Interval) -> page.Estimate:
    return page.Estimate(interval.mean, max(interval.low, 0.0), min(interval.high, 1.0))


def _results(reports: Sequence[Report]) -> page.Results:
    tasks = []
    for first in reports[0].results:
        estimates = [page.Estimate(first.chance), *(_estimate(r.result(first.name).interval()) for r in reports)]
        tasks.append(
            page.TaskRow(first.name, first.meta_task, first.distribution, first.queries, first.candidates, tuple(estimates))
        )
    means = []
    for group, name in sorted(GROUPS.items(), key=lambda pair: pair[0] != "all"):  # the headline first
        members = [r for r in reports[0].results if r.within(group)]
        if members:
            row = [page.Estimate(reports[0].chance(group)), *(_estimate(r.mean(group)) for r in reports)]
            means.append(page.MeanRow(name, len(members), tuple(row)))
    differences = []
    for earlier, later in itertools.pairwise(reports):
        overall = next(d for d in later.diff(earlier).means if d.name == "all")
        value = overall.value
        differences.append(page.Difference(later.label, earlier.label, value.mean, value.low, value.high, overall.p))
    return page.Results(("chance", *(r.label for r in reports)), tuple(tasks), tuple(means), tuple(differences))


def _stages(workspace: Workspace) -> tuple[page.Stage, ...]:
    """What was done in the workspace, in the order of time."""
    found = []
    for file in workspace.root.glob(f"[!.]*/{artifacts.MANIFEST}"):
        manifest = artifacts.load(file.parent, verify=False)
        found.append(
            (manifest.made["at"], page.Stage(file.parent.name, manifest.made["seconds"], manifest.stats.get("result", "")))
        )
    return tuple(stage for _, stage in sorted(found, key=lambda pair: pair[0]))


def _samples(examples: Sequence[Example]) -> tuple[page.Pairs, ...]:
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.source, []).append(example)
    made = []
    for source, rows in sorted(groups.items()):
        chosen = generator("report", source).sample(rows, min(4, len(rows)))
        made.append(page.Pairs(source, len(rows), tuple((e.query, e.gold[0]) for e in chosen)))
    return tuple(made)


def _curve(workspace: Workspace, stage: str) -> page.Curve:
    text = (workspace.path(stage) / "metrics.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    held_out = {row["step"]: row["validation"] for row in rows if "validation" in row}
    losses = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    width = max(len(losses) // CURVE_POINTS, 1)
    points = []
    for start in range(0, len(losses), width):
        part = losses[start : start + width]
        step = part[-1][0]
        points.append(page.Point(step, sum(loss for _, loss in part) / len(part), held_out.get(step)))
    return page.Curve(stage, tuple(points))


def _mined(examples: Sequence[Example], ledger: Sequence[Entry]) -> tuple[page.Mined, ...]:
    """Queries with both kept and rejected candidates, from every source in turn."""
    known = {candidate.item.key: candidate.item for example in examples for candidate in example.candidates}
    rows: dict[tuple[str, int], list[Entry]] = {}
    for entry in ledger:
        rows.setdefault((entry.source, entry.row), []).append(entry)
    by_source: dict[str, list[int]] = {}
    for (source, row), entries in rows.items():
        if {"kept", "rejected"} <= {entry.verdict for entry in entries}:
            by_source.setdefault(source, []).append(row)
    made = []
    for source, numbers in sorted(by_source.items()):
        for row in generator("mined", source).sample(numbers, min(2, len(numbers))):
            shown = [entry for entry in rows[source, row] if entry.verdict != "spare"]
            candidates = tuple(
                page.Negative(known[e.candidate], e.rank + 1, e.similarity, e.grade, e.verdict == "kept", e.rule) for e in shown
            )
            example = examples[row]
            made.append(page.Mined(example.query, example.gold[0], candidates))
    return tuple(made)


def _judge(workspace: Workspace, stage: str) -> page.Calibration | None:
    summary = json.loads((workspace.path(stage) / "summary.json").read_text(encoding="utf-8"))
    found = summary["calibration"]
    if not found:
        return None
    return page.Calibration(found["auc"], found["ece"], tuple(found["gold"]), tuple(found["random"]))


def _searches(workspace: Workspace, stage: str, queries: Sequence[Query]) -> tuple[page.Search, ...]:
    folder = workspace.path(stage)
    index = Index.load(folder / "index", load_encoder(workspace, str(model_of(folder))))
    made = []
    for query in queries:
        pictures: tuple[Path, ...] = (workspace.path(query.picture).resolve(),) if query.picture else ()
        item = Item(query.text, pictures, query.instruction)
        hits = index.search(item, k=8, exclude_self=True)
        line = f"   {query.kind}: {shown(item)} -> {', '.join(shown(hit.item) for hit in hits[:4])}"
        console().print(line, markup=False, style="dim", overflow="ellipsis", no_wrap=True)
        made.append(page.Search(query.kind, item, tuple(page.Hit(hit.item, hit.score) for hit in hits)))
    return tuple(made)
