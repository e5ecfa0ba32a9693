"""Stages that measure and that build what is used: evaluation and index."""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from hardwon.artifacts import Draft, write_json
from hardwon.data import images
from hardwon.data.read_files import read_table
from hardwon.errors import ArtifactError, BadRow, BadRows, DataError, RecipeError, unknown
from hardwon.evaluation import (
    Benchmark,
    benchmark_of,
    evaluate,
    evaluate_reranking,
    learn_fusion,
    learn_weight,
    read_benchmark,
)
from hardwon.items import Item, item_from_json
from hardwon.models import CachedEncoder, ListwiseReranker, Reranker, load_reranker
from hardwon.models.precision import Precision
from hardwon.progress import console
from hardwon.search import Fused, Index
from hardwon.stages.base import Workspace
from hardwon.stages.evaluating import SOURCE, source
from hardwon.stages.learn import features, load_encoder, load_examples


@dataclass(frozen=True)
class Evaluate:
    """Evaluate an embedder, alone or with a reranker, on a benchmark.

    Attributes:
        out: see `Stage`; `report.json` is written there. With a reranker also `embedder.json`, the report of the embedder
            alone, and `fusion.json`, which `Fused.from_json` reads.
        model: embedder.
        benchmark: folder that `hardwon.evaluation.read_benchmark` takes.
        label: what the model is called in tables.
        rerank: reranker; none if empty.
        depth: candidates per query that the reranker reads.
        validation: benchmark, or file of held-out pairs, on which the fusion is learned; without it a fixed weight is used,
            and no gate.
        asked: data sets of the validation that are asked; all if empty. With a gate, other kinds of queries are left alone.
        gate: learn which kinds of queries gain by reranking, and leave the others alone; else one weight for all.
        precision: of the reranker.
    """

    out: str
    model: str
    benchmark: str
    label: str = ""
    rerank: str = ""
    depth: int = 10
    validation: str = ""
    asked: tuple[str, ...] = ()
    gate: bool = True
    precision: Precision = "fp32"
    kind: ClassVar[str] = "evaluation"
    verb: ClassVar[str] = "evaluate"

    def reads(self) -> tuple[str, ...]:
        """Model, benchmark, and what reranking needs."""
        return (self.model, self.benchmark, *(p for p in (self.rerank, self.validation) if p))

    def make(self, workspace: Workspace, draft: Draft) -> str:
        """Evaluate and write the report."""
        embedder = load_encoder(workspace, self.model)
        benchmark, label, told = read_benchmark(workspace.path(self.benchmark)), self.label or self.out, ""
        if self.rerank:
            reranker = load_reranker(workspace.path(self.rerank), vision_cache=features(workspace), precision=self.precision)
            fused, told = self._fused(workspace, draft, embedder, reranker)
            labels = (f"{label} without reranker", label)
            found = evaluate_reranking(embedder, benchmark, fused, labels=labels)
            write_json(draft.path / "embedder.json", found.alone.to_json())
            write_json(draft.path / "fusion.json", fused.to_json())
            draft.stats |= {"weight": fused.weight, "rerank": found.reranked.made["rerank"], "below": list(found.below)}
            console().print(found)
            report = found.reranked
        else:
            report = evaluate(embedder, benchmark, label=label)
        report = replace(report, made=report.made | {SOURCE: source(str(workspace.path(self.benchmark)))})
        write_json(draft.path / "report.json", report.to_json())
        mean = report.mean()
        draft.stats["mean"] = mean.mean
        shown = f"{100 * mean.mean:.1f} [{100 * mean.low:.1f}, {100 * mean.high:.1f}]"
        return f"mean P@1 {shown} over {len(report.results)} data sets{told}"

    def _fused(
        self, workspace: Workspace, draft: Draft, embedder: CachedEncoder, reranker: Reranker | ListwiseReranker
    ) -> tuple[Fused, str]:
        """The reranker as it is to be used, and what to say of it."""
        if not self.validation:
            fused = Fused(reranker, self.depth)
            return fused, f", reranker's weight {fused.weight:g}"
        held_out = self._held_out(workspace)
        learn = learn_fusion if self.gate else learn_weight
        learned = learn(embedder, reranker, held_out, depth=self.depth)
        draft.stats["weights"] = [list(pair) for pair in learned.tried]
        if learned.fused.gate is None:
            return learned.fused, f", reranker's weight {learned.fused.weight:g}"
        console().print(learned)
        kinds = learned.fused.gate.kinds
        draft.stats["passing"] = [kind.instruction for kind in kinds if kind.passes]
        return learned.fused, f", reranked are {len(draft.stats['passing'])} of {len(kinds)} kinds of queries"

    def _held_out(self, workspace: Workspace) -> Benchmark:
        path = workspace.path(self.validation)
        if not path.is_dir():
            return benchmark_of(load_examples(workspace, self.validation, "raise"), path.stem, sources=self.asked)
        found = read_benchmark(path)
        names = [task.name for task in found.tasks]
        for name in self.asked:
            if name not in names:
                raise RecipeError(unknown(f"task of {found.name}", name, names))
        return Benchmark(found.name, tuple(task for task in found.tasks if not self.asked or task.name in self.asked))


@dataclass(frozen=True)
class BuildIndex:
    """Index items with an embedder.

    Attributes:
        out: see `Stage`.
        model: embedder.
        items: a folder of pictures, or a file with an item in each row (`text`, `image`, ...): JSON lines, CSV, Parquet.
        root: folder that picture paths in JSON lines are relative to, if not the file's.
    """

    out: str
    model: str
    items: str
    root: str = ""
    kind: ClassVar[str] = "index"
    verb: ClassVar[str] = "index"

    def reads(self) -> tuple[str, ...]:
        """Model and items."""
        return (self.model, self.items)

    def make(self, workspace: Workspace, draft: Draft) -> str:
        """Encode and save."""
        embedder = load_encoder(workspace, self.model)
        index = Index.build(embedder, load_items(workspace.path(self.items), workspace.path(self.root) if self.root else None))
        index.save(draft.path / "index")
        folder = workspace.path(self.model)
        # Relative, so that a workspace can be moved; a name on the hub stays a name.
        model = os.path.relpath(folder, draft.path) if folder.exists() else self.model
        write_json(draft.path / "model.json", {"model": model})
        return f"{len(index)} items"


def model_of(index: Path) -> Path | str:
    """Folder of the model that made an index, or its name on the hub. Raises ArtifactError if that cannot be read."""
    try:
        model = str(json.loads((index / "model.json").read_text(encoding="utf-8"))["model"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{index / 'model.json'} cannot be read ({error}): build the index again") from error
    return (index / model).resolve() if model.startswith("..") else model


def load_items(path: Path, root: Path | None) -> list[Item]:
    """Items of a folder of pictures, or of a file that has one in each row.

    Raises:
        BadRows: rows that are no items; names line and reason of each.
        DataError: nothing there, or a kind of file that is not read.
    """
    if path.is_dir():
        return list(images(path))
    items, bad, count = [], [], 0
    for record in read_table(path):
        count += 1
        try:
            if record.reason:
                raise DataError(record.reason)
            items.append(item_from_json(record.row, root or path.parent))
        except DataError as error:
            bad.append(BadRow(str(record.file), record.line, str(error)))
    if bad:
        raise BadRows(bad, count, "Mend them: an item has text, image, images, video or instruction")
    return items
