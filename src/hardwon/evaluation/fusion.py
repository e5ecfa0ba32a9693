"""How much a reranker's word should count, and where it should not be asked at all: learned on held-out queries."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from rich.table import Table

from hardwon import metrics
from hardwon.errors import RecipeError
from hardwon.evaluation.compare import rendered
from hardwon.evaluation.ranking import heads_of
from hardwon.evaluation.result import DRAWS, SEED
from hardwon.evaluation.run import prepared
from hardwon.evaluation.task import Benchmark
from hardwon.items import Item
from hardwon.metrics import Interval
from hardwon.models.scorer import Encoder, ListScorer, Scorer
from hardwon.randomness import generator
from hardwon.search import Fused, Gate, Kind
from hardwon.search.gate import margins

WEIGHTS = (0.0, 0.003, 0.006, 0.012, 0.025, 0.05, 0.1, 0.2, 0.4)


@dataclass(frozen=True)
class Learned:
    """How a reranker is to be used, and how that was found.

    Attributes:
        fused: the reranker with its weight, and what else was learned.
        tried: (weight, mean P@1 on the validation benchmark) of every weight tried, without a gate.
        gain: in mean P@1 by the gated reranker on queries that its weights were not learned on; None without a gate.
    """

    fused: Fused
    tried: tuple[tuple[float, float], ...]
    gain: Interval | None = None

    def table(self) -> Table:
        """A row for each kind of query: what reranking gained, and whether the gate lets it through."""
        if self.fused.gate is None or self.gain is None:
            raise RecipeError("there is no gate to show: learn_fusion learns one")
        made = Table(title="gate of the reranker, gain in P@1 points on held-out queries, with its lower bound")
        for heading in ("kind of query", "queries", "gain", "weight", "margin up to", "reranked"):
            made.add_column(heading, justify="left" if heading == "kind of query" else "right")
        for kind in self.fused.gate.kinds:
            gain = f"{100 * kind.gain.mean:+.1f} (> {100 * kind.gain.low:+.1f})"
            how = ("", "", "never")
            if kind.passes:
                how = (f"{kind.weight:g}", f"{kind.margin:.3f}", f"{100 * kind.reranked:.0f} %")
            made.add_row(kind.instruction or "(no instruction)", f"{kind.queries}", gain, *how)
        made.add_section()
        asked = sum(kind.queries for kind in self.fused.gate.kinds)
        share = sum(kind.queries * kind.reranked for kind in self.fused.gate.kinds if kind.passes) / asked
        shown = f"{100 * self.gain.mean:+.1f} [{100 * self.gain.low:+.1f}, {100 * self.gain.high:+.1f}]"
        made.add_row("mean over data sets", f"{asked}", shown, "", "", f"{100 * share:.0f} %", style="bold")
        return made

    def __rich__(self) -> Table:
        return self.table()

    def __str__(self) -> str:
        return rendered(self.table())


@dataclass(frozen=True)
class Held:
    """What embedder and reranker say of the best candidates of held-out queries, each pair read once.

    Attributes:
        tasks: of each query.
        queries: what was asked.
        cosines: of its candidates, best first; -inf where there are fewer.
        odds: log-odds of the same.
        gold: which of them belong to it.
    """

    tasks: tuple[str, ...]
    queries: tuple[Item, ...]
    cosines: Float[np.ndarray, "n k"]
    odds: Float[np.ndarray, "n k"]
    gold: Bool[np.ndarray, "n k"]

    @classmethod
    def read(cls, encoder: Encoder, reranker: Scorer | ListScorer, benchmark: Benchmark, depth: int) -> "Held":
        """Ask both models."""
        tasks, queries, heads = [], [], []
        for ready in prepared(encoder, benchmark):
            for head in heads_of(ready, depth):
                tasks.append(ready.task.name)
                queries.append(ready.task.queries[head.row])
                heads.append(head)
        odds = _read(reranker, queries, [head.items for head in heads], f"reranking {benchmark.name}")
        shape = len(heads), max(len(head.items) for head in heads)
        made = cls(tuple(tasks), tuple(queries), np.full(shape, -np.inf), np.zeros(shape), np.zeros(shape, dtype=bool))
        place = 0
        for row, head in enumerate(heads):
            count = len(head.items)
            made.cosines[row, :count], made.gold[row, :count] = head.scores, head.gold
            made.odds[row, :count] = odds[place : place + count]
            place += count
        return made

    def hits(self, weights: float | Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """P@1 of each query, the mean over the order of ties, with a weight for all or for each."""
        scores = self.cosines + np.reshape(weights, (-1, 1)) * self.odds
        first = scores == scores.max(axis=1, keepdims=True)
        return (first & self.gold).sum(axis=1) / first.sum(axis=1)

    def by_task(self, values: Float[np.ndarray, " n"]) -> list[torch.Tensor]:
        """Values of each task's queries, tasks by name."""
        names = np.array(self.tasks)
        return [torch.from_numpy(values[names == name]) for name in sorted(set(self.tasks))]

    def mean(self, values: Float[np.ndarray, " n"]) -> float:
        """Mean over tasks."""
        return float(torch.stack([task.mean() for task in self.by_task(values)]).mean())


