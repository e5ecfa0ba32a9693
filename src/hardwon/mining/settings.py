"""How to mine."""

from dataclasses import dataclass, field
from typing import get_args

from hardwon.errors import OnError, RecipeError, unknown
from hardwon.mining.choose import Fallback
from hardwon.mining.select import Cyclic, Selector

COPY = 0.2  # of pictures encoded or cropped again 98 in 100 are below it, of the nearest others 2 in 1,000; see docs/mining.md


@dataclass(frozen=True)
class Mining:
    """How to mine.

    Attributes:
        depth: candidates retrieved per query.
        judged: how many of them, from the top, the judge is asked about; None for all.
        keep: hard negatives per query at most.
        beta: a candidate graded above the positive's grade minus beta is a likely false negative; where a query has several
            positives, it is the median of their grades.
        copies: reject candidates that are no further than this from looking like a positive: its picture encoded, resized or
            cropped again, its text in other case (see `Copies`); 0 for those that are the same to the pixel. What is rejected
            becomes `related`, and no judge is asked about it. None looks for no copies but those that are the same to the byte.
        ceiling: candidates at or above this similarity are not retrieved: the `depth` nearest below it are (delta of the paper,
            which gives no value); None for none.
        skip: leave out so many of the most similar candidates; a poor man's judge.
        selector: which survivors are chosen.
        fallback: what to do for a query of which fewer are chosen than wanted. "none" leaves it with fewer and counts it.
            "paper" does as UniME-V2: the chosen are repeated, and where none survived, any that were judged are drawn with
            the grade 1.0, although they are likely false negatives.
        within_source: search only candidates of the query's own data set: those of another task are never hard. False searches
            the whole pool.
        queries: mine for so many examples, drawn evenly over the sources; None for all.
        rest: give back the examples that were not mined for as well, as they are.
        min_auc: refuse a judge that tells gold from random worse than this, before it is asked about anything else.
        max_unusable: stop when the judge gives no usable answer to more than this share of the pairs. A judge behind a server
            stops by itself above `RemoteSettings.max_unusable`.
        budget: judge so many pairs at most, in all: positives and the pairs of the calibration first, then the candidates
            that say most (see `hardwon.mining.judging`). What is known from earlier rounds counts as well, so that an
            interrupted run ends where an undisturbed one does, and is used even beyond the budget. None for all.
        seed: of draws.
        on_error: what to do about items that cannot be read (a picture that is missing or damaged, or something that embedder
            or judge do not read): "raise" names them all and stops, "skip" goes on without them and lists them.
        max_bad_fraction: with "skip", the share of the examples (0 to 1) above which mining fails all the same.
    """

    depth: int = 50
    judged: int | None = None
    keep: int = 8
    beta: float = 0.1
    copies: float | None = COPY
    ceiling: float | None = None
    skip: int = 0
    selector: Selector = field(default_factory=Cyclic)
    fallback: Fallback = "none"
    within_source: bool = True
    queries: int | None = None
    rest: bool = False
    min_auc: float = 0.8
    max_unusable: float = 0.02
    budget: int | None = None
    seed: int = 0
    on_error: OnError = "raise"
    max_bad_fraction: float = 0.01

    def __post_init__(self) -> None:
        if self.depth < 1 or self.keep < 1:
            raise RecipeError(f"depth and keep must be at least 1, got {self.depth} and {self.keep}")
        if not 0 <= self.skip < self.depth:
            raise RecipeError(f"skip ({self.skip}) must be 0 or more and below depth ({self.depth})")
        if self.copies is not None and not 0 <= self.copies <= 1:
            raise RecipeError(f"copies must lie between 0 and 1, or be None to look for none, got {self.copies:g}")
        if self.fallback not in get_args(Fallback):
            raise RecipeError(unknown("fallback", self.fallback, get_args(Fallback)))
        for name in ("judged", "queries", "budget"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RecipeError(f"{name} must be at least 1, or None for all, got {value}")
        if self.on_error not in get_args(OnError):
            raise RecipeError(unknown("on_error", self.on_error, get_args(OnError)))
        for name in ("max_unusable", "max_bad_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise RecipeError(f"{name} is a share between 0 and 1, got {getattr(self, name):g}")
