"""Time and memory of a training step: with all graphs kept, with chunks encoded twice, with checkpoints; and bfloat16.

    python -m benchmarks.step --out benchmarks/step_<hardware>_<date>.md
    python -m benchmarks.step --device cuda --layers 12 --width 768 --batch 256 --memory 256 512 1024

**Model and data.** A BERT with random weights, read by an `Embedder` as any other model. Queries of 4 to 24 words against
candidates of 8 to 200, evenly on a logarithmic scale, a token each; every text is another one. Dropout is off.

**Time.** A step is `embedder_step`: rendering, encoding, loss, gradients of the weights; not the optimizer. Every way runs once
per round in the same process, in an order that rotates; medians are over rounds, after one round that is not counted. In that
one all ways must agree in the gradient (relative 1e-4), so that the wrong thing cannot be timed. Ratios are against the plain
step of the same batch in the same chunks.

**Memory.** Each way and batch in a process of its own, after a step on four pairs (libraries loaded): the largest memory during
the step less that just before it. On CUDA what torch's allocator gave out; else resident memory, where what is freed goes back
to the system at once (MALLOC_MMAP_THRESHOLD_). The weights' gradients are part of it.

**bfloat16.** Steps and vectors in float32 and bfloat16 in turn. Where the processor only emulates bfloat16 (hundred times
slower), 8 pairs must do.
"""

import argparse
import contextlib
import gc
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.losses import MIB, ROOT, describe, resident
from hardwon.items import Candidate, Example, Item
from hardwon.losses import InfoNCE
from hardwon.models import Embedder
from hardwon.models.body import Body
from hardwon.models.memory import checkpointed, plan
from hardwon.models.precision import bf16_gain
from hardwon.training import Memory
from hardwon.training.batches import Batch, shared
from hardwon.training.loop import without_dropout
from hardwon.training.step import embedder_step

LOSS, WORDS, LONGEST = InfoNCE(0.05), 2000, 256
SLOW = 0.5  # gain of bfloat16 below which it is only looked at


@dataclass(frozen=True)
class Way:
    """How a step is taken.

    Attributes:
        name: of the row.
        keep: share of the batch's chunks whose graphs are kept, rounded up to whole chunks.
        checkpoints: gradient checkpointing.
        goal: largest ratio of time to the plain step that this project allows itself.
    """

    name: str
    keep: float
    checkpoints: bool = False
    goal: float | None = None


WAYS = (
    Way("plain: all graphs kept", 1.0),
    Way("four of five chunks kept", 0.8, goal=1.10),
    Way("replay: none kept", 0.0, goal=1.35),
    Way("checkpoints, all kept", 1.0, checkpoints=True),
    Way("checkpoints, none kept", 0.0, checkpoints=True),
)


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        table: it belongs to.
        name: of the way.
        batch: pairs.
        seconds: of each round.
        ratio: of medians, to the first row of the table.
        goal: for that ratio.
        mib: memory of the step.
        note: what else there is to say, below the table.
    """

    table: str
    name: str
    batch: int
    seconds: tuple[float, ...] = ()
    ratio: float | None = None
    goal: float | None = None
    mib: float | None = None
    note: str = ""

    @property
    def cells(self) -> tuple[str, ...]:
        """The columns of the table."""
        middle = statistics.median(self.seconds) if self.seconds else None
        numbers = ((middle, ".3f"), (self.ratio, ".2f"), (self.goal, ".2f"), (self.mib, ",.0f"))
        return self.name, f"{self.batch}", *("" if n is None else format(n, form) for n, form in numbers)


COLUMNS = ("step", "pairs", "median s", "x first", "goal", "MiB")


def make_model(layers: int, width: int, device: str) -> Embedder:
    """A random BERT behind mean pooling; a word of three letters is a token."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling
    from transformers import BertConfig, BertModel, BertTokenizer

    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(spelled, range(WORDS))]
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(names),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64 or 1,
        intermediate_size=4 * width,
        max_position_embeddings=LONGEST,
        initializer_range=width**-0.5,  # so that texts differ
    )
    with tempfile.TemporaryDirectory() as folder:
        BertModel(config).save_pretrained(folder)
        BertTokenizer(vocab={name: n for n, name in enumerate(names)}, model_max_length=LONGEST).save_pretrained(folder)
        model = SentenceTransformer(modules=[Transformer(folder), Pooling(width, pooling_mode="mean")], device=device)
    made = Embedder(Body(model))
    without_dropout(made.module)
    made.body.train()
    return made


