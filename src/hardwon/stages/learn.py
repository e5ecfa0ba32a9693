"""Stages that learn and mine."""

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from rich.markup import escape

from hardwon.artifacts import Draft
from hardwon.data import read
from hardwon.data.assets import fetch
from hardwon.distributed import World, alone
from hardwon.errors import OnError, RecipeError, unknown
from hardwon.items import Example, Item, Picture
from hardwon.losses import Loss
from hardwon.mining import Mining, mine
from hardwon.models import (
    CachedEncoder,
    Embedder,
    Listing,
    ListwiseReranker,
    Options,
    Question,
    Reranker,
    Scorer,
    YesNo,
    golden,
)
from hardwon.models.left_out import readable
from hardwon.models.precision import Precision
from hardwon.models.small import assemble
from hardwon.progress import console
from hardwon.search import Blend
from hardwon.search.blend import EXAMPLES
from hardwon.spread.models import Chat, SpreadEncoder, SpreadJudge, named
from hardwon.stages.base import Workspace
from hardwon.stages.judges import RECORDED, ChatModel, JudgeSpec, Server, load_judge, read_by
from hardwon.training import Settings, align, checkpoint, train
from hardwon.training.usable import ready

Task = Literal["embedder", "reranker", "pairwise", "listwise"]


def load_examples(
    workspace: Workspace, name: str, on_error: OnError, root: str = "", max_bad_fraction: float = 0.01
) -> Sequence[Example]:
    """Read a data set; bad rows that are gone on without are listed."""
    home = workspace.path(root) if root else None
    dataset = read(workspace.path(name), root=home, on_error=on_error, max_bad_fraction=max_bad_fraction, urls=workspace.urls)
    for row in dataset.bad[:10]:
        console().print(f"   [yellow]left out[/] {escape(str(row))}")
    if dataset.bad:
        console().print(f"   [yellow]{len(dataset.bad)} of {dataset.rows} rows left out[/]")
    return dataset


def of_sources(examples: Sequence[Example], sources: Sequence[str]) -> tuple[Example, ...]:
    """The examples of some data sets. Raises RecipeError for one that has none."""
    there = {example.source for example in examples}
    for source in sources:
        if source not in there:
            raise RecipeError(unknown("source", source, sorted(there)))
    return tuple(example for example in examples if example.source in sources)


def load_embedder(workspace: Workspace, name: str, options: Options | None = None) -> Embedder:
    """An embedder whose frozen vision features are cached in the workspace."""
    said = {f.name: getattr(options, f.name) for f in fields(options)} if options else {}
    return Embedder.load(workspace.path(name), vision_cache=features(workspace), **said)


def show_pairs(examples: Sequence[Example]) -> None:
    """One line per source: how many pairs it has and what one of them is."""
    sources: dict[str, list[Example]] = {}
    for example in examples:
        sources.setdefault(example.source, []).append(example)
    for source, rows in sorted(sources.items()):
        first = rows[0]
        line = f"   {len(rows):>6} {source or 'pairs'}: {shown(first.query)} -> {shown(first.gold[0])}"
        console().print(line, markup=False, style="dim", overflow="ellipsis", no_wrap=True)


def shown(item: Item) -> str:
    """An item in one line of text; pictures by their file's name, a video by its first frame."""
    pictures = [f"<{_name(picture)}>" for picture in item.images]
    video = [f"<{len(item.video)} frames from {_name(item.video[0])}>"] if item.video else []
    return " ".join([*pictures, *video, *(part for part in (item.instruction, item.text) if part)])


def _name(picture: Picture) -> str:
    return picture.name if isinstance(picture, Path) else "picture"


def load_encoder(workspace: Workspace, name: str) -> CachedEncoder:
    """An embedder that remembers what it embedded in earlier stages."""
    embedder = load_embedder(workspace, name)
    if workspace.workers is None:
        return CachedEncoder(embedder, features(workspace))
    spread = SpreadEncoder(embedder, workspace.path(name), workers=workspace.workers, below=work(workspace))
    return CachedEncoder(spread, features(workspace))


def features(workspace: Workspace) -> Path:
    """Where features and vectors are kept: beside the artifacts, since they belong to no single one."""
    return workspace.root / "features"


def work(workspace: Workspace) -> Path:
    """Where work that is spread lies while it is under way."""
    return workspace.root / "work"


