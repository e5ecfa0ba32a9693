"""The JSON of the MMEB leaderboard: one file for a model, with its results on pictures, videos and documents.

    {"metadata": {...}, "metrics": {"image": {NAME: {"hit@1": ..., ...}}, "video": {...}, "visdoc": {...}}}

A data set holds hit, nDCG (linear and exponential gains), precision, recall, f1, map and mrr at 1, 5 and 10, and how many
queries there were; one without a result holds the string "FILE_N/A". The two document sets whose page numbers were mended are
called NAME-fixed, as in the published files. Ties are broken against the model.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from hardwon.data.mmeb import DOCUMENTS, IMAGES, VIDEOS, DataSet
from hardwon.errors import ArtifactError, RecipeError, unknown
from hardwon.evaluation.report import Report

METADATA = (
    *("model_name", "model_backbone", "model_size", "embedding_dimension", "max_length_tokens", "model_release_date"),
    *("data_source", "url", "report_generated_date"),
)
MEASURES = tuple(
    f"{name}@{k}"
    for name in ("hit", "ndcg_linear", "ndcg_exponential", "precision", "recall", "f1", "map", "mrr")
    for k in (1, 5, 10)
)
PARTS = {"image": ("mmeb", IMAGES), "video": ("mmeb-v2-video", VIDEOS), "visdoc": ("mmeb-v2-visdoc", DOCUMENTS)}
ABSENT = ("FILE_N/A", "DIR_N/A")
_FIXED = ("MMLongBench-page", "ViDoSeek-page")


def submission(reports: Sequence[Report], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The leaderboard's JSON of one model.

    Args:
        reports: of this model, on mmeb, mmeb-v2-video or mmeb-v2-visdoc; one or several.
        metadata: some of `METADATA`; `model_name` is needed, what is left out is null.

    Raises:
        ArtifactError: reports of different models, or results of an older version without the measures.
        RecipeError: an unknown field, no name, a report on something else or two on the same.
    """
    for name in metadata:
        if name not in METADATA:
            raise RecipeError(unknown("field of the leaderboard's metadata", name, METADATA))
    if not metadata.get("model_name"):
        raise RecipeError("the leaderboard needs a model_name")
    known = {benchmark: part for part, (benchmark, _) in PARTS.items()}
    given: dict[str, Report] = {}
    for report in reports:
        if report.benchmark not in known:
            raise RecipeError(unknown("benchmark of the leaderboard", report.benchmark, known))
        if known[report.benchmark] in given:
            raise RecipeError(f"there are two reports on {report.benchmark}; give one")
        given[known[report.benchmark]] = report
    if len({report.model for report in reports}) > 1:
        raise ArtifactError("the reports are of different models; a file of the leaderboard is of one")
    usual = {"data_source": "Self-Reported", "report_generated_date": datetime.now(UTC).isoformat()}
    return {
        "metadata": dict.fromkeys(METADATA) | usual | dict(metadata),
        "metrics": {part: _part(given.get(part), sets) for part, (_, sets) in PARTS.items()},
    }


def _part(report: Report | None, sets: Sequence[DataSet]) -> dict[str, Any]:
    results = {} if report is None else {result.name: result for result in report.results}
    made: dict[str, Any] = {}
    for one in sets:
        name = f"{one.name}-fixed" if one.name in _FIXED else one.name
        result = results.get(one.name)
        if result is None:
            made[name] = ABSENT[0]
            continue
        lacking = [measure for measure in MEASURES if measure not in result.measures]
        if lacking:
            raise ArtifactError(f"{one.name} has no {lacking[0]}: its report was made by an older version; evaluate again")
        counts = {"num_pred": result.queries, "num_data": result.queries}
        made[name] = {measure: result.measures[measure] for measure in MEASURES} | counts
    return made


def problems(made: Any) -> list[str]:
    """What a reader of the leaderboard would stumble over in such a JSON; empty if nothing.

    Numbers must be what they say they are. There are published files with a data set more or fewer than the table has, so
    that is no problem.
    """
    if not isinstance(made, dict) or not isinstance(made.get("metadata"), dict) or not isinstance(made.get("metrics"), dict):
        return ["it must be an object with metadata and metrics, both objects"]
    found = [] if isinstance(made["metadata"].get("model_name"), str) else ["metadata has no model_name"]
    for part, (_, sets) in PARTS.items():
        scores = made["metrics"].get(part)
        if not isinstance(scores, dict):
            found.append(f"metrics has no {part}")
            continue
        if not {name.removesuffix("-fixed") for name in scores} & {one.name for one in sets}:
            found.append(f"{part} holds none of its data sets, such as {sets[0].name}")
        for name, values in scores.items():
            found += [f"{part}, {name}: {reason}" for reason in _wrong(values)]
    return found


def _wrong(values: Any) -> list[str]:
    if isinstance(values, str):
        return [] if values in ABSENT else [f"{values!r} is neither an object nor one of {', '.join(ABSENT)}"]
    if not isinstance(values, dict):
        return ["it must be an object"]
    found = []
    for measure in MEASURES:
        value = values.get(measure)
        if isinstance(value, bool) or not isinstance(value, int | float) or not -1e-9 <= value <= 1 + 1e-9:
            found.append(f"{measure} is {value!r}, not a number in [0, 1]")
    return found + [f"has no {name}" for name in ("num_pred", "num_data") if not isinstance(values.get(name), int)]
