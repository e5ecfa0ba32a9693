"""`evaluate`: encode what is distinct once, rank every task, report."""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape

from hardwon import artifacts
from hardwon.distributed import World
from hardwon.errors import HardwonError, ModelError, OnError, RecipeError
from hardwon.evaluation.asked import Asked, chosen, in_order, placed
from hardwon.evaluation.described import described
from hardwon.evaluation.ranking import Ready, ranked
from hardwon.evaluation.report import READ, Report
from hardwon.evaluation.result import TaskResult, percent
from hardwon.evaluation.task import Benchmark, digests_of, revision_of
from hardwon.evaluation.vectors import Vectors
from hardwon.models.scorer import Encoder, ListScorer, Scorer
from hardwon.progress import bar, console
from hardwon.search.rerank import Fused, rescorer
from hardwon.search.rescore import Rescored, Rescorer


def evaluate(
    encoder: Encoder,
    benchmark: Benchmark,
    *,
    rerank: Rescorer | Scorer | ListScorer | None = None,
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
        rerank: looks at the best `depth` candidates of every query once more. Its scores decide the order among them only;
            all other candidates stay below them. A bare reranker is taken as `Fused(reranker)`.
        tasks: names of the tasks to ask, all when None. A report of some tasks refuses to give means.
        label: what to call the model in tables.
        progress: whether to show progress bars, and the result of each task when it is there.
        store: folder where vectors are kept as they come, for later runs and for this one if it is killed.
        on_error: "skip" goes on with the other tasks where one cannot be asked; the report says what is missing and why.

    Raises:
        BadItems: items that cannot be used, or whose vectors are not finite or not of unit length; names task and row of each.
        ModelError: anything else that is wrong with the model or the reranker; names the task.
        RecipeError: a task that the benchmark does not have; a reranker of depth 0; in several processes one with a budget of
            time, which each would spend in its own way, or a reranker of lists with any budget.
    """
    start, world = time.perf_counter(), World.current()
    rerank = None if rerank is None else _checked(rescorer(rerank), world)
    failed = {gone.name: gone.why for gone in benchmark.missing}
    keyed = in_order(chosen(benchmark, tasks), on_error, failed)
    digests = digests_of(benchmark)  # before the work: whatever it meets in tasks that nobody asked costs nothing yet
    vectors, clock = Vectors(encoder, store, world), _Clock()
    results, read = _results(keyed, vectors, rerank, clock, failed, on_error, f"encoding {benchmark.name}" if progress else "")
    made = _made(vectors, rerank, read, clock) | {
        "failed": failed,
        "digests": digests,
        "items": len({key for task in keyed for key in task.items}),
        "seconds": round(time.perf_counter() - start, 3),
    }
    return Report(
        encoder.fingerprint,
        benchmark.name,
        revision_of(digests),
        tuple(named.name for named in (*benchmark.tasks, *benchmark.missing)),
        label,
        tuple(results[task.name] for task in benchmark.tasks if task.name in results),
        made,
    )


def _checked(rerank: Rescorer, world: World) -> Rescorer:
    """The same, if it can be used."""
    if rerank.depth < 1:
        raise RecipeError(f"the depth of a reranker must be 1 or more, got {rerank.depth}")
    if isinstance(rerank, Fused) and rerank.budget is not None and world.size > 1:
        if rerank.budget.milliseconds is not None or not isinstance(rerank.reranker, Scorer):
            raise RecipeError("several processes share a budget of pairs only: set it in pairs, or use one process")
    return rerank


def _results(
    keyed: Sequence[Asked],
    vectors: Vectors,
    rerank: Rescorer | None,
    clock: "_Clock",
    failed: dict[str, str],
    on_error: OnError,
    bar_name: str,
) -> tuple[dict[str, TaskResult], list[Rescored]]:
    """What came of each task by name, and what was reread; tasks that fail are noted in `failed`. No name, no progress."""
    world, results, read = vectors.world, dict[str, TaskResult](), list[Rescored]()
    distinct = {key for task in keyed for key in task.items if key not in vectors.cached.store.rows}
    shown = bool(bar_name) and world.first
    with bar(bar_name, len(distinct), "items", shown=shown and bool(distinct)) as advance:
        for number, asked in enumerate(keyed, 1):
            try:
                with clock.on("encoding"):
                    vectors.add(asked.items, advance)
                with clock.on("ranking"):
                    results[asked.task.name], reading = ranked(Ready.of(asked, vectors), rerank, shown, world)
                    read += [reading] if reading is not None else []
            except HardwonError as error:
                reason = placed(asked.task, error)
                if on_error == "raise":
                    raise reason from error
                # Where it failed in another process, the report tells that one's reason; all processes are here (all_or_none).
                known = world.told("" if type(error) is HardwonError else str(reason))
                failed[asked.task.name] = next(filter(None, known), str(reason))
            if shown:
                _say(asked.task.name, results, failed, f"{number} of {len(keyed)}")
    if not results:
        raise ModelError("no task could be asked:\n" + "\n".join(failed.values()))
    return results, read


def _made(vectors: Vectors, rerank: Rescorer | None, read: Sequence[Rescored], clock: "_Clock") -> dict[str, Any]:
    """By what and where a report was made."""
    return artifacts.environment() | {
        "model": described(vectors.cached.encoder),
        "rerank": None if rerank is None else _told(rerank, read),
        "items_encoded": vectors.encoded,
        "vectors_of_others": sorted(vectors.cached.store.makers - {vectors.cached.store.made_by}),
        "processes": vectors.world.size,
        "seconds_encoding": round(clock.spent["encoding"], 3),
        "seconds_ranking": round(clock.spent["ranking"], 3),
    }


def prepared(encoder: Encoder, benchmark: Benchmark) -> list[Ready]:
    """All tasks of a benchmark with their vectors; each distinct item is encoded once."""
    keyed, world = in_order(benchmark.tasks, "raise", {}), World.current()
    vectors = Vectors(encoder, None, world)
    distinct = {key for task in keyed for key in task.items if key not in vectors.cached.store.rows}
    with bar(f"encoding {benchmark.name}", len(distinct), "items", shown=world.first and bool(distinct)) as advance:
        for asked in keyed:
            vectors.add(asked.items, advance)
    return [Ready.of(asked, vectors) for asked in keyed]


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


def _told(rerank: Rescorer, read: Sequence[Rescored]) -> dict[str, Any]:
    """What a report says of a reranker: what it is, and how much of it was needed."""
    counts = (sum(task.pairs for task in read), sum(task.queries for task in read), sum(len(task.read) for task in read))
    return described(rerank) | dict(zip(READ, counts, strict=True))


def _say(name: str, results: Mapping[str, TaskResult], failed: Mapping[str, str], count: str) -> None:
    if name in failed:
        console().print(f"   [red]{escape(name)} failed[/]: {escape(failed[name])} [dim]({count})[/]")
    else:
        result = results[name]
        console().print(
            f"   {escape(name)} {percent(result.interval())} [dim]{result.metric} of {result.queries} queries ({count})[/]"
        )
