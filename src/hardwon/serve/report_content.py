"""What a report says, as frozen records: numbers and items, no markup.

ReportContent
├── Stage               where the time went
├── Pairs               samples of the training data, one per source
├── Results             TaskRow per data set, MeanRow per mean, Difference per comparison; all hold Estimates
├── Curve               one per training stage, made of Points
├── Found               an example query; a Round per model, made of Hits
├── Mined               a query whose candidates were kept or dropped; each is a Negative
├── Calibration         how far the judge can be believed
└── Search              a query that a person could have asked, with its Hits
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hardwon.items import Item

Distribution = Literal["ind", "ood"]


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of the run.

    Attributes:
        name: as the user calls it, e.g. "train round 1".
        seconds: wall time.
        result: what came out, in a few words.
    """

    name: str
    seconds: float
    result: str = ""


@dataclass(frozen=True, slots=True)
class Pairs:
    """Training data of one source.

    Attributes:
        source: name of the data set.
        rows: how many examples it has.
        sample: a handful of (query, positive).
    """

    source: str
    rows: int
    sample: tuple[tuple[Item, Item], ...]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A share in [0, 1] with its interval; no interval for a value that was not sampled, such as chance.

    Raises:
        ValueError: a number outside [0, 1] (NaN included), or only one end of the interval.
    """

    value: float
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if (self.low is None) != (self.high is None):
            raise ValueError(f"an interval needs both ends or none, got low={self.low} and high={self.high}")
        for name, number in (("value", self.value), ("low", self.low), ("high", self.high)):
            if number is not None and not 0 <= number <= 1:
                raise ValueError(f"{name} must be a share in [0, 1], got {number}: divide percentages by 100")


@dataclass(frozen=True, slots=True)
class TaskRow:
    """Results on one data set.

    Attributes:
        name: of the data set.
        meta_task: "classification", "retrieval" ...
        distribution: "ind" if the training data has this kind of data, "ood" if not.
        queries: how many.
        candidates: how many are offered to a query.
        estimates: one for each of `Results.labels`, in that order.
    """

    name: str
    meta_task: str
    distribution: Distribution
    queries: int
    candidates: int
    estimates: tuple[Estimate, ...]


@dataclass(frozen=True, slots=True)
class MeanRow:
    """A mean over data sets: its name, how many data sets it covers, and one estimate for each of `Results.labels`."""

    name: str
    tasks: int
    estimates: tuple[Estimate, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """How much `later` exceeds `earlier`, on the mean over data sets.

    Attributes:
        later: label of the model that is looked at.
        earlier: label of the model that it is compared with.
        mean: difference of the two means, in [-1, 1].
        low: lower end of its interval.
        high: upper end of its interval.
        p: two-sided p value of a paired test.
    """

    later: str
    earlier: str
    mean: float
    low: float
    high: float
    p: float

    @property
    def verdict(self) -> str:
        """What may be said: "above", "below" (the interval excludes zero), or "not distinguishable"."""
        if self.low > 0:
            return "above, interval excludes zero"
        return "below, interval excludes zero" if self.high < 0 else "not distinguishable"


@dataclass(frozen=True, slots=True)
class Results:
    """The evaluation of several models on the same data sets.

    Attributes:
        labels: the models in the order in which they came about, e.g. ("chance", "untrained", "round 1").
        tasks: one row per data set.
        means: one row per mean; the first is the headline.
        differences: comparisons between labels.
        level: of every interval, 0.95 for 95 %.

    Raises:
        ValueError: a row whose estimates do not match the labels.
    """

    labels: tuple[str, ...]
    tasks: tuple[TaskRow, ...]
    means: tuple[MeanRow, ...]
    differences: tuple[Difference, ...] = ()
    level: float = 0.95

    def __post_init__(self) -> None:
        for row in (*self.tasks, *self.means):
            if len(row.estimates) != len(self.labels):
                raise ValueError(f"{row.name!r} has {len(row.estimates)} estimates for {len(self.labels)} labels {self.labels}")


@dataclass(frozen=True, slots=True)
class Point:
    """One measured step of training: its loss, and the precision at 1 on held-out data if it was measured there."""

    step: int
    loss: float
    precision: float | None = None

    def __post_init__(self) -> None:
        for name in ("loss", "precision"):
            number = getattr(self, name)
            if number is not None and not math.isfinite(number):
                raise ValueError(f"{name} at step {self.step} is {number}: leave out points that are not finite")


@dataclass(frozen=True, slots=True)
class Curve:
    """Training of one stage, points in order of their step."""

    stage: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Hit:
    """A found item with its score; `gold` if it is known to belong to the query."""

    item: Item
    score: float
    gold: bool = False


@dataclass(frozen=True, slots=True)
class Round:
    """What one model found for a query: its label and the best items, best first."""

    label: str
    hits: tuple[Hit, ...]

    @property
    def rank(self) -> int | None:
        """Rank of the first gold item, counted from 1; None if no hit is gold."""
        return next((rank for rank, hit in enumerate(self.hits, 1) if hit.gold), None)


@dataclass(frozen=True, slots=True)
class Found:
    """An example query, the items that belong to it, and what each model found."""

    query: Item
    gold: tuple[Item, ...]
    rounds: tuple[Round, ...]
    source: str = ""


@dataclass(frozen=True, slots=True)
class Negative:
    """A candidate that mining looked at.

    Attributes:
        item: the candidate.
        rank: among all candidates of the query by similarity, from 1.
        similarity: cosine to the query.
        judge: the judge's score in [0, 1], None if it was dropped before the judge saw it.
        kept: whether it became a hard negative.
        rule: what decided, in words.
    """

    item: Item
    rank: int
    similarity: float
    judge: float | None
    kept: bool
    rule: str


@dataclass(frozen=True, slots=True)
class Mined:
    """A training query, its positive, and the candidates that mining kept or dropped."""

    query: Item
    positive: Item
    candidates: tuple[Negative, ...]


@dataclass(frozen=True, slots=True)
class Calibration:
    """How far the judge can be believed, on pairs of which the truth is known.

    Attributes:
        auc: area under the ROC curve, gold against random pairs.
        ece: expected calibration error.
        gold: number of gold pairs in each of equally wide bins of the score from 0 to 1.
        random: the same for random pairs.

    Raises:
        ValueError: the two lists differ in length or have no bins.
    """

    auc: float
    ece: float
    gold: tuple[int, ...]
    random: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.gold or len(self.gold) != len(self.random):
            raise ValueError(f"gold and random need the same bins, at least one: got {len(self.gold)} and {len(self.random)}")


@dataclass(frozen=True, slots=True)
class Search:
    """A search: how it was asked ("by words"), the query, and what was found, best first."""

    kind: str
    query: Item
    hits: tuple[Hit, ...]


@dataclass(frozen=True)
class ReportContent:
    """Everything that a report shows. A part that is empty (or None) is left out of the page.

    Attributes:
        title: headline of the page.
        subtitle: one sentence below it.
        command: command line that made the run.
        environment: what `hardwon.artifacts.environment()` returns: versions, hardware, and the time as `at`.
        stages: where the time went, in order.
        pairs: samples of the training data.
        results: the evaluation.
        curves: one per training stage.
        examples: queries and what each round found.
        negatives: queries and their mined candidates.
        judge: calibration of the judge.
        searches: searches over the collection.
        notes: paragraphs that say what the numbers do and do not show.
    """

    title: str
    subtitle: str
    command: str
    environment: Mapping[str, Any]
    stages: tuple[Stage, ...] = ()
    pairs: tuple[Pairs, ...] = ()
    results: Results | None = None
    curves: tuple[Curve, ...] = ()
    examples: tuple[Found, ...] = ()
    negatives: tuple[Mined, ...] = ()
    judge: Calibration | None = None
    searches: tuple[Search, ...] = ()
    notes: tuple[str, ...] = ()
