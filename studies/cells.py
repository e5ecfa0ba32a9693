"""One cell of a study: one entry of its plan for one seed. What comes out is a small JSON file, and weights for later cells."""

import gc
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hardwon.artifacts import fingerprint, write_json
from hardwon.evaluation import learn_fusion
from hardwon.items import Example
from hardwon.mining import Cyclic, Mining, mine
from hardwon.models import CachedEncoder, Scorer
from hardwon.search import Blend, Fused
from hardwon.training import Memory, Objective, Settings
from hardwon.training.batches import batches
from hardwon.training.groups import group
from hardwon.training.loop import fit, optimizer_for
from hardwon.training.run import lists
from hardwon.training.step import embedder_step, reranker_step
from studies.align import align
from studies.language import trained
from studies.material import Material
from studies.measure import Measured, measure, packed
from studies.mined import read_mined, write_mined
from studies.oracle import Oracle
from studies.plan import CLIP, TEACHER, Entry, MiningRound, Plant, Reranking, Scale, Suite, Training
from studies.plant import planted
from studies.trunk import Encoding, Once, Scoring, SmallEmbedder, SmallReranker

KEEP, RERANKED = 2, 10  # negatives mined per query; candidates a reranker reads
ALONE = 1e4  # weight of log-odds beside which a cosine says nothing
# What a reranker learns from. Copies of pictures cannot be looked for: here a picture is its name (studies.features).
NEAR = Mining(depth=24, keep=8, skip=1, selector=Cyclic(2), copies=None)
QUERIES, LONGER = 4000, 3  # one that is measured: for so many pairs, and so much longer than a judge
# What the same reranker does where nothing keeps it from reading: with the library's weight, and with its own order.
UNGATED: dict[str, Callable[[Scorer], Fused]] = {
    "everywhere": lambda reader: Fused(reader, RERANKED),
    "alone": lambda reader: Fused(reader, RERANKED, ALONE),
}
SHOWN = ("title", "family", "control")  # fields that say how a row is shown
ROOM = Memory(chunk_tokens=1 << 20)


@dataclass(frozen=True)
class Cell:
    """An entry of a plan for one seed.

    Attributes:
        suite: the plan.
        entry: name of the entry.
        seed: of everything random.
        folder: of the suite's results.
        material: fingerprint of what is trained and tested on, see `studies.material.prepare`.
    """

    suite: Suite
    entry: str
    seed: int
    folder: Path
    material: str = ""

    @property
    def file(self) -> Path:
        """What came out; what is there is whole."""
        return self.folder / "cells" / f"{self.entry}-{self.seed}.json"

    @property
    def weights(self) -> Path:
        """Of the model, or examples of a mining."""
        return self.folder / "made" / f"{self.entry}-{self.seed}"

    @property
    def made_from(self) -> str:
        """Everything the result depends on, but the code: a result made from something else is made anew.

        How a row is shown is not what it is, and neither is what it leaves as it would be without saying.
        """
        entry = self.suite.entry(self.entry)
        needed = [self.of(name).made_from for name in entry.needs]
        said = {f.name: repr(getattr(entry, f.name)) for f in fields(entry) if f.name not in SHOWN and not _left(entry, f)}
        return fingerprint(
            [type(entry).__name__, said, repr(self.suite.scale), self.suite.backbone, self.seed, self.material, needed]
        )

    def of(self, name: str) -> "Cell":
        """Another entry for the same seed."""
        return replace(self, entry=name)


def _left(entry: Entry, one: "Field[Any]") -> bool:
    """Whether a field holds its default."""
    made = one.default_factory() if one.default_factory is not MISSING else one.default
    return getattr(entry, one.name) == made


@dataclass
class Clock:
    """Seconds and processor seconds by kind of work."""

    wall: dict[str, float] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def on(self, work: str) -> Iterator[None]:
        """Count the block as this work."""
        start = time.perf_counter(), time.process_time()
        yield
        for spent, now, then in zip((self.wall, self.cpu), (time.perf_counter(), time.process_time()), start, strict=True):
            spent[work] = round(spent.get(work, 0.0) + now - then, 2)


def run_cell(cell: Cell, material: Material) -> dict[str, Any]:
    """Do it and write the result."""
    entry, clock = cell.suite.entry(cell.entry), Clock()
    cell.weights.parent.mkdir(parents=True, exist_ok=True)
    cell.file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(entry, Training):
        made = (_train_whole if cell.suite.backbone else _train)(cell, entry, material, clock)
    elif isinstance(entry, MiningRound):
        made = _mine(cell, entry, material, clock)
    else:
        made = _rerank(cell, entry, material, clock)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    about = {"name": cell.entry, "seed": cell.seed, "made from": cell.made_from, "memory MiB": memory}
    row = about | made | {"seconds": clock.wall, "cpu": clock.cpu}
    write_json(cell.file, row)
    gc.collect()
    return row


