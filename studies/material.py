"""What a study is made of: training pairs, held-out pairs, two benchmarks, and the frozen features of everything in them."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from hardwon.artifacts import checksum, fingerprint, write_json
from hardwon.data.assets import fetch
from hardwon.data.emoji import Size, build
from hardwon.data.emoji.catalogue import SPLIT
from hardwon.evaluation import Benchmark, benchmark_of, load_benchmark
from hardwon.items import Example, Item, read_examples
from studies.features import Features, items_of, look, thin, thin_example
from studies.trunk import SmallEmbedder

MADE = "made.json"  # written last: what is there is whole
VALIDATION = 150  # queries per source at most


@dataclass
class Material:
    """Everything that trainings of a study share; it is not changed.

    Attributes:
        train: training pairs.
        held_out: pairs of the validation concepts: the judge is calibrated on them, gates of rerankers are learned on them.
        test: the small MMEB.
        validation: the held-out pairs as a benchmark: whatever is chosen is chosen on it.
        features: see there.
        folder: where it lies.
        starts: what trainings begin with, by steps of the alignment and seed; made when it is first asked for.
    """

    train: tuple[Example, ...]
    held_out: tuple[Example, ...]
    test: Benchmark
    validation: Benchmark
    features: Features
    folder: Path
    starts: dict[tuple[int, int], SmallEmbedder] = field(default_factory=dict, repr=False)

    @classmethod
    def load(cls, folder: Path, *, thinned: bool = True) -> "Material":
        """What `prepare` made; with real pictures and no features if it is not thinned."""
        data = folder / "data"
        if not thinned:
            train, held_out = (tuple(read_examples(data / f"{name}.jsonl")) for name in ("train", "val"))
            validation = benchmark_of(held_out, "held-out pairs", most=VALIDATION)
            return cls(train, held_out, load_benchmark(str(data / "mmeb-small")), validation, Features.none(), folder)
        train, held_out = (tuple(map(thin_example, read_examples(data / f"{name}.jsonl"))) for name in ("train", "val"))
        validation = benchmark_of(held_out, "held-out pairs", most=VALIDATION)
        test = load_benchmark(str(data / "mmeb-small"))
        tasks = (replace(t, queries=tuple(map(thin, t.queries)), corpus=tuple(map(thin, t.corpus))) for t in test.tasks)
        return cls(train, held_out, replace(test, tasks=tuple(tasks)), validation, Features.load(folder), folder)


def prepare(folder: Path, size: Size, *, cache: Path | None = None, say: Callable[[str], None] = lambda _: None) -> str:
    """Draw the pictures, write the pairs, and run the frozen parts over all of it; nothing is done twice.

    Gives the fingerprint of all of it: pairs, benchmark, features.

    Args:
        folder: where to.
        size: of the data; another one than what lies there is made anew.
        cache: of downloaded assets.
        say: told what is happening.
    """
    wanted = said(size)
    made = json.loads((folder / MADE).read_text(encoding="utf-8")) if (folder / MADE).is_file() else {}
    if made.get("size") == wanted and "fingerprint" in made:
        return made["fingerprint"]
    shutil.rmtree(folder / "data", ignore_errors=True)
    build(folder / "data", size, cache=cache, say=say)
    data = folder / "data"
    train, held_out = (items_of(read_examples(data / f"{name}.jsonl")) for name in ("train", "val"))
    say("looking at all pictures and reading all texts with the frozen parts, once")
    items = [*train, *held_out, *asked(load_benchmark(str(data / "mmeb-small")))]
    look(backbone(folder, cache, say), items, train).save(folder)
    return seal(folder, size)


def said(size: Size) -> list[int | str | None]:
    """What makes two sizes different here."""
    more = [*(["languages"] if size.languages else []), *([size.division] if size.division != SPLIT else [])]
    return [size.collages, size.queries, size.concepts, *more]


def seal(folder: Path, size: Size) -> str:
    """Say that all is there; gives its fingerprint."""
    texts = [checksum(file) for file in sorted((folder / "data").rglob("*.jsonl"))]
    known = fingerprint([Features.load(folder).fingerprint, *texts])
    write_json(folder / MADE, {"size": said(size), "fingerprint": known})
    return known


def backbone(folder: Path, cache: Path | None, say: Callable[[str], None]) -> object:
    """The demo's backbone, untrained, with a frozen tower."""
    from hardwon.models import Embedder
    from hardwon.models.small import assemble

    found = fetch(("vision", "language"), cache, say)
    if not (folder / "base" / "modules.json").is_file():
        shutil.rmtree(folder / "base", ignore_errors=True)
        assemble(folder / "base", found["vision"], found["language"])
    embedder = Embedder.load(folder / "base", freeze=("vision",))
    embedder.body.settle_vision()
    return embedder


def asked(benchmark: Benchmark) -> Sequence[Item]:
    """Every query and candidate of a benchmark."""
    return [item for task in benchmark.tasks for item in (*task.queries, *task.corpus)]
