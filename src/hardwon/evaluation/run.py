"""`evaluate`: encode what is distinct once, rank every task, report."""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from rich.markup import escape

from hardwon import artifacts, metrics
from hardwon.distributed import World
from hardwon.errors import HardwonError, ModelError, OnError, RecipeError, unknown
from hardwon.evaluation.asked import Asked, in_order, placed
from hardwon.evaluation.described import described
from hardwon.evaluation.report import Report
from hardwon.evaluation.result import TaskResult, percent
from hardwon.evaluation.task import Benchmark, Positions, Task, revision_of
from hardwon.evaluation.vectors import Vectors
from hardwon.items import Item
from hardwon.models.scorer import Encoder
from hardwon.progress import bar, console
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
    store: Path | None = None,
    on_error: OnError = "raise",
) -> Report:
    """Ask a model every query of a benchmark.

    Each distinct item (`Item.key`) of all tasks is encoded exactly once. The task with the fewest items goes first, and what
    came of a task is shown as soon as it is known. Scores are computed in float64 and rounded to float32: candidates with
    equal vectors get equal scores wherever they stand, and what is counted as a tie does not depend on the order of the
    corpus or on blocks. With several processes (torch.distributed) the items are shared out, and all of them return the same
    report, equal to that of one process.

    Args:
        encoder: the model.
        benchmark: what is asked; `sampled` makes a smaller one.
        rerank: looks at the best candidates of every query once more. Its scores decide the order among them only; all
            other candidates stay below them.
        tasks: names of the tasks to ask, all when None. A report of some tasks refuses to give means.
        label: what to call the model in tables.
        progress: whether to show progress bars, and the result of each task when it is there.
        store: folder where vectors are kept as they come, for later runs and for this one if it is killed.
        on_error: "skip" goes on with the other tasks where one cannot be asked; the report says what is missing and why.

    Raises:
        BadItems: items that cannot be used, or whose vectors are not finite or not of unit length; names task and row of each.
        ModelError: anything else that is wrong with the model or the reranker; names the task.
        RecipeError: a task that the benchmark does not have; a reranker of depth 0.
    """
    if rerank is not None and rerank.depth < 1:
        raise RecipeError(f"the depth of a reranker must be 1 or more, got {rerank.depth}")
    start = time.perf_counter()
    failed: dict[str, str] = {}
    keyed = in_order(_chosen(benchmark, tasks), on_error, failed)
    world = World.current()
    vectors = Vectors(encoder, store, world)
    distinct = {key for task in keyed for key in task.items if key not in vectors.cached.store.rows}
    shown = progress and world.first
    results, clock = {}, _Clock()
    with bar(f"encoding {benchmark.name}", len(distinct), "items", shown=shown and bool(distinct)) as advance:
        for number, asked in enumerate(keyed, 1):
            try:
                with clock.on("encoding"):
                    vectors.add(asked.items, advance)
                with clock.on("ranking"):
                    results[asked.task.name] = _evaluated(_ready(asked, vectors), rerank, shown, world)
            except HardwonError as error:
                reason = placed(asked.task, error)
                if on_error == "raise":
                    raise reason from error
                failed[asked.task.name] = str(reason)
            if shown:
                _say(asked.task.name, results, failed, f"{number} of {len(keyed)}")
    if not results:
        raise ModelError("no task could be asked:\n" + "\n".join(failed.values()))
    made = artifacts.environment() | {
        "model": described(vectors.cached.encoder),
        "rerank": None if rerank is None else described(rerank),
        "failed": failed,
        "items": len({key for task in keyed for key in task.items}),
        "items_encoded": vectors.encoded,
        "processes": world.size,
        "seconds_encoding": round(clock.spent["encoding"], 3),
        "seconds_ranking": round(clock.spent["ranking"], 3),
        "seconds": round(time.perf_counter() - start, 3),
    }
    return Report(
        encoder.fingerprint,
        benchmark.name,
        revision_of(benchmark, [name for name in failed if name not in {task.task.name for task in keyed}]),
        tuple(task.name for task in benchmark.tasks),
        label,
        tuple(results[task.name] for task in benchmark.tasks if task.name in results),
        made,
    )


class _Clock:
    """Seconds by kind of work."""

    def __init__(self):
        self.spent = {"encoding": 0.0, "ranking": 0.0}

    @contextlib.contextmanager
    def on(self, work: str) -> Iterator[None]:
        """Count the block as this work."""
        start = time.perf_counter()
        yield
        self.spent[work] += time.perf_counter() - start


def _say(name: str, results: Mapping[str, TaskResult], failed: Mapping[str, str], count: str) -> None:
    if name in failed:
        console().print(f"   [red]{escape(name)} failed[/]: {escape(failed[name])} [dim]({count})[/]")
    else:
        result = results[name]
        console().print(f"   {escape(name)} {percent(result.interval())} [dim]hit@1 of {result.queries} queries ({count})[/]")