def start(material: Material, scale: Scale, seed: int) -> SmallEmbedder:
    """What every row of a seed begins with: the projector is aligned, nothing else is trained."""
    known = material.starts
    if (scale.align, seed) not in known:
        made = SmallEmbedder.new(material.features, seed)
        align(made, material.train, steps=scale.align, seed=seed)
        known[scale.align, seed] = made
    return known[scale.align, seed].copy()


def load(cell: Cell, material: Material) -> SmallEmbedder:
    """A trained embedder."""
    from safetensors.torch import load_file

    model = SmallEmbedder.new(material.features, cell.seed)
    model.module.load_state_dict(load_file(cell.weights))
    return model


def _train(cell: Cell, row: Training, material: Material, clock: Clock) -> dict[str, Any]:
    from safetensors.torch import save_file

    scale, examples = cell.suite.scale, _examples(cell, row, material)
    with clock.on("start"):
        fresh = SmallEmbedder.new(material.features, cell.seed)
        model = fresh if row.unaligned else start(material, scale, cell.seed)
    with clock.on("prepare"):
        groups, grouped = None, 0
        if row.groups:
            teacher = Encoding(model if row.by_itself else load(cell.of(TEACHER), material))
            groups = group(examples, teacher, row.groups, seed=cell.seed)
            grouped = teacher.encoded
    with clock.on("train"):
        steps = max(round(scale.steps * row.longer), 1)
        done = train(model, examples, row, scale, steps, cell.seed, groups)
    with clock.on("evaluate"):
        held_out, test = (measure(Encoding(model), one) for one in (material.validation, material.test))
    save_file({name: value.contiguous() for name, value in model.module.state_dict().items()}, cell.weights)
    spent = {"training": done.pop("items"), "grouping": grouped}
    return {"kind": "training", "encodings": spent, "steps": steps} | done | results(held_out, test)


def _train_whole(cell: Cell, row: Training, material: Material, clock: Clock) -> dict[str, Any]:
    with clock.on("train"):
        model, done = trained(cell.suite.backbone, row, cell.suite.scale, material, cell.seed, cell.weights)
    with clock.on("evaluate"):
        held_out, test = (measure(model, one) for one in (material.validation, material.test))
    model.save(cell.weights / "model")
    steps = round(cell.suite.scale.steps * row.longer)
    return {"kind": "training", "encodings": {"training": done.pop("items")}, "steps": steps} | done | results(held_out, test)


def results(held_out: Measured, test: Measured) -> dict[str, Any]:
    """What a row's cell keeps of its measurements."""
    rounded = {name: round(value, 5) for name, value in test.gap.items()}
    return {"validation": round(held_out.mean, 5), "held out": packed(held_out.hits), "hits": packed(test.hits), "gap": rounded}