@dataclass(frozen=True)
class Backbone:
    """Put the built-in small backbone together.

    Attributes:
        out: see `Stage`.
    """

    out: str = "base"
    kind: ClassVar[str] = "model"
    verb: ClassVar[str] = "assemble"

    def reads(self) -> tuple[str, ...]:
        """Nothing."""
        return ()

    def make(self, workspace: Workspace, draft: Draft) -> str:
        """Fetch the weights and save the model."""
        found = fetch(("vision", "language"), workspace.cache, console().print)
        assemble(draft.path / "model", found["vision"], found["language"])
        return "EfficientNet-lite0 -> projector -> MiniLM, as a standard FastVLM"


@dataclass(frozen=True)
class Train:
    """Train an embedder or a reranker.

    Attributes:
        out: see `Stage`; the model is written to `out/model`.
        model: folder or name to start from.
        data: examples: any file that `hardwon.data.read` takes.
        loss: the objective.
        steps: updates.
        settings: everything else about training; its `on_error` is also about rows that cannot be read.
        options: how the model is loaded: adapters, pooling, instruction, size of pictures, number format ...
        merge: work the adapter of `options.lora` into the weights that are saved; else the adapter alone is.
        task: what is trained. A "reranker" starts from an embedder's weights; "pairwise" and "listwise" are rerankers that
            start from a chat model, which is asked about a candidate or about a list of them.
        layers: of a reranker's language model that are kept; all if None.
        align: steps of projector alignment before the training; 0 for none.
        align_sources: data sets used for that; all if empty.
        root: folder that picture paths are relative to, if not the data file's.
        sources: data sets that are trained on; all if empty.
        question: what a chat model is asked about a candidate; see `Reranker.load`.
        listing: what it is asked about a list; see `ListwiseReranker.load`.
    """

    out: str
    model: str
    data: str
    loss: Loss
    steps: int
    settings: Settings = field(default_factory=Settings)
    options: Options | None = None
    merge: bool = False
    task: Task = "embedder"
    layers: int | None = None
    align: int = 0
    align_sources: tuple[str, ...] = ()
    root: str = ""
    sources: tuple[str, ...] = ()
    question: Question | None = None
    listing: Listing | None = None
    kind: ClassVar[str] = "model"
    verb: ClassVar[str] = "train"

    def reads(self) -> tuple[str, ...]:
        """Model and data."""
        return (self.model, self.data)

    def make(self, workspace: Workspace, draft: Draft) -> str:
        """Train and save."""
        few = self.settings.max_bad_fraction
        examples = load_examples(workspace, self.data, self.settings.on_error, self.root, few)
        if self.sources:
            examples = of_sources(examples, self.sources)
        show_pairs(examples)
        model = self._start(workspace)
        checkpoints = draft.path / "checkpoint"
        if self.align and isinstance(model, Embedder) and not checkpoint.begun(checkpoints):
            examples = ready(model, examples, self.settings, World.current()).examples
            align(model, tuple(examples), steps=self.align, sources=self.align_sources, seed=self.settings.seed)
        trained = train(
            model, examples, self.loss, steps=self.steps, settings=self.settings, out=draft.path, title=f"training {self.out}"
        )
        if World.current().first:
            with alone():
                trained.save(draft.path / "model", self._about(examples, draft.path / "metrics.jsonl"), merge=self.merge)
                if isinstance(trained, Embedder):
                    golden.keep(trained, draft.path / "model")
            shutil.rmtree(checkpoints, ignore_errors=True)
        draft.stats["examples"] = len(examples)
        draft.stats["pairs"] = self.steps * self.settings.batch_size
        return f"{self.steps} steps of {self.settings.batch_size} queries"

    def _start(self, workspace: Workspace) -> Embedder | Reranker | ListwiseReranker:
        if self.task not in get_args(Task):
            raise RecipeError(unknown("task", self.task, get_args(Task)))
        if self.task in ("embedder", "reranker"):
            embedder = load_embedder(workspace, self.model, self.options)
            return embedder if self.task == "embedder" else Reranker.start_from(embedder, layers=self.layers)
        said = {f.name: getattr(self.options, f.name) for f in fields(self.options)} if self.options else {}
        if said.pop("pooling", None) is not None:
            raise RecipeError("pooling is about embedders: leave it out of the options of a chat model")
        path, seen = workspace.path(self.model), features(workspace)
        if self.task == "pairwise":
            return Reranker.load(path, question=self.question, vision_cache=seen, **said)
        return ListwiseReranker.load(path, listing=self.listing, vision_cache=seen, **said)

    def _about(self, examples: Sequence[Example], metrics: Path) -> dict[str, Any]:
        """What the model's card says of the training."""
        rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
        last = {name: value for row in rows for name, value in row.items() if name in ("loss", "validation")}
        data = dict(Counter(example.source or "pairs" for example in examples))
        start = {"started from": self.model, "steps": self.steps, "queries per step": self.settings.batch_size}
        return start | {"loss": repr(self.loss), "data": data, "metrics": last, "recipe": repr(self)}