def spelled(n: int) -> str:
    return "".join(chr(ord("a") + n // 26**place % 26) for place in range(3))


def make_batch(pairs: int, seed: int = 0) -> Batch:
    rng = random.Random(seed)

    def text(low: int, high: int) -> Item:
        length = round(math.exp(rng.uniform(math.log(low), math.log(high))))
        return Item(text=" ".join(spelled(rng.randrange(WORDS)) for _ in range(length)))

    return shared([Example(text(4, 24), (Candidate(text(8, 200), origin="gold"),)) for _ in range(pairs)], 0)


def memory_of(way: Way, model: Embedder, batch: Batch, chunk: int) -> Memory:
    costs = [model.cost(item) for item in (*batch.queries, *batch.candidates)]
    sizes = [len(rows) * costs[rows[0]] for rows in plan(costs, chunk)]
    return Memory(chunk, None if way.keep == 1 else sum(sizes[: math.ceil(way.keep * len(sizes))]))


def take(model: Embedder, batch: Batch, memory: Memory, checkpoints: bool = False) -> None:
    with checkpointed(model.body.transformer, checkpoints):
        embedder_step(model, LOSS, batch, memory)
    wait(model.body.model.device.type)


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def gradient(model: Embedder) -> torch.Tensor:
    """All gradients as one vector; they are gone afterwards."""
    made = torch.cat([p.grad.flatten() for p in model.module.parameters() if p.grad is not None])
    model.module.zero_grad(set_to_none=True)
    return made


def interleaved(runs: dict[str, Callable[[], Any]], rounds: int, after: Callable[[str, bool], None]) -> dict[str, list[float]]:
    """Seconds of every run in every round; `after` each run comes what is not timed, with whether it was the first round."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for n in range(rounds + 1):
        for name in names[n % len(names) :] + names[: n % len(names)]:
            gc.collect()
            start = time.perf_counter()
            runs[name]()
            took = time.perf_counter() - start
            after(name, n == 0)
            if n:
                seconds[name].append(took)
    return seconds


def time_ways(model: Embedder, pairs: int, chunk: int, rounds: int) -> list[Row]:
    """The table of times.

    Raises:
        SystemExit: the ways' gradients differ.
    """
    batch, known = make_batch(pairs), []
    runs = {way.name: lambda way=way: take(model, batch, memory_of(way, model, batch, chunk), way.checkpoints) for way in WAYS}

    def after(name: str, first: bool) -> None:
        made = gradient(model)
        if first:
            known.append(made)
            gap = float((made - known[0]).norm() / known[0].norm())
            if not gap <= 1e-4:
                raise SystemExit(f"the gradient of {name!r} is {gap:.1e} away from that of {WAYS[0].name!r}")

    seconds = interleaved(runs, rounds, after)
    plain = statistics.median(seconds[WAYS[0].name])
    table = f"Time of a step, {pairs} queries x {pairs} candidates"
    return [
        Row(table, way.name, pairs, tuple(seconds[way.name]), statistics.median(seconds[way.name]) / plain, way.goal)
        for way in WAYS
    ]


def time_precisions(model: Embedder, pairs: int, chunk: int, rounds: int) -> list[Row]:
    """Steps and vectors in float32 and in bfloat16."""
    device = model.body.model.device.type
    gain = bf16_gain(device)
    pairs = pairs if gain > SLOW else min(pairs, 8)
    batch, vectors = make_batch(pairs), {}
    items = [*batch.queries, *batch.candidates]
    with warnings.catch_warnings(action="ignore"):  # that bfloat16 is slow here is what is measured
        readers = {"float32": model, "bfloat16": Embedder(Body(model.body.model, None, "bf16"))}

    def step(lower: bool) -> None:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=lower):
            take(model, batch, Memory(chunk))

    def encode(name: str) -> None:
        vectors[name] = readers[name].encode(items)

    runs: dict[str, Callable[[], Any]] = {f"step, {name}": lambda name=name: step(name != "float32") for name in readers}
    runs |= {f"encode, {name}": lambda name=name: encode(name) for name in readers}
    seconds = interleaved(runs, rounds, lambda name, first: model.module.zero_grad(set_to_none=True))
    low, high = vectors["bfloat16"], vectors["float32"]
    said = (
        f"Vectors of the two: largest difference of a component {np.abs(low - high).max():.1e}, "
        f"smallest cosine {(low * high).sum(1).min():.5f}."
    )
    return [
        Row(
            "float32 and bfloat16",
            name,
            pairs,
            tuple(took),
            statistics.median(took) / statistics.median(seconds[name.replace("bfloat16", "float32")]),
            note=said if name == "encode, bfloat16" else "",
        )
        for name, took in seconds.items()
    ]


def measure_here(way: Way, asked: argparse.Namespace) -> float:
    """MiB of one step, in this process, which has done next to nothing else."""
    model, batch = make_model(asked.layers, asked.width, asked.device), make_batch(asked.batch)
    take(model, make_batch(4, seed=1), Memory(asked.chunk_tokens), way.checkpoints)
    gradient(model)
    memory = memory_of(way, model, batch, asked.chunk_tokens)
    gc.collect()
    if asked.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        take(model, batch, memory, way.checkpoints)
        return (torch.cuda.max_memory_allocated() - before) / MIB
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    take(model, batch, memory, way.checkpoints)
    return (resident("VmHWM") - before) / 1024


def measure_memory(asked: argparse.Namespace) -> Iterator[Row]:
    """The table of memory; nothing where the system does not tell."""
    if asked.device != "cuda" and not Path("/proc/self/clear_refs").exists():
        return
    for way in WAYS:
        for pairs in asked.memory:
            options = {"batch": pairs, "layers": asked.layers, "width": asked.width, "device": asked.device}
            options |= {"chunk-tokens": asked.chunk_tokens, "memory-of": way.name}
            run = [sys.executable, "-m", "benchmarks.step", *(str(part) for k, v in options.items() for part in (f"--{k}", v))]
            environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(MIB)}
            said = subprocess.run(run, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
            yield Row("Memory of a step", way.name, pairs, mib=float(said.split()[-1]))


def notes(rows: Sequence[Row]) -> str:
    return " ".join(row.note for row in rows if row.note)


def as_table(rows: Sequence[Row]) -> Table:
    table = Table(title=rows[0].table, caption=notes(rows), caption_justify="left")
    for n, column in enumerate(COLUMNS):
        table.add_column(column, justify="right" if n else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row.cells)
    return table


def as_markdown(groups: Sequence[Sequence[Row]], about: dict[str, str]) -> str:
    """The whole result as a page."""
    lines = ["# Time and memory of a training step", "", *(f"- {key}: {value}" for key, value in about.items())]
    for rows in groups:
        lines += ["", f"## {rows[0].table}", "", f"| {' | '.join(COLUMNS)} |", "|---|---:|---:|---:|---:|---:|"]
        lines += [f"| {' | '.join(row.cells)} |" for row in rows]
        lines += ["", notes(rows)] if notes(rows) else []
    return "\n".join([*lines, ""])


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--batch", type=int, default=64, help="pairs whose step is timed (default 64)")
    parser.add_argument("--memory", type=int, nargs="*", default=[64, 128, 256], help="pairs whose step's memory is measured")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=384, help="of a token, a multiple of 64")
    parser.add_argument("--chunk-tokens", type=int, default=2048, help="of one pass")
    parser.add_argument("--rounds", type=int, default=7, help="that are counted")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--out", type=Path, nargs="+", default=[], help="FILE.md: the tables; FILE.jsonl: a line for every row")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)  # processes of their own are started with this
    asked = parser.parse_args(arguments)
    if bad := [str(path) for path in asked.out if path.suffix not in (".md", ".jsonl")]:
        parser.error(f"--out takes .md and .jsonl files, not {', '.join(bad)}")
    return asked


def main(arguments: Sequence[str]) -> None:
    """Measure, show, write."""
    asked = parsed(arguments)
    if asked.memory_of:
        print(measure_here(next(way for way in WAYS if way.name == asked.memory_of), asked))
        return
    about = describe(arguments, "step", "src/hardwon/models", "src/hardwon/training")
    if asked.device == "cuda":
        about["hardware"] += f"; {torch.cuda.get_device_name()}"
    about["model"] = f"BERT, {asked.layers} layers, width {asked.width}; {asked.chunk_tokens} tokens a chunk"
    console, model = Console(highlight=False), make_model(asked.layers, asked.width, asked.device)
    groups = []
    for measure in (
        lambda: time_ways(model, asked.batch, asked.chunk_tokens, asked.rounds),
        lambda: time_precisions(model, asked.batch, asked.chunk_tokens, asked.rounds),
        lambda: list(measure_memory(asked)),
    ):
        if rows := measure():
            groups.append(rows)
            console.print(as_table(rows))
    for path in asked.out:
        lines = [json.dumps({**asdict(row), **about}) + "\n" for rows in groups for row in rows]
        path.write_text(as_markdown(groups, about) if path.suffix == ".md" else "".join(lines))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main(sys.argv[1:])
