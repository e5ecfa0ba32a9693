"""Fusion of an embedder's and a reranker's scores, within a budget and no further than the order needs."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from hardwon.artifacts import plain
from hardwon.errors import ArtifactError, RecipeError
from hardwon.items import Item
from hardwon.models.scorer import ListScorer, Scorer
from hardwon.search.gate import Gate, margins
from hardwon.search.rescore import Reading, Rescorer

BEHIND = 1e-3  # how far a list's candidates that a budget did not reach stay below those that were read
PROBE = 8  # queries read to learn what a pair costs, before a budget in milliseconds is spent on more


@dataclass(frozen=True)
class Budget:
    """What reranking may cost: the mean over the queries of one call. Together they own that many times as much.

    It is spent on the queries with the smallest margins between the embedder's first two, each of them read to its end. The
    last of them is read as far as what is left goes: its best candidates are put in order, and the rest stay behind them. All
    others keep the embedder's order. So a query that is asked alone is read to a depth of `pairs`.

    Attributes:
        pairs: (query, candidate) pairs per query; None for no limit.
        milliseconds: time per query; None for no limit. What is read then depends on the machine. What a pair costs is learned
            from the best two candidates of the first `PROBE` queries, from whole lists of as many with a reranker of lists; so
            the budget may be exceeded by what these take.
    """

    pairs: float | None = None
    milliseconds: float | None = None

    def __post_init__(self) -> None:
        for name in ("pairs", "milliseconds"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise RecipeError(f"{name} of a budget must be 0 or more, or None for no limit, got {value}")


@dataclass(frozen=True)
class Fused:
    """Reorders the first `depth` candidates of a query by cosine + weight x log-odds.

    Attributes:
        reranker: gives log-odds; or scores of whole lists, which are read whole.
        depth: how many candidates it reads per query.
        weight: of the log-odds; 0 leaves the embedder's order alone and reads nothing.
        gate: which queries are reranked, and with which weight instead; all with `weight` if None.
        clip: log-odds outside of these two count as the nearer one. So their contribution has a bound, and what lies so far
            apart that no reading can change it need not be read.
        top: stop reading a query's candidates once its first `top` places are certain. They are then exactly those of reading
            everything, ties included; the order below is not. Needs `clip`. None reads everything.
        budget: what reading may cost; None for no limit.
        stride: candidates of a query that are read between two looks at whether to stop.
    """

    reranker: Scorer | ListScorer
    depth: int = 10
    weight: float = 0.05
    gate: Gate | None = None
    clip: tuple[float, float] | None = None
    top: int | None = None
    budget: Budget | None = None
    stride: int = 2

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise RecipeError(f"weight of a reranker must be 0 or more, got {self.weight}")
        if self.clip is not None and not self.clip[0] <= self.clip[1]:
            raise RecipeError(f"clip is (lowest, highest) log-odds, got {self.clip}")
        if self.stride < 1 or (self.top is not None and self.top < 1):
            raise RecipeError(f"top and stride must be at least 1, got {self.top} and {self.stride}")
        if self.top is not None and not isinstance(self.reranker, Scorer):
            raise RecipeError(
                "a reranker of lists says what depends on the whole list: it cannot stop early, leave top at None"
            )
        if self.top is not None and (self.clip is None or not np.isfinite(self.clip).all()):
            raise RecipeError(
                f"stopping early needs bounds of the log-odds, and clip is {self.clip}: set clip=(lowest, highest), "
                "learn_fusion(...) finds them, or leave top at None"
            )

    def to_json(self) -> dict[str, Any]:
        """How the reranker is used, and which one, in a form that `from_json` reads back."""
        row = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("reranker", "gate", "budget")}
        gate = None if self.gate is None else self.gate.to_json()
        budget = None if self.budget is None else asdict(self.budget)
        return plain(row | {"reranker": self.reranker.fingerprint, "gate": gate, "budget": budget})

    @classmethod
    def from_json(cls, row: Any, reranker: Scorer | ListScorer) -> "Fused":
        """What `to_json` wrote, around the same reranker.

        Raises:
            ArtifactError: anything else, or another reranker: what was learned for one does not suit another.
        """
        checked = {f.name for f in fields(cls)}
        if not isinstance(row, Mapping) or set(row) != checked:
            raise ArtifactError(f"this does not say how a reranker is used: fields {', '.join(sorted(checked))} are needed")
        if row["reranker"] != reranker.fingerprint:
            raise ArtifactError(
                f"this was learned for reranker {row['reranker'][:12]}, and that one is {reranker.fingerprint[:12]}: "
                "learn it again (learn_fusion)"
            )
        gate = None if row["gate"] is None else Gate.from_json(row["gate"])
        budget = None if row["budget"] is None else Budget(**row["budget"])
        clip = None if row["clip"] is None else (float(row["clip"][0]), float(row["clip"][1]))
        rest = {name: row[name] for name in ("depth", "weight", "top", "stride")}
        return cls(reranker, **rest, gate=gate, clip=clip, budget=budget)

    def rescore(
        self, queries: Sequence[Item], items: Sequence[Sequence[Item]], scores: np.ndarray, *, progress: str = ""
    ) -> np.ndarray:
        """Scores that decide the order among the given candidates only.

        Args:
            queries: q of them.
            items: for each query its candidates, best first; `scores.shape[1]` each.
            scores: cosines of the embedder, [q k].
            progress: name of the work in a bar.
        """
        return self.reread(queries, items, scores, progress=progress).scores

    def reread(
        self, queries: Sequence[Item], items: Sequence[Sequence[Item]], scores: np.ndarray, *, progress: str = ""
    ) -> Reading:
        """As `rescore`, with what was read: queries that were left alone keep the scores they have.

        Lists may differ in length: scores are -inf beyond the end of a shorter one, and stay so. All share one budget.
        """
        if not len(queries) == len(items) == len(scores):
            raise RecipeError(f"{len(queries)} queries, candidates for {len(items)} and scores for {len(scores)}")
        cosines = scores.astype(np.float64)
        lists = _Lists(self, queries, items, cosines, progress)
        waiting = [row for row in lists.by_margin() if lists.weights[row] > 0]
        purse = _Purse(self.budget, len(queries))
        active: list[int] = []
        probes = waiting[: purse.probes] if isinstance(self.reranker, Scorer) else []
        if probes:
            lists.look([(row, column) for row in probes for column in range(2)])
            purse.note(lists.pairs)
        while True:
            wanted = {row: lists.wanted(row) for row in active}
            active = [row for row in active if len(wanted[row])]
            promised = sum(lists.unread(row) for row in active)
            while waiting:
                row, spent = waiting[0], lists.pairs + promised
                size, known = lists.unread(row), int(lists.read[row].sum())
                if not purse.allows(spent + size):
                    if active:  # they may need less than they were promised
                        break
                    size = next((n for n in range(size - 1, 1 if not known else 0, -1) if purse.allows(spent + n)), 0)
                    if not size:
                        break
                    lists.cut(row, known + size)
                waiting.pop(0)
                wanted[row] = lists.wanted(row)
                if len(wanted[row]):
                    active.append(row)
                    promised += size
            if not active:
                for row in waiting:  # what the probe read of them is put in order, the rest stays behind
                    lists.cut(row, int(lists.read[row].sum()) or None)
                return lists.reading()
            lists.look([(row, int(column)) for row in sorted(active) for column in wanted[row]])
            purse.note(lists.pairs)


def rescorer(rerank: Rescorer | Scorer | ListScorer) -> Rescorer:
    """What is given as it is, and a bare reranker as `Fused` with the settings that it has unless told otherwise."""
    return rerank if isinstance(rerank, Rescorer) else Fused(rerank)


class _Lists:
    """The candidates of every query: what is known of them so far, and what must still be read."""

    def __init__(
        self, fused: Fused, queries: Sequence[Item], items: Sequence[Sequence[Item]], cosines: np.ndarray, progress: str
    ):
        self.fused, self.queries, self.items, self.cosines, self.progress = fused, queries, items, cosines, progress
        self.weights = np.full(len(queries), fused.weight) if fused.gate is None else fused.gate.weights(queries, cosines)
        self.odds = np.zeros(cosines.shape)
        self.read = np.zeros(cosines.shape, dtype=bool)
        self.within = ~np.isneginf(cosines)  # what may be read
        for row, candidates in enumerate(items):
            if len(candidates) != self.within[row].sum():
                raise RecipeError(f"query {row} has {len(candidates)} candidates and {self.within[row].sum()} scores")

    @property
    def pairs(self) -> int:
        """How many were read."""
        return int(self.read.sum())

    def by_margin(self) -> list[int]:
        """The queries that have an order at all, the smallest margin first."""
        order = np.argsort(margins(self.cosines), kind="stable")
        return order[self.within.sum(axis=1)[order] > 1].tolist()

    def unread(self, row: int) -> int:
        """How many candidates of a query may still have to be read."""
        return int((self.within[row] & ~self.read[row]).sum())

    def cut(self, row: int, size: int | None) -> None:
        """Put only the best `size` candidates of a query in order; the others stay behind them."""
        if size is not None:
            self.within[row, size:] = False

    def bounds(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """What the score of each candidate of a query lies between: two equal numbers once it was read."""
        low, high = self.fused.clip or (-np.inf, np.inf)
        known = self.read[row] | ~self.within[row]
        odds = np.where(known, np.clip(self.odds[row], low, high), [[low], [high]])
        scores = np.where(self.within[row], self.cosines[row] + self.weights[row] * odds, -np.inf)
        return scores[0], scores[1]

    def wanted(self, row: int) -> Int[np.ndarray, " n"]:
        """The candidates of a query to read next; none when there is nothing left to learn."""
        if self.fused.top is None:
            return np.flatnonzero(self.within[row] & ~self.read[row])
        low, high = self.bounds(row)
        return undecided(low, high, self.read[row] | ~self.within[row], self.fused.top)[: self.fused.stride]

    def look(self, places: Sequence[tuple[int, int]]) -> None:
        """Read some candidates; a reranker of lists is shown all that their queries have."""
        if not isinstance(self.fused.reranker, Scorer):
            rows = list(dict.fromkeys(row for row, _ in places))
            shown = [self.items[row][: self.unread(row)] for row in rows]
            made = self.fused.reranker.score_lists([self.queries[row] for row in rows], shown, progress=self.progress)
            for row, offered, scores in zip(rows, shown, made, strict=True):
                self.odds[row, : len(offered)], self.read[row, : len(offered)] = scores, True
            return
        pairs = [(self.queries[row], self.items[row][column]) for row, column in places]
        found = self.fused.reranker.score_pairs(pairs, progress=self.progress)
        for (row, column), value in zip(places, found.tolist(), strict=True):
            self.odds[row, column], self.read[row, column] = value, True

    def reading(self) -> Reading:
        """Scores as they stand. What was left out of a list that was read counts as the lower bound: it is not in the top."""
        made = self.cosines.copy()
        for row in np.flatnonzero(self.read.any(axis=1)).tolist():
            within = self.within[row]
            made[row, within] = self.bounds(row)[0][within]
            if not within.all():
                made[row, ~within] += min(0.0, made[row, within].min() - made[row, ~within].max() - BEHIND)
        return Reading(made, self.read)


def undecided(
    low: Float[np.ndarray, " k"], high: Float[np.ndarray, " k"], read: Bool[np.ndarray, " k"], top: int
) -> Int[np.ndarray, " n"]:
    """Candidates that must be read before the first `top` places of a list are certain, in the order of the list.

    A candidate is out when at least `top` others are certainly above it. One that is not out may stay unread only if it
    cannot change places with any other that is not out: their scores lie in intervals that have no point in common.

    Args:
        low: the least that each candidate's score can be.
        high: the most; equal to `low` where it is known.
        read: whether the candidate was read.
        top: how many places matter.
    """
    last = np.partition(low, len(low) - top)[len(low) - top] if top < len(low) else -np.inf
    within = high >= last
    unread = np.flatnonzero(within & ~read)
    meets = (low[unread, None] <= high) & (low <= high[unread, None]) & within
    meets[np.arange(len(unread)), unread] = False
    return unread[meets.any(axis=1)]


class _Purse:
    """What may still be spent."""

    def __init__(self, budget: Budget | None, queries: int):
        self.budget, self.queries = budget or Budget(), queries
        self.start, self.pairs, self.asked = time.perf_counter(), 0, 0
        self.rate: float | None = None  # seconds per pair

    @property
    def probes(self) -> int:
        """Queries of which two candidates are read to learn what a pair costs; none where time plays no part."""
        if not self.budget.milliseconds:
            return 0
        return PROBE if self.budget.pairs is None else min(PROBE, int(self.budget.pairs * self.queries) // 2)

    def note(self, pairs: int) -> None:
        """So many pairs were read until now."""
        self.rate = (time.perf_counter() - self.start) / pairs

    def allows(self, pairs: int) -> bool:
        """Whether so many pairs in all stay within the budget."""
        if self.budget.pairs is not None and pairs > self.budget.pairs * self.queries:
            return False
        if self.budget.milliseconds is None:
            return True
        limit = self.budget.milliseconds * self.queries / 1000
        if self.rate is None:  # nothing is known yet: a few queries tell
            self.asked += 1
            return limit > 0 and self.asked <= PROBE
        return pairs * self.rate <= limit