def train(
    model: SmallEmbedder,
    examples: Sequence[Example],
    row: Training,
    scale: Scale,
    steps: int,
    seed: int,
    groups: list[int] | None = None,
) -> dict[str, Any]:
    """The library's batches, step and loop on the study's model."""
    queries = row.queries or scale.encodings // 2
    rate = scale.rate * row.pace
    settings = Settings(
        queries, row.negatives, learning_rate=rate, clip=CLIP, false_negatives=row.rules, precision="auto", seed=seed
    )
    optimizer = optimizer_for(model.module, settings)
    objective, room = Objective(row.loss, rules=row.rules), ROOM.room()
    stream = batches(examples, size=queries, steps=steps, negatives=row.negatives, seed=seed, groups=groups)
    mean, items, clipped, losses = Average(model.module, round(steps * row.average)), 0, 0, []
    for step in fit(model, steps, stream, lambda batch: embedder_step(model, objective, batch, room), optimizer, settings):  # type: ignore[arg-type]
        items += step.items
        losses.append(step.loss)
        clipped += step.norm > CLIP
        if row.average and step.number >= steps - mean.over:
            mean.add()
    mean.apply()
    last = losses[-max(len(losses) // 10, 1) :]
    return {"items": items, "loss": round(sum(last) / len(last), 4), "clipped": round(clipped / steps, 4)}


class Average:
    """Mean of the weights of the last steps: seeds then differ less, at no cost."""

    def __init__(self, module: nn.Module, over: int):
        self.module, self.over, self.count = module, over, 0
        self.sums: dict[str, Tensor] = {}

    def add(self) -> None:
        """One more step."""
        self.count += 1
        for name, value in self.module.state_dict().items():
            self.sums[name] = value.clone() if name not in self.sums else self.sums[name].add_(value)

    def apply(self) -> None:
        """Put the mean into the module, if there is one."""
        if self.count:
            self.module.load_state_dict({name: value / self.count for name, value in self.sums.items()})


def _examples(cell: Cell, row: Training, material: Material) -> tuple[Example, ...]:
    if not row.mined:
        return planted(material.train, material.features, row.plant, cell.seed)
    examples = planted(material.train, material.features, _plant_of(cell, row.mined), cell.seed)
    rows = read_mined(cell.of(row.mined).weights, examples)
    return tuple(r for r in rows if r.negatives) if row.only_mined else rows


def _plant_of(cell: Cell, name: str) -> Plant:
    entry: Entry = cell.suite.entry(name)
    assert isinstance(entry, MiningRound)
    return entry.plant


def _mine(cell: Cell, entry: MiningRound, material: Material, clock: Clock) -> dict[str, Any]:
    scale, teacher = cell.suite.scale, Encoding(load(cell.of(TEACHER), material))
    examples = planted(material.train, material.features, entry.plant, cell.seed)
    judge: Any = None
    with clock.on("mine"):
        encoder = CachedEncoder(teacher, None)
        if entry.judge == "reranker":
            reader = Scoring(load_reranker(cell.of("judge"), material))
            judge = Blend.fit(encoder, reader, material.held_out)
        elif entry.judge == "oracle":
            judge = Oracle.of(material.train, material, entry.error, cell.seed)
        settings = Mining(
            depth=scale.depth,
            keep=KEEP,
            beta=entry.beta,
            selector=Cyclic(2),
            queries=scale.mined,
            rest=True,
            min_auc=0.0,  # whether a judge is any good is what is asked here
            copies=None,
            seed=cell.seed,
        )
        mined = mine(examples, encoder, judge, settings=settings)
    write_mined(cell.weights, mined.examples)
    judged = getattr(judge, "asked", None) or (judge.reranker.scored if entry.judge == "reranker" else 0)
    about = {"auc": mined.calibration.auc if mined.calibration else None, "stats": mined.stats}
    return {"kind": "mining", "encodings": {"mining": teacher.encoded, "judging": judged}} | about


def load_reranker(cell: Cell, material: Material) -> SmallReranker:
    """A trained reranker."""
    from safetensors.torch import load_file

    model = SmallReranker.start_from(SmallEmbedder.new(material.features, cell.seed), cell.seed)
    model.module.load_state_dict(load_file(cell.weights))
    return model


def _rerank(cell: Cell, row: Reranking, material: Material, clock: Clock) -> dict[str, Any]:
    from safetensors.torch import save_file

    scale, embedder = cell.suite.scale, load(cell.of(row.base), material)
    encoder = Encoding(embedder)
    some = tuple(e for e in material.train if not row.sources or e.source in row.sources)
    with clock.on("mine"):
        how = replace(NEAR, seed=cell.seed, queries=None if row.judge else QUERIES)
        near = mine(some, encoder, settings=how).examples
    model = SmallReranker.start_from(embedder, cell.seed)
    steps = scale.judge_steps if row.judge else LONGER * scale.reranker_steps
    with clock.on("train"):
        loss = train_reranker(model, near, row, steps, scale, cell.seed)
    save_file({name: value.contiguous() for name, value in model.module.state_dict().items()}, cell.weights)
    spent = {"mining": encoder.encoded, "training": loss["pairs"]}
    made: dict[str, Any] = {"kind": "reranking", "steps": steps, "loss": loss["loss"], "encodings": spent}
    if row.judge:
        return made
    reader = Once(Scoring(model))
    with clock.on("gate"):
        learned = learn_fusion(encoder, reader, material.validation, depth=RERANKED)
    with clock.on("evaluate"):
        held_out, test = (measure(encoder, one, learned.fused) for one in (material.validation, material.test))
        ungated = {name: packed(measure(encoder, material.test, how(reader)).hits) for name, how in UNGATED.items()}
    gates = [[k.instruction, k.weight, round(k.gain.mean, 4), k.passes] for k in learned.fused.gate.kinds]  # type: ignore[union-attr]
    return made | {"gates": gates, "read": test.pairs} | ungated | results(held_out, test)


def train_reranker(
    model: SmallReranker, near: Sequence[Example], row: Reranking, steps: int, scale: Scale, seed: int
) -> Mapping[str, Any]:
    """The library's lists, step and loop: 4 near misses and one stranger beside each gold."""
    settings = Settings(
        32, negatives=4, random_negatives=2, learning_rate=scale.rate / 2, warmup=0.05, precision="auto", seed=seed
    )
    optimizer, objective, room = optimizer_for(model.module, settings), Objective(row.loss), ROOM.room()
    pairs, losses = 0, []
    take = lambda batch: reranker_step(model, objective, batch, room)  # type: ignore[arg-type]  # noqa: E731
    for step in fit(model, steps, lists(near, settings, steps), take, optimizer, settings):
        pairs += step.items
        losses.append(step.loss)
    last = losses[-max(len(losses) // 10, 1) :]
    return {"pairs": pairs, "loss": round(sum(last) / len(last), 4)}
