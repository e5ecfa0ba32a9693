"""Time of `Embedder.encode` against `SentenceTransformer.encode`, on the same model and the same texts.

    python -m benchmarks.encode --out benchmarks/encode_<hardware>_<date>.md
    python -m benchmarks.encode --model sentence-transformers/all-MiniLM-L6-v2 --device cuda

**Model.** all-MiniLM-L6-v2 from the demo's assets (`hardwon assets`), or `--model`. Both sides use the same object in memory.

**Texts.** Words of the model's own vocabulary, drawn with a seed. "plain": 12 words each, all different. "varied": 2 to 200
words, evenly on a logarithmic scale; also an eighth as many of them, since what a batch of fixed size pads shrinks as there are
more texts to sort. "repeated": 12 words, every text four times, in random order, as in a batch of pairs or a data set with
shared candidates.

**Contenders.** hardwon as users call it. sentence-transformers with its default batch of 32, and with 8 and 128: the fastest of
the three is what ratios are against. Its inputs are plain strings, the cheapest it takes; ours are `Item`s, made before the
clock starts, keys not yet computed. Everything runs once per round in an order that rotates; medians over rounds, after one
that is not counted, in which the vectors must agree to 1e-5.
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.losses import describe
from hardwon.data.assets import fetch
from hardwon.items import Item
from hardwon.models import Embedder

SIZES = (8, 32, 128)
COLUMNS = ("texts", "hardwon s", *(f"st {size} s" for size in SIZES), "x fastest st", "x st 32", "texts/s")


def texts(kind: str, count: int, words: Sequence[str]) -> list[str]:
    """Texts of a kind; the same for the same count."""
    draw = random.Random(f"{kind} {count}")
    if kind == "repeated":
        some = texts("plain", count // 4, words)
        return draw.sample(some * 4, 4 * len(some))
    lengths = [12 if kind == "plain" else round(2 * 100 ** draw.random()) for _ in range(count)]
    return [" ".join(draw.choices(words, k=length)) for length in lengths]


def measure(model: Embedder, some: Sequence[str], rounds: int) -> dict[str, float]:
    """Median seconds by contender."""
    inner = model.body.model

    def ours() -> np.ndarray:
        return model.encode([Item(text) for text in some])

    def theirs(size: int) -> Callable[[], Any]:
        return lambda: inner.encode(list(some), batch_size=size, show_progress_bar=False, normalize_embeddings=True)

    runs: dict[str, Callable[[], Any]] = {"hardwon": ours, **{f"st {size}": theirs(size) for size in SIZES}}
    truth = ours()
    for name, run in runs.items():
        if not np.allclose(run(), truth, atol=1e-5):
            raise AssertionError(f"{name} gives other vectors: nothing here could be compared")
    took: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            runs[name]()
            took[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in took.items()}


def cells(kind: str, count: int, seconds: dict[str, float]) -> tuple[str, ...]:
    """A row of the table."""
    ours, others = seconds["hardwon"], [seconds[f"st {size}"] for size in SIZES]
    ratios = (ours / min(others), ours / seconds["st 32"])
    return (f"{count:,} {kind}", *(f"{s:.2f}" for s in (ours, *others)), *(f"{r:.2f}" for r in ratios), f"{count / ours:,.0f}")


def main(arguments: Sequence[str]) -> None:
    """Measure, show, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.encode", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="", help="folder or name; the demo's language model if left out")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--texts", type=int, default=1024, help="of each kind")
    parser.add_argument("--rounds", type=int, default=5, help="that are counted")
    parser.add_argument("--out", type=Path, help="FILE.md")
    asked = parser.parse_args(arguments)
    folder = asked.model or next(fetch(("language",))["language"].rglob("model.safetensors")).parent
    model = Embedder.load(folder, device=asked.device)
    words = sorted(word for word in model.body.tokenizer.get_vocab() if word.isalpha() and word.isascii() and len(word) > 2)
    rows = []
    for kind, count in (("plain", 1), ("varied", 1), ("varied", 8), ("repeated", 1)):
        some = texts(kind, asked.texts // count, words)
        rows.append(cells(kind, len(some), measure(model, some, asked.rounds)))
    table = Table()
    for n, column in enumerate(COLUMNS):
        table.add_column(column, justify="right" if n else "left")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, width=140).print(table)
    if asked.out:
        about = [f"- {key}: {value}" for key, value in describe(arguments, "encode", "src/hardwon/models").items()]
        lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS), *(f"| {' | '.join(row)} |" for row in rows)]
        asked.out.write_text("\n".join(["# Time of encoding texts", "", *about, "", *lines, ""]))


if __name__ == "__main__":
    main(sys.argv[1:])