@dataclass(frozen=True)
class Mine:
    """Mine hard negatives.

    What was retrieved and what the judge says is kept in the workspace's `judgements`, for later rounds too.

    Attributes:
        out: see `Stage`; `examples.jsonl` (with picture paths as in the data) and `ledger.parquet` are written there.
        model: embedder that retrieves.
        data: examples to mine for; their candidates are the pool.
        judge: who grades: a reranker's folder, a `ChatModel`, a `Server`, or recorded answers (.jsonl); nobody if empty.
        calibrate: held-out examples on which a reranker's log-odds and the embedder's cosine are blended into a calibrated
            grade; the judge grades alone if empty.
        calibrate_on: how many of them are used at most.
        settings: see `Mining`.
        precision: of the judge.
        root: folder that picture paths are relative to, if not the data file's.
        on_error: "skip" goes on without bad rows, and without items that cannot be read; as `on_error` of the settings does.
    """

    out: str
    model: str
    data: str
    judge: JudgeSpec = ""
    calibrate: str = ""
    calibrate_on: int = EXAMPLES
    settings: Mining = field(default_factory=Mining)
    precision: Precision = "fp32"
    root: str = ""
    on_error: OnError = "raise"
    kind: ClassVar[str] = "negatives"
    verb: ClassVar[str] = "mine"

    def reads(self) -> tuple[str, ...]:
        """Model, data and judge."""
        return (self.model, self.data, *read_by(self.judge), *((self.calibrate,) if self.calibrate else ()))

    def make(self, workspace: Workspace, draft: Draft) -> str:
        """Mine and write."""
        settings = replace(self.settings, on_error="skip") if self.on_error == "skip" else self.settings
        rules = (settings.on_error, self.root, settings.max_bad_fraction)
        examples = load_examples(workspace, self.data, *rules)
        embedder = load_encoder(workspace, self.model)
        judge: Scorer | YesNo | None = None
        if self.judge:
            judge = load_judge(workspace, self.judge, self.precision, features(workspace))
        if self.calibrate:
            if not isinstance(judge, Reranker):
                raise RecipeError("calibrate blends a reranker with the embedder: leave it out for another judge")
            held_out = load_examples(workspace, self.calibrate, *rules)
            fit = partial(Blend.fit, embedder, judge, most=self.calibrate_on)
            judge = readable(held_out, fit, settings, "mining").made
            draft.stats["blend"] = {"bias": judge.bias, "cosine": judge.of_cosine, "odds": judge.of_odds}
        if workspace.workers is not None and judge is not None:
            judge = self._spread(workspace, judge)
        mined = mine(examples, embedder, judge, settings=settings, store=workspace.root / "judgements")
        data = workspace.path(self.data)
        mined.write(draft.path, workspace.path(self.root) if self.root else data if data.is_dir() else data.parent)
        draft.stats |= mined.stats
        kept, rejected, queries = (mined.stats[name] for name in ("kept", "rejected", "queries"))
        told = f", {rejected} rejected as likely false, judge's AUC {mined.calibration.auc:.3f}" if mined.calibration else ""
        told += f", {len(mined.left_out)} items left out" if mined.left_out else ""
        return f"{kept} hard negatives for {queries} queries{told}"

    def _spread(self, workspace: Workspace, judge: Scorer | YesNo) -> Scorer | YesNo:
        """The judge, asked by workers if it is a model; a server answers many at a time anyway."""
        workers = workspace.workers
        if workers is None or isinstance(self.judge, Server) or (isinstance(self.judge, str) and self.judge.endswith(RECORDED)):
            return judge
        spec, chat, blend = self.judge, None, None
        if isinstance(spec, ChatModel):
            spec, chat = spec.model, Chat(spec.question, spec.dtype, spec.max_pixels, spec.tokens)
        if isinstance(judge, Blend):
            blend = {"model": named(workspace.path(self.model))}
            blend |= {name: getattr(judge, name) for name in ("bias", "of_cosine", "of_odds")}
        place, below = workspace.path(spec), work(workspace)
        return SpreadJudge(judge, place, workers=workers, below=below, precision=self.precision, chat=chat, blend=blend)
