"""`evaluate`: encode what is distinct once, rank every task, report."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from hardwon import artifacts, metrics
from hardwon.errors import ModelError, RecipeError, unknown
from hardwon.evaluation.report import Report
from hardwon.evaluation.result import TaskResult
from hardwon.evaluation.task import Benchmark, Metric, Positions, Task
from hardwon.items import Item
from hardwon.models.scorer import Encoder
from hardwon.search.index import Rescorer

_QUERIES, _CORPUS = 512, 4096  # rows of a block of scores, and columns that are multiplied at a time


@dataclass(frozen=True)
class _Ready:
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


def evaluate(
    encoder: Encoder,
    benchmark: Benchmark,
    *,
    rerank: Rescorer | None = None,
    tasks: Sequence[str] | None = None,
    label: str = "",
    progress: bool = True,
) -> Report:
    """Ask a model every query of a benchmark.

    Each distinct item (`Item.key`) of all tasks is encoded exactly once, in one call, in an order that depends on the
    items alone. Scores are computed in float64 and rounded to float32: candidates with equal vectors get equal scores
    wherever they stand, and what is counted as a tie does not depend on the order of the corpus or on blocks.

    Args:
        encoder: the model.
        benchmark: what to ask.
        rerank: orders each query's best `depth` candidates anew; the others stay below them.
        tasks: names of the tasks to ask, all when None. A report of some tasks refuses to give means.
        label: what to call the model in tables.
        progress: whether to show progress bars.

    Raises:
        ModelError: vectors or new scores that are not finite, of the wrong shape or (vectors) not of unit length; names
            the task and the item.
        RecipeError: a task that the benchmark does not have; a reranker of depth 0.
    """
    if rerank is not None and rerank.depth < 1:
        raise RecipeError(f"the depth of a reranker must be 1 or more, got {rerank.depth}")
    start = time.perf_counter()
    chosen = _chosen(benchmark, tasks)
    distinct = {item.key: item for task in chosen for item in (*task.queries, *task.corpus)}
    keys = sorted(distinct)
    vectors = encoder.encode([distinct[key] for key in keys], progress=f"encoding {benchmark.name}" if progress else "")
    _check_vectors(vectors, [distinct[key] for key in keys], encoder.dim, chosen)
    encoded = time.perf_counter()
    place = {key: n for n, key in enumerate(keys)}
    results = tuple(_evaluated(_ready(task, place, vectors), rerank, progress) for task in chosen)
    made = artifacts.environment() | {
        "rerank": None if rerank is None else {"type": type(rerank).__name__, "depth": rerank.depth},
        "items_encoded": len(keys),
        "seconds_encoding": round(encoded - start, 3),
        "seconds_ranking": round(time.perf_counter() - encoded, 3),
    }
    if benchmark.missing:
        made["missing"] = {gone.name: gone.why for gone in benchmark.missing}
    names = tuple(named.name for named in (*benchmark.tasks, *benchmark.missing))
    return Report(encoder.fingerprint, benchmark.name, benchmark.revision, names, label, results, made)


def _chosen(benchmark: Benchmark, names: Sequence[str] | None) -> list[Task]:
    valid = [task.name for task in benchmark.tasks]
    if names is not None and not names:
        raise RecipeError(f"tasks is empty: name some of {', '.join(valid)}, or leave it out for all of them")
    for name in names or ():
        if name not in valid:
            raise RecipeError(unknown(f"task of {benchmark.name}", name, valid))
    return [task for task in benchmark.tasks if names is None or task.name in names]


def _check_vectors(vectors: np.ndarray, items: Sequence[Item], dim: int, tasks: Sequence[Task]) -> None:
    if vectors.shape != (len(items), dim):
        raise ModelError(f"the model gives an array of shape {vectors.shape} for {len(items)} items, not {(len(items), dim)}")
    with np.errstate(over="ignore"):
        lengths = np.linalg.norm(vectors, axis=1)
    wrong = np.flatnonzero(~(np.abs(lengths - 1) <= 1e-3))
    if len(wrong):
        item = items[int(wrong[0])]
        name = next(task.name for task in tasks if any(item.key == other.key for other in (*task.queries, *task.corpus)))
        length = lengths[wrong[0]]
        what = f"have length {length:.4g} instead of 1" if np.isfinite(length) else "are not finite"
        raise ModelError(f"task {name}: {len(wrong)} vectors of the model {what}, first for {_shown(item)}")


def _shown(item: Item) -> str:
    return repr(item.text[:60]) if item.text else f"picture {item.key[:12]}"


def _ready(task: Task, place: dict[str, int], vectors: Float[np.ndarray, "n d"]) -> _Ready:
    keys = [item.key for item in task.corpus]
    contents: dict[str, int] = {}
    shown = np.array([contents.setdefault(item.content, len(contents)) for item in task.corpus])
    queries = vectors[[place[item.key] for item in task.queries]]
    order = np.unique(keys, return_inverse=True)[1]
    return _Ready(task, queries, vectors[[place[key] for key in keys]], shown, order)


def _evaluated(ready: _Ready, rerank: Rescorer | None, progress: bool) -> TaskResult:
    levels = None if rerank is None else _reranked(ready, rerank, f"reranking {ready.task.name}" if progress else "")
    found: list[tuple[np.ndarray, metrics.Ranking]] = []
    values: list[tuple[torch.Tensor, torch.Tensor]] = []
    golds: list[metrics.GoldRanks] = []
    for block in _blocks(ready):
        scores = torch.from_numpy(block.scores if levels is None else _adjusted(block, levels))
        relevance = torch.from_numpy(_relevance(ready, block))
        valid = torch.ones_like(relevance, dtype=torch.bool)
        ranking = metrics.rank(scores, relevance > 0, valid)
        found.append((block.rows, ranking))
        values.append(_value(ready.task.metric, ranking, scores, relevance))
        golds.append(metrics.worst_ranks(scores, relevance, valid))
    rows = np.argsort(np.concatenate([rows for rows, _ in found]))

    def column(values: Sequence[torch.Tensor]) -> tuple:
        return tuple(torch.cat(list(values))[rows].tolist())

    rankings = [ranking for _, ranking in found]
    return TaskResult(
        ready.task.name,
        ready.task.meta_task,
        ready.task.distribution,
        hits=column([value for value, _ in values]),
        ranks=column([r.rank() for r in rankings]),
        ties=column([r.others_tied for r in rankings]),
        chance=float(torch.cat([guessed for _, guessed in values]).mean()),
        candidates=round(float(torch.cat([r.offered for r in rankings]).double().mean())),
        metric=ready.task.metric,
        measures={name: float(value.mean()) for name, value in metrics.GoldRanks.joined(golds).at().items()},
    )


def _value(
    metric: Metric, ranking: metrics.Ranking, scores: Float[torch.Tensor, "q c"], relevance: Float[torch.Tensor, "q c"]
) -> tuple[Float[torch.Tensor, " q"], Float[torch.Tensor, " q"]]:
    """The metric of each query, and what guessing gets: the same with all scores equal."""
    if metric == "hit@1":
        return ranking.hit(), ranking.chance()
    valid = torch.ones_like(relevance, dtype=torch.bool)
    guessed = metrics.ndcg(torch.zeros_like(scores), relevance, valid, 5)
    return metrics.ndcg(scores, relevance, valid, 5).clamp(max=1), guessed.clamp(max=1)  # rounding ends above 1 at times


def _blocks(ready: _Ready) -> Iterator[_Block]:
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


def _relevance(ready: _Ready, block: _Block) -> Float[np.ndarray, "q c"]:
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


def _best(ready: _Ready, block: _Block, depth: int) -> Int[np.ndarray, "q k"]:
    """Columns of the block with the highest scores, best first; ties by content."""
    order = np.broadcast_to(ready.order[block.positions], block.scores.shape)
    return np.lexsort((order, -block.scores), axis=-1)[:, :depth]


Levels = dict[int, tuple[np.ndarray, np.ndarray]]


def _reranked(ready: _Ready, rerank: Rescorer, progress: str) -> Levels:
    """For each query the columns of its best candidates and their places by the new scores, 0 the lowest; ties stay ties."""
    heads: dict[int, list[tuple[int, np.ndarray, list[Item], np.ndarray]]] = {}
    for block in _blocks(ready):
        best = _best(ready, block, rerank.depth)
        for row, columns, scores in zip(block.rows.tolist(), best, np.take_along_axis(block.scores, best, 1), strict=True):
            items = [ready.task.corpus[n] for n in block.positions[columns]]
            heads.setdefault(len(columns), []).append((row, columns, items, scores))
    levels: Levels = {}
    for _, group in sorted(heads.items(), reverse=True):  # queries with fewer candidates than `depth` are asked for apart
        queries = [ready.task.queries[row] for row, *_ in group]
        scores = np.stack([scores for *_, scores in group])
        new = rerank.rescore(queries, [items for _, _, items, _ in group], scores, progress=progress)
        _check_rescored(new, scores, queries, ready.task.name)
        for (row, columns, _, _), values in zip(group, new, strict=True):
            levels[row] = columns, np.unique(values, return_inverse=True)[1]
    return levels


def _check_rescored(new: np.ndarray, scores: np.ndarray, queries: Sequence[Item], task: str) -> None:
    if new.shape != scores.shape:
        raise ModelError(f"task {task}: the reranker gives scores of shape {new.shape}, asked were {scores.shape}")
    broken = np.flatnonzero(~np.isfinite(new).all(axis=1))
    if len(broken):
        first = _shown(queries[int(broken[0])])
        raise ModelError(f"task {task}: scores of the reranker are not finite for {len(broken)} queries, first for {first}")


def _adjusted(block: _Block, levels: Levels) -> Float[np.ndarray, "q c"]:
    """Scores that order the best candidates by their new places, all of them above the others, which keep their scores."""
    made = block.scores.copy()
    for line, row in enumerate(block.rows.tolist()):
        columns, places = levels[row]
        made[line, columns] = 2 + places  # similarities do not reach 2
    return made