def learn_weight(
    encoder: Encoder, reranker: Scorer | ListScorer, benchmark: Benchmark, *, depth: int, weights: Sequence[float] = WEIGHTS
) -> Learned:
    """The weight with the best mean P@1 on a validation benchmark; the smallest of equals. There is no gate.

    Args:
        encoder: ranks first.
        reranker: its log-odds are added to the cosine.
        benchmark: held out from training and from test.
        depth: candidates per query that the reranker reads.
        weights: to try; 0 among them means that the reranker may be found to be of no use.
    """
    held = Held.read(encoder, reranker, benchmark, depth)
    tried = tuple((weight, held.mean(held.hits(weight))) for weight in sorted(weights))
    return Learned(Fused(reranker, depth, _best(tried)), tried)


def learn_fusion(
    encoder: Encoder,
    reranker: Scorer | ListScorer,
    benchmark: Benchmark,
    *,
    depth: int,
    weights: Sequence[float] = WEIGHTS,
    level: float = 0.95,
    folds: int = 5,
    seed: int = 0,
) -> Learned:
    """Weights and gate, so that reranking is done where held-out queries gained by it and nowhere else.

    Queries with the same instruction are a kind. What a kind gained is measured on queries that its weight was not learned
    on (cross-fitting); it passes when the lower end of a one-sided bootstrap interval of that gain is not below zero, one
    loss being counted that nobody saw: without it, a single lucky query among sixty would do. A reranker of no use comes out
    as never to be asked.

    Args:
        encoder: ranks first.
        reranker: its log-odds are added to the cosine.
        benchmark: held out from training and from test.
        depth: candidates per query that the reranker reads.
        weights: to try.
        level: confidence of the lower bounds.
        folds: parts that take turns at being left out.
        seed: of the parts.

    Raises:
        RecipeError: less than two folds, a level outside (0.5, 1), or no weight above 0.
    """
    if folds < 2 or not 0.5 < level < 1 or not any(weight > 0 for weight in weights):
        given = f"got {folds}, {level:g} and {tuple(weights)}"
        raise RecipeError(f"learning a gate needs folds >= 2, 0.5 < level < 1 and a weight above 0; {given}")
    held = Held.read(encoder, reranker, benchmark, depth)
    tried = tuple((weight, held.mean(held.hits(weight))) for weight in sorted(weights))
    parts = np.array([generator(seed, "fold", query.key).randrange(folds) for query in held.queries])
    said = np.array([query.instruction for query in held.queries])
    gate = Gate(tuple(_kind(held, name, said == name, parts, (sorted(weights), level)) for name in sorted(set(said.tolist()))))
    gains = np.zeros(len(said))
    for kind in gate.kinds:
        if kind.passes:
            rows = said == kind.instruction
            gains[rows] = _cross_fitted(held, rows, parts, sorted(weights))[rows]
    gain = metrics.macro_interval(held.by_task(gains), draws=DRAWS, seed=SEED)
    within = held.odds[np.isfinite(held.cosines)]
    clip = (float(within.min()), float(within.max()))
    return Learned(Fused(reranker, depth, _best(tried), gate, clip), tried, gain)


def _read(
    reranker: Scorer | ListScorer, queries: Sequence[Item], lists: Sequence[Sequence[Item]], progress: str
) -> Float[np.ndarray, " n"]:
    """What is said of all candidates; pairs that several tasks ask are read once."""
    if not isinstance(reranker, Scorer):
        return np.concatenate(reranker.score_lists(queries, lists, progress=progress)).astype(np.float64)
    pairs = [(query, item) for query, items in zip(queries, lists, strict=True) for item in items]
    keys = [(query.key, item.key) for query, item in pairs]
    distinct = dict(zip(keys, pairs, strict=True))
    odds = dict(zip(distinct, reranker.score_pairs(list(distinct.values()), progress=progress).tolist(), strict=True))
    return np.array([odds[key] for key in keys])


def _best(tried: Sequence[tuple[float, float]]) -> float:
    return max(tried, key=lambda pair: (round(pair[1], 9), -pair[0]))[0]


def _kind(held: Held, name: str, rows: Bool[np.ndarray, " n"], parts: np.ndarray, how: tuple[Sequence[float], float]) -> Kind:
    weights, level = how
    gains = _cross_fitted(held, rows, parts, weights)[rows]
    # One-sided at `level`: an interval with as much outside on the other end.
    low = metrics.interval(torch.from_numpy(np.append(gains, -1.0)), draws=DRAWS, level=2 * level - 1, seed=SEED).low
    found = metrics.interval(torch.from_numpy(gains), draws=DRAWS, level=2 * level - 1, seed=SEED)
    weight = _best([(weight, float(held.hits(weight)[rows].mean())) for weight in weights])
    apart = margins(held.cosines)
    won = rows & (held.hits(weight) > held.hits(0.0))
    margin = float(apart[won].max()) if won.any() else 0.0
    passing = float((apart[rows] <= margin).mean())
    return Kind(name, int(rows.sum()), replace(found, low=low), weight, margin, passing)


def _cross_fitted(
    held: Held, rows: Bool[np.ndarray, " n"], parts: np.ndarray, weights: Sequence[float]
) -> Float[np.ndarray, " n"]:
    """What each of these queries gains with the weight that is best for the others, in other parts than its own."""
    hits = {weight: held.hits(weight) for weight in weights}
    before, gains = held.hits(0.0), np.zeros(len(rows))
    for part in range(int(parts.max()) + 1):
        theirs, others = rows & (parts == part), rows & (parts != part)
        if theirs.any() and others.any():
            weight = _best([(weight, float(hits[weight][others].mean())) for weight in weights])
            gains[theirs] = (hits[weight] - before)[theirs]
    return gains
