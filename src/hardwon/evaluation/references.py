"""Published results as reference rows: where a result stands, seen at once.

`references.json` holds a row for each model: its name, where the numbers were published (or who quotes them), what must be
known before they are believed, and its scores in percent by column. A column is a group of MMEB ("classification" ... "all"),
a data set, a direction ("coco_t2i"), a group of SugarCrepe ("replace"), or a recall of videos ("msvd_t2v@5").
"""

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources

from rich.table import Table

from hardwon.data.mmeb import IMAGES
from hardwon.errors import ArtifactError, RecipeError, unknown
from hardwon.evaluation.neighbours import SUGARCREPE
from hardwon.evaluation.report import Report
from hardwon.evaluation.result import GROUPS

_MMEB = ("classification", "vqa", "retrieval", "grounding", "ind", "ood", "all")


@dataclass(frozen=True)
class Reference:
    """What was published of a model.

    Attributes:
        model: its name.
        source: where the numbers stand.
        note: what must be known before they are believed; empty if nothing.
        scores: in percent, by column.
    """

    model: str
    source: str
    note: str
    scores: Mapping[str, float]


COLUMNS = {
    "mmeb": _MMEB,
    **{name: (f"{name}_t2i", f"{name}_i2t") for name in ("flickr30k", "coco", "sharegpt4v", "urban1k")},
    "sugarcrepe": tuple(SUGARCREPE),
    **{name: tuple(f"{name}_t2v@{k}" for k in (1, 5, 10)) for name in ("msrvtt", "msvd")},
}


@functools.cache
def _all() -> tuple[Reference, ...]:
    text = resources.files("hardwon.evaluation").joinpath("references.json").read_text(encoding="utf-8")
    return tuple(Reference(**({"note": ""} | row)) for row in json.loads(text))


def references(benchmark: str = "mmeb") -> tuple[Reference, ...]:
    """The models with a published result on a benchmark (a key of `COLUMNS`). Raises RecipeError for another name."""
    if benchmark not in COLUMNS:
        raise RecipeError(unknown("benchmark with published results", benchmark, COLUMNS))
    return tuple(row for row in _all() if any(column in row.scores for column in COLUMNS[benchmark]))


def scores_of(report: Report) -> dict[str, float]:
    """What a report says in the columns of the published results, in percent.

    Raises:
        ArtifactError: data sets of the benchmark are missing.
        RecipeError: a benchmark without published results.
    """
    references(report.benchmark)
    if report.missing:
        raise ArtifactError(
            f"{report.benchmark} is not complete ({', '.join(report.missing[:5])} ... missing): it has no place"
        )
    read: Callable[[str], float]
    if report.benchmark == "mmeb":
        read = lambda column: report.mean(column).mean  # noqa: E731
    elif report.benchmark == "sugarcrepe":
        read = lambda column: sum(_hit(report, name) for name in SUGARCREPE[column]) / len(SUGARCREPE[column])  # noqa: E731
    else:
        read = lambda column: _hit(report, *column.split("@"))  # noqa: E731
    return {column: 100 * read(column) for column in COLUMNS[report.benchmark]}


def _hit(report: Report, task: str, k: str = "1") -> float:
    result = report.result(task)
    return sum(result.hits) / result.queries if k == "1" else result.measures[f"hit@{k}"]


def standing(report: Report, *, sources: bool = True) -> Table:
    """The published results with the report among them, by the last column (on MMEB the mean over all data sets).

    Args:
        report: of one model.
        sources: say of each where it was published; without, the table fits into 80 columns.

    Raises:
        ArtifactError: as `scores_of`.
        RecipeError: as `scores_of`.
    """
    own = scores_of(report)
    columns = COLUMNS[report.benchmark]
    rows = [(row.scores, row.model, row.source, row.note, "") for row in references(report.benchmark)]
    rows.append((own, report.label or f"model {report.model[:12]}", "this report", "", "bold reverse"))
    rows.sort(key=lambda row: -row[0].get(columns[-1], row[0].get(columns[0], 0)))
    made = Table(title=f"{report.benchmark}: where {report.label or 'this model'} stands, %", caption=_marks(rows))
    made.add_column("model")
    for column in columns:
        made.add_column(GROUPS.get(column) or column, justify="right")
    if sources:
        made.add_column("source")
    for scores, model, source, note, style in rows:
        cells = [f"{scores[column]:.1f}" if column in scores else "-" for column in columns]
        made.add_row(model + (" *" if note else ""), *cells, *([source] if sources else []), style=style)
    return made


def _marks(rows: list[tuple[Mapping[str, float], str, str, str, str]]) -> str | None:
    return "\n".join(f"* {model}: {note}" for _, model, _, note, _ in rows if note) or None


def by_set(report: Report) -> Table:
    """A report on MMEB data set by data set, beside the models whose numbers were published so; missing ones are left out.

    Raises:
        RecipeError: a report on something else.
    """
    if report.benchmark != "mmeb":
        raise RecipeError(f"numbers by data set were published for mmeb, not for {report.benchmark}")
    beside = [row for row in _all() if all(one.name in row.scores for one in IMAGES)]
    made = Table(title="mmeb by data set, hit@1 in %")
    for heading in ("data set", report.label or "this model", *(row.model for row in beside)):
        made.add_column(heading, justify="left" if heading == "data set" else "right")
    done = {result.name for result in report.results}
    for one in IMAGES:
        own = f"{100 * _hit(report, one.name):.1f}" if one.name in done else "missing"
        made.add_row(one.name, own, *(f"{row.scores[one.name]:.1f}" for row in beside))
    return made
