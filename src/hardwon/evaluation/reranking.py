"""An embedder alone and the same with a reranker, on the same queries."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Group

from hardwon.errors import OnError
from hardwon.evaluation.compare import Comparison
from hardwon.evaluation.report import Report
from hardwon.evaluation.run import evaluate
from hardwon.evaluation.task import Benchmark
from hardwon.models import CachedEncoder
from hardwon.models.scorer import Encoder, ListScorer, Scorer
from hardwon.search.rescore import Rescorer


@dataclass(frozen=True)
class Reranking:
    """What a reranker changed.

    Attributes:
        alone: report of the embedder.
        reranked: report with the reranker; `made["rerank"]` says how much it read.
        comparison: the second minus the first, for each task and in the mean, with intervals.
    """

    alone: Report
    reranked: Report
    comparison: Comparison

    @property
    def below(self) -> tuple[str, ...]:
        """Tasks that got worse by more than their interval."""
        return tuple(task.name for task in self.comparison.tasks if task.verdict == "below")

    def __str__(self) -> str:
        return f"{self.comparison}\n{self.spent()}"

    def __rich__(self) -> Group:
        return Group(self.comparison.table(), self.spent())

    def spent(self) -> str:
        """How much was read, in a sentence."""
        read = self.reranked.made["rerank"]
        share = read["queries_read"] / read["queries"]
        each = read["pairs"] / read["queries"]
        took = max(0.0, self.reranked.made["seconds_ranking"] - self.alone.made["seconds_ranking"])
        return (
            f"The reranker read {read['pairs']} pairs, {each:.1f} per query of at most {read['depth']}; it was asked about "
            f"{read['queries_read']} of {read['queries']} queries ({100 * share:.0f} %). Ranking took about "
            f"{1000 * took / read['queries']:.1f} ms per query longer."
        )


def evaluate_reranking(
    encoder: Encoder,
    benchmark: Benchmark,
    rerank: Rescorer | Scorer | ListScorer,
    *,
    tasks: Sequence[str] | None = None,
    labels: tuple[str, str] = ("embedder", "embedder + reranker"),
    progress: bool = True,
    store: Path | None = None,
    on_error: OnError = "raise",
) -> Reranking:
    """Evaluate an embedder alone and with a reranker, and compare. Every item is encoded once.

    Arguments and errors as `evaluate`; `labels` names the embedder, and the embedder with the reranker.
    """
    once = encoder if isinstance(encoder, CachedEncoder) else CachedEncoder(encoder, store)
    alone = evaluate(once, benchmark, tasks=tasks, label=labels[0], progress=progress, on_error=on_error)
    return evaluate_again(once, benchmark, rerank, alone, label=labels[1], progress=progress, on_error=on_error)


def evaluate_again(
    encoder: Encoder,
    benchmark: Benchmark,
    rerank: Rescorer | Scorer | ListScorer,
    alone: Report,
    *,
    label: str = "embedder + reranker",
    progress: bool = True,
    on_error: OnError = "raise",
) -> Reranking:
    """The second half of `evaluate_reranking`, for those who want to keep the report of the embedder before it begins.

    Args:
        encoder: keeps the vectors of `alone`; else every item is encoded once more.
        benchmark: as it was asked for `alone`.
        rerank: as of `evaluate`.
        alone: report of the embedder. The tasks that it has are asked again.
        label: names the embedder with the reranker.
        progress: as of `evaluate`.
        on_error: as of `evaluate`. Tasks that fail now are left out of the comparison.
    """
    # What could not be asked of the embedder cannot be reranked.
    left = [result.name for result in alone.results]
    made = evaluate(encoder, benchmark, rerank=rerank, tasks=left, label=label, progress=progress, on_error=on_error)
    reranked = replace(made, made=made.made | {"failed": alone.failed | made.failed})
    return Reranking(alone, reranked, reranked.diff(alone, partial=bool(reranked.missing)))
