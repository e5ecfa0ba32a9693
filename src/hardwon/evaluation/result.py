"""`TaskResult`: what a model did on one task, query by query; and the groups that means are taken over."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from hardwon import metrics
from hardwon.errors import ArtifactError, unknown
from hardwon.evaluation.task import Distribution, MetaTask, Metric, wrong_head
from hardwon.metrics import Interval

SEED, DRAWS = 0, 2000  # of every interval in a report, so that the same results give the same digits
GROUPS = {
    "classification": "classification",
    "vqa": "visual question answering",
    "retrieval": "retrieval",
    "grounding": "grounding",
    "moments": "moment retrieval",
    "documents": "visual documents",
    "ind": "in distribution",
    "ood": "out of distribution",
    "all": "all data sets",
}

_RANGES = {
    "hits": (0, 1),
    "ranks": (1, math.inf),
    "ties": (0, math.inf),
    "chance": (0, 1),
    "candidates": (1, math.inf),
    "worst": (1, math.inf),
    "firsts": (0, math.inf),
}
_LATER = ("worst", "firsts")  # columns that reports of format 1 do not have


@dataclass(frozen=True)
class TaskResult:
    """What a model did on one task; tuples hold one value per query, in the task's order.

    Attributes:
        name: of the task.
        meta_task: as in `Task`.
        distribution: as in `Task`.
        hits: value of the metric, expected over the random order of ties, in [0, 1].
        ranks: expected rank of the best gold candidate; 1 is first.
        ties: candidates that are not gold and score the same as the best gold candidate.
        chance: mean value of the metric that guessing gets.
        candidates: how many candidates a query searched; the mean, rounded, where queries differ.
        worst: rank of the best gold candidate when every tie is broken against the model; empty in reports of format 1.
        firsts: corpus position of what the model put first, of equals one that is not gold; empty in reports of format 1.
        metric: as in `Task`.
        measures: means over queries of what leaderboards ask for ("hit@5", "ndcg_linear@10" ...), ties broken against the
            model; see `metrics.GoldRanks`.
    """

    name: str
    meta_task: MetaTask
    distribution: Distribution
    hits: tuple[float, ...]
    ranks: tuple[float, ...]
    ties: tuple[int, ...]
    chance: float
    candidates: int
    worst: tuple[int, ...] = ()
    firsts: tuple[int, ...] = ()
    metric: Metric = "hit@1"
    measures: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        columns = {"hits": self.hits, "ranks": self.ranks, "ties": self.ties}
        columns |= {name: values for name in _LATER if (values := getattr(self, name))}
        lengths = {name: len(values) for name, values in columns.items()}
        if not self.hits or len(set(lengths.values())) > 1:
            raise ArtifactError(f"task {self.name}: every column needs one value per query, got {lengths}")
        for name, values in (columns | {"chance": (self.chance,), "candidates": (self.candidates,)}).items():
            low, high = _RANGES[name]
            wrong = [value for value in values if not (math.isfinite(value) and low <= value <= high)]
            if wrong:
                raise ArtifactError(f"task {self.name}: {name} holds {wrong[0]}, which does not lie in [{low}, {high}]")

    def __repr__(self) -> str:
        """One line; the tuples hold thousands of numbers."""
        return f"<TaskResult of {self.name}: {self.queries} queries, {self.metric} {100 * self.tensor().mean().item():.1f} %>"

    @property
    def queries(self) -> int:
        """How many queries were asked."""
        return len(self.hits)

    @property
    def strict(self) -> float:
        """Mean of the metric when every tie is broken against the model; NaN where `measures` lacks it."""
        if self.metric == "hit@1":
            return sum(hit == 1 for hit in self.hits) / self.queries
        return self.measures.get("ndcg_linear@5", math.nan)

    @property
    def tied(self) -> float:
        """Share of queries whose best gold candidate ties with one that is not gold."""
        return sum(n > 0 for n in self.ties) / self.queries

    def interval(self) -> Interval:
        """Mean of the hits with its 95 % bootstrap interval."""
        return metrics.interval(self.tensor(), draws=DRAWS, seed=SEED)

    def tensor(self) -> torch.Tensor:
        """The hits as float64, for `metrics`."""
        return torch.tensor(self.hits, dtype=torch.float64)

    def within(self, group: str) -> bool:
        """Whether the mean over `group` (a key of `GROUPS`) counts this task."""
        return group in ("all", self.meta_task, self.distribution)

    def to_json(self) -> dict[str, Any]:
        """JSON form that `from_json` reads back to an equal result."""
        return {f.name: list(v) if isinstance(v := getattr(self, f.name), tuple) else v for f in fields(self)}

    @classmethod
    def from_json(cls, row: Any) -> "TaskResult":
        """The result that `to_json` wrote. Raises ArtifactError for anything else."""
        if isinstance(row, Mapping):
            row = {name: [] for name in _LATER} | {"metric": "hit@1", "measures": {}} | dict(row)
        checked_fields(row, [f.name for f in fields(cls)], "a task's result")
        heads = {name: row[name] for name in ("name", "meta_task", "distribution", "metric")}
        if not all(isinstance(value, str) for value in heads.values()):
            raise ArtifactError(f"name, meta_task, distribution and metric of a result must be strings, got {heads}")
        measures = row["measures"]
        if not isinstance(measures, dict) or not all(isinstance(value, float | int) for value in measures.values()):
            raise ArtifactError(f"task {row['name']}: measures must be an object of numbers")
        reason = wrong_head(**heads)
        if reason:
            raise ArtifactError(reason)
        hits, ranks = _numbers(row, "hits", float), _numbers(row, "ranks", float)
        (chance,), (candidates,) = _numbers(row, "chance", float), _numbers(row, "candidates", int)
        ties = _numbers(row, "ties", int)
        worst, firsts = _numbers(row, "worst", int), _numbers(row, "firsts", int)
        rest = {"chance": chance, "candidates": candidates, "worst": worst, "firsts": firsts, "measures": measures}
        return cls(**heads, hits=hits, ranks=ranks, ties=ties, **rest)


def _numbers(row: Mapping[str, Any], name: str, kind: type) -> tuple[Any, ...]:
    """The numbers of a list, or the one number of a field that is not a list."""
    single = name in ("chance", "candidates")
    values = [row[name]] if single else row[name]
    allowed = (int,) if kind is int else (int, float)
    if not isinstance(values, list) or not all(isinstance(v, allowed) and not isinstance(v, bool) for v in values):
        what = "integer" if kind is int else "number"
        raise ArtifactError(f"task {row['name']}: {name} must be " + (f"one {what}" if single else f"a list of {what}s"))
    return tuple(kind(value) for value in values)


def checked_fields(row: Any, names: list[str], what: str) -> None:
    """Raise ArtifactError unless `row` is an object with exactly these fields."""
    if not isinstance(row, Mapping):
        raise ArtifactError(f"{what} must be an object, got {type(row).__name__}")
    for name in row:
        if name not in names:
            raise ArtifactError(unknown(f"field of {what}", name, names))
    missing = [name for name in names if name not in row]
    if missing:
        raise ArtifactError(f"{what} lacks {', '.join(missing)}")


def percent(value: Interval, sign: str = "") -> str:
    """A mean and half the width of its interval, in percent: "71.2 ±3.1"."""
    points = round(100 * value.mean, 1) + 0.0  # + 0.0 turns -0.0 into 0.0
    return f"{points:{sign}.1f} ±{50 * (value.high - value.low):.1f}"
