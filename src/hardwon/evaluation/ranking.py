"""Ranking the candidates of one task, by the embedder alone or with a reranker behind it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from hardwon import metrics
from hardwon.distributed import World
from hardwon.evaluation.asked import Asked
from hardwon.evaluation.result import TaskResult
from hardwon.evaluation.sharing import Shared
from hardwon.evaluation.task import Metric, Positions, Task
from hardwon.evaluation.vectors import Vectors
from hardwon.items import Item
from hardwon.models.scorer import Scorer
from hardwon.search.rerank import Fused
from hardwon.search.rescore import Rescored, Rescorer, rescored

_QUERIES, _CORPUS = 512, 4096  # rows of a block of scores, and columns that are multiplied at a time


@dataclass(frozen=True)
class Ready:
    """A task with its vectors, and its items as numbers.

    Attributes:
        task: the task.
        queries: a vector for each query.
        corpus: a vector for each corpus entry.
        shown: equal numbers where corpus entries show the same.
        order: breaks ties at the depth of a reranker: by content, so that the order of the corpus plays no part.
    """

    task: Task
    queries: Float[np.ndarray, "q d"]
    corpus: Float[np.ndarray, "n d"]
    shown: Int[np.ndarray, " n"]
    order: Int[np.ndarray, " n"]

    @classmethod
    def of(cls, asked: Asked, vectors: Vectors) -> "Ready":
        """A task whose items have their vectors."""
        contents: dict[str, int] = {}
        shown = np.array([contents.setdefault(item.content, len(contents)) for item in asked.task.corpus])
        order = np.unique(asked.corpus, return_inverse=True)[1]
        return cls(asked.task, vectors.of(asked.queries), vectors.of(asked.corpus), shown, order)


@dataclass(frozen=True)
class _Block:
    """Queries of a task that search the same candidates.

    Attributes:
        rows: which queries.
        positions: which corpus entries.
        scores: similarity of each query and candidate.
    """

    rows: Int[np.ndarray, " q"]
    positions: Int[np.ndarray, " c"]
    scores: Float[np.ndarray, "q c"]


def ranked(ready: Ready, rerank: Rescorer | None, progress: bool, world: World) -> tuple[TaskResult, Rescored | None]:
    """The result of a task, and what the reranker read for it.

    Args:
        ready: the task.
        rerank: looks at the best candidates once more; its scores decide the order among them only.
        progress: whether to show bars.
        world: the processes that evaluate together: they share out what is reranked.
    """
    levels, read = None, None
    if rerank is not None:
        levels, read = _reranked(ready, rerank, f"reranking {ready.task.name}" if progress else "", world)
    found: list[tuple[np.ndarray, metrics.Ranking]] = []
    values: list[tuple[torch.Tensor, torch.Tensor]] = []
    golds: list[metrics.GoldRanks] = []
    firsts: list[np.ndarray] = []
    for block in _blocks(ready):
        placed, grades = block.scores if levels is None else _adjusted(block, levels), _relevance(ready, block)
        scores, relevance = torch.from_numpy(placed), torch.from_numpy(grades)
        valid = torch.ones_like(relevance, dtype=torch.bool)
        ranking = metrics.rank(scores, relevance > 0, valid)
        found.append((block.rows, ranking))
        values.append(_value(ready.task.metric, ranking, scores, relevance))
        golds.append(metrics.worst_ranks(scores, relevance, valid))
        firsts.append(_first(ready, block, placed, grades > 0))
    rows = np.argsort(np.concatenate([rows for rows, _ in found]))

    def column(values: Sequence[torch.Tensor]) -> tuple:
        return tuple(torch.cat(list(values))[rows].tolist())

    rankings = [ranking for _, ranking in found]
    result = TaskResult(
        ready.task.name,
        ready.task.meta_task,
        ready.task.distribution,
        hits=column([value for value, _ in values]),
        ranks=column([r.rank() for r in rankings]),
        ties=column([r.others_tied for r in rankings]),
        chance=float(torch.cat([guessed for _, guessed in values]).mean()),
        candidates=round(float(torch.cat([r.offered for r in rankings]).double().mean())),
        worst=column([r.worst_rank() for r in rankings]),
        firsts=tuple(np.concatenate(firsts)[rows].tolist()),
        metric=ready.task.metric,
        measures={name: float(value.mean()) for name, value in metrics.GoldRanks.joined(golds).at().items()},
    )
    return result, read


def _value(
    metric: Metric, ranking: metrics.Ranking, scores: Float[torch.Tensor, "q c"], relevance: Float[torch.Tensor, "q c"]
) -> tuple[Float[torch.Tensor, " q"], Float[torch.Tensor, " q"]]:
    """The metric of each query, and what guessing gets: the same with all scores equal."""
    if metric == "hit@1":
        return ranking.hit(), ranking.chance()
    valid = torch.ones_like(relevance, dtype=torch.bool)
    guessed = metrics.ndcg(torch.zeros_like(scores), relevance, valid, 5)
    return metrics.ndcg(scores, relevance, valid, 5).clamp(max=1), guessed.clamp(max=1)  # rounding ends above 1 at times


def _first(
    ready: Ready, block: _Block, scores: Float[np.ndarray, "q c"], gold: Bool[np.ndarray, "q c"]
) -> Int[np.ndarray, " q"]:
    """Corpus positions of what came first; of several that tie one that is not gold, by content."""
    order = ready.order[block.positions]
    late = np.where(gold, len(ready.corpus), 0) + order
    return block.positions[np.where(scores == scores.max(axis=1, keepdims=True), late, 2 * len(ready.corpus)).argmin(axis=1)]


def _blocks(ready: Ready) -> Iterator[_Block]:
    """Scores of all queries, those that search the same candidates together: no padding, and one product for many."""
    whole = tuple(range(len(ready.corpus)))
    groups: dict[Positions, list[int]] = {}
    for row in range(len(ready.queries)):
        groups.setdefault(ready.task.candidates[row] if ready.task.candidates is not None else whole, []).append(row)
    for searched, rows in groups.items():
        positions = np.array(searched)
        corpus = ready.corpus if searched == whole else ready.corpus[positions]
        for start in range(0, len(rows), _QUERIES):
            block = np.array(rows[start : start + _QUERIES])
            yield _Block(block, positions, _similarity(ready.queries[block], corpus))


def _similarity(queries: Float[np.ndarray, "q d"], corpus: Float[np.ndarray, "c d"]) -> Float[np.ndarray, "q c"]:
    exact = queries.astype(np.float64)
    made = np.empty((len(queries), len(corpus)), dtype=np.float32)
    for start in range(0, len(corpus), _CORPUS):
        part = slice(start, start + _CORPUS)
        made[:, part] = exact @ corpus[part].astype(np.float64).T
    return made


def _relevance(ready: Ready, block: _Block) -> Float[np.ndarray, "q c"]:
    """The grades of gold, and of candidates that show the same as gold; 0 for all others."""
    shown = ready.shown[block.positions]
    made = np.zeros(block.scores.shape)
    for line, row in enumerate(block.rows):
        gold = ready.task.gold[row]
        grades = (1.0,) * len(gold) if ready.task.grades is None else ready.task.grades[row]
        for position, grade in zip(gold, grades, strict=True):
            same = shown == ready.shown[position]
            made[line, same] = np.maximum(made[line, same], grade)
    return made


def _best(ready: Ready, block: _Block, depth: int) -> Int[np.ndarray, "q k"]:
    """Columns of the block with the highest scores, best first; ties by content."""
    order = np.broadcast_to(ready.order[block.positions], block.scores.shape)
    return np.lexsort((order, -block.scores), axis=-1)[:, :depth]


@dataclass(frozen=True)
class Head:
    """The best candidates of a query, best first.

    Attributes:
        row: which query of the task.
        columns: which of the positions that the query searches.
        items: the candidates.
        scores: their similarities.
        gold: which of them count as gold.
    """

    row: int
    columns: Int[np.ndarray, " k"]
    items: tuple[Item, ...]
    scores: Float[np.ndarray, " k"]
    gold: Bool[np.ndarray, " k"]


def heads_of(ready: Ready, depth: int) -> list[Head]:
    """The best `depth` candidates of every query of a task: what a reranker is shown."""
    made = []
    for block in _blocks(ready):
        best, gold = _best(ready, block, depth), _relevance(ready, block) > 0
        for line, (row, columns) in enumerate(zip(block.rows.tolist(), best, strict=True)):
            items = tuple(ready.task.corpus[n] for n in block.positions[columns])
            made.append(Head(row, columns, items, block.scores[line, columns], gold[line, columns]))
    return sorted(made, key=lambda head: head.row)


Levels = dict[int, tuple[np.ndarray, np.ndarray]]


def _reranked(ready: Ready, rerank: Rescorer, progress: str, world: World) -> tuple[Levels, Rescored]:
    """For each query the columns of its best candidates and their places by the new scores, 0 the lowest; ties stay ties."""
    heads = heads_of(ready, rerank.depth)
    together = isinstance(rerank, Fused) and rerank.budget is not None and world.size > 1
    if together:  # a budget goes to the smallest margins of all queries: every process looks at all, and reads its part
        assert isinstance(rerank, Fused) and isinstance(rerank.reranker, Scorer)
        rerank = replace(rerank, reranker=Shared(rerank.reranker, world))
    mine = heads if together else heads[world.rows(len(heads))]
    with world.all_or_none("reranking"):
        new = rescored(
            rerank,
            [ready.task.queries[head.row] for head in mine],
            [head.items for head in mine],
            [head.scores for head in mine],
            progress=progress,
            where=f"task {ready.task.name}: ",
        )
    if world.size > 1 and not together:
        new = _gathered(new, heads, world)
    places = [np.unique(values, return_inverse=True)[1] for values in new.scores]
    return {head.row: (head.columns, levels) for head, levels in zip(heads, places, strict=True)}, new


def _gathered(mine: Rescored, heads: Sequence[Head], world: World) -> Rescored:
    """What all processes read, in the order of the queries."""
    part = world.rows(len(heads))
    made = np.zeros((len(heads), 1 + max(len(head.items) for head in heads)))
    for row, (count, scores) in enumerate(zip(mine.read, mine.scores, strict=True), part.start):
        made[row, 0], made[row, 1 : 1 + len(scores)] = count, scores
    made = world.sum(torch.from_numpy(made).to(world.device)).cpu().numpy()
    scores = tuple(row[1 : 1 + len(head.items)] for row, head in zip(made, heads, strict=True))
    return Rescored(scores, tuple(made[:, 0].astype(int).tolist()))


def _adjusted(block: _Block, levels: Levels) -> Float[np.ndarray, "q c"]:
    """Scores that order the best candidates by their new places, all of them above the others, which keep their scores."""
    made = block.scores.copy()
    for line, row in enumerate(block.rows.tolist()):
        columns, places = levels[row]
        made[line, columns] = 2 + places  # similarities do not reach 2
    return made