def _chosen(benchmark: Benchmark, names: Sequence[str] | None) -> list[Task]:
    valid = [task.name for task in benchmark.tasks]
    if names is not None and not names:
        raise RecipeError(f"tasks is empty: name some of {', '.join(valid)}, or leave it out for all of them")
    for name in names or ():
        if name not in valid:
            raise RecipeError(unknown(f"task of {benchmark.name}", name, valid))
    return [task for task in benchmark.tasks if names is None or task.name in names]


def _shown(item: Item) -> str:
    return repr(item.text[:60]) if item.text else f"picture {item.key[:12]}"


def _ready(asked: Asked, vectors: Vectors) -> _Ready:
    contents: dict[str, int] = {}
    shown = np.array([contents.setdefault(item.content, len(contents)) for item in asked.task.corpus])
    order = np.unique(asked.corpus, return_inverse=True)[1]
    return _Ready(asked.task, vectors.of(asked.queries), vectors.of(asked.corpus), shown, order)


def _evaluated(ready: _Ready, rerank: Rescorer | None, progress: bool, world: World) -> TaskResult:
    levels = None if rerank is None else _reranked(ready, rerank, f"reranking {ready.task.name}" if progress else "", world)
    found: list[tuple[np.ndarray, metrics.Ranking]] = []
    firsts: list[np.ndarray] = []
    for block in _blocks(ready):
        scores = block.scores if levels is None else _adjusted(block, levels)
        gold = _gold(ready, block)
        asked = torch.from_numpy(gold)
        found.append((block.rows, metrics.rank(torch.from_numpy(scores), asked, torch.ones_like(asked))))
        firsts.append(_first(ready, block, scores, gold))
    rows = np.argsort(np.concatenate([rows for rows, _ in found]))

    def column(values: Sequence[torch.Tensor]) -> tuple:
        return tuple(torch.cat(list(values))[rows].tolist())

    rankings = [ranking for _, ranking in found]
    return TaskResult(
        ready.task.name,
        ready.task.meta_task,
        ready.task.distribution,
        hits=column([r.hit() for r in rankings]),
        ranks=column([r.rank() for r in rankings]),
        ties=column([r.others_tied for r in rankings]),
        chance=float(torch.cat([r.chance() for r in rankings]).mean()),
        candidates=round(float(torch.cat([r.offered for r in rankings]).double().mean())),
        worst=column([r.worst_rank() for r in rankings]),
        firsts=tuple(np.concatenate(firsts)[rows].tolist()),
    )


def _first(
    ready: _Ready, block: _Block, scores: Float[np.ndarray, "q c"], gold: Bool[np.ndarray, "q c"]
) -> Int[np.ndarray, " q"]:
    """Corpus positions of what came first; of several that tie one that is not gold, by content."""
    order = ready.order[block.positions]
    late = np.where(gold, len(ready.corpus), 0) + order
    return block.positions[np.where(scores == scores.max(axis=1, keepdims=True), late, 2 * len(ready.corpus)).argmin(axis=1)]


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


def _gold(ready: _Ready, block: _Block) -> Bool[np.ndarray, "q c"]:
    """Gold, and candidates that show the same as gold."""
    shown = ready.shown[block.positions]
    return np.stack([np.isin(shown, ready.shown[list(ready.task.gold[row])]) for row in block.rows])


def _best(ready: _Ready, block: _Block, depth: int) -> Int[np.ndarray, "q k"]:
    """Columns of the block with the highest scores, best first; ties by content."""
    order = np.broadcast_to(ready.order[block.positions], block.scores.shape)
    return np.lexsort((order, -block.scores), axis=-1)[:, :depth]


Levels = dict[int, tuple[np.ndarray, np.ndarray]]


def _reranked(ready: _Ready, rerank: Rescorer, progress: str, world: World) -> Levels:
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
        new = _rescored(rerank, queries, [items for _, _, items, _ in group], scores, (ready.task.name, progress), world)
        for (row, columns, _, _), values in zip(group, new, strict=True):
            levels[row] = columns, np.unique(values, return_inverse=True)[1]
    return levels


def _rescored(
    rerank: Rescorer, queries: list[Item], items: list[list[Item]], scores: np.ndarray, told: tuple[str, str], world: World
) -> np.ndarray:
    """What the reranker says, each process asking about its share of the queries; `told`: the task, and what the bar says."""
    mine, made = world.rows(len(queries)), np.zeros(scores.shape)
    with world.all_or_none("reranking", world.device):
        if mine.stop > mine.start:
            new = rerank.rescore(queries[mine], items[mine], scores[mine], progress=told[1])
            _check_rescored(new, scores[mine], queries[mine], told[0])
            made[mine] = new
    return made if world.size == 1 else world.sum(torch.from_numpy(made).to(world.device)).cpu().numpy()


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
