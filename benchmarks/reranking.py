"""Time of reranking the candidates of one query that holds a picture: pairs with the query computed once, and every time.

    python -m benchmarks.reranking --out benchmarks/reranking_<hardware>_<date>.md
    python -m benchmarks.reranking --model Qwen/Qwen3-VL-2B-Instruct --device cuda

**Model and pairs.** As in `benchmarks.judging`, saved as a chat model is on a hub, and loaded with `Reranker.load`.

**Contenders.** "shared": `Reranker.score` as users call it. "separate": the same model and prompts, one whole prompt after the
other. "batched": whole prompts, as many together as fit into the same number of tokens. "plain": `CrossEncoder.predict` of the
folder that `Reranker.save` writes, where hardwon need not be installed, in batches of 8. "lists": `ListwiseReranker.score` of
the same weights, four orders and windows of ten; it answers another question, so only its time is compared. Everything runs
once per round in an order that rotates; medians over rounds, after one that is not counted, in which all scores of pairs must
agree to 1e-3 (to 0.5 in fewer than 32 bits).
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks import judging
from benchmarks.losses import describe
from hardwon.items import Item
from hardwon.models import ListwiseReranker, Pair, Reranker
from hardwon.models.judge import Judge
from hardwon.pictures import open_picture

PAIRS = ("shared", "separate", "batched", "plain")
COLUMNS = ("candidates", *(f"{name} s" for name in (*PAIRS, "lists")), *(f"x {name}" for name in PAIRS[1:]), "apart")


def plain(item: Item) -> dict[str, Any]:
    """An item as sentence-transformers takes it."""
    seen = {"image": open_picture(item.images[0])} if item.images else {}
    return seen | ({"text": item.text} if item.text else {})


def contenders(folder: str, saved: Path, device: str) -> dict[str, Callable[[Sequence[Pair]], np.ndarray]]:
    """What scores the pairs of one query, by name."""
    from sentence_transformers import CrossEncoder

    ours, lists = Reranker.load(folder, device=device), ListwiseReranker.load(folder, device=device)
    ours.save(saved)
    theirs = CrossEncoder(str(saved), device=device)
    assert ours.chat is not None
    inner, processor, question = ours.body.transformer, ours.body.processor, ours.chat.asked.question
    whole = {
        "separate": Judge(inner, processor, question, share=False, tokens=1),
        "batched": Judge(inner, processor, question, share=False),
    }

    def predict(some: Sequence[Pair]) -> np.ndarray:
        rows = [(plain(query), plain(item)) for query, item in some]
        told: dict[str, Any] = {"activation_fn": torch.nn.Identity(), "batch_size": 8, "prompt": some[0][0].instruction}
        return np.asarray(theirs.predict(rows, **told))

    return {
        "shared": ours.score_pairs,
        "separate": whole["separate"].score_pairs,
        "batched": whole["batched"].score_pairs,
        "plain": predict,
        "lists": lambda some: lists.score(some[0][0], [item for _, item in some]),
    }


def measure(runs: dict[str, Callable[[Sequence[Pair]], np.ndarray]], some: Sequence[Pair], rounds: int, near: float) -> Any:
    """Median seconds by contender, and how far apart their scores of pairs are at most."""
    said = {name: run(some) for name, run in runs.items()}
    apart = max(float(np.abs(said[name] - said["separate"]).max()) for name in PAIRS)
    if not apart <= near:
        raise AssertionError(f"the contenders' scores differ by {apart}: nothing here could be compared")
    took: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            runs[name](some)
            took[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in took.items()}, apart


def cells(kind: str, count: int, seconds: dict[str, float], apart: float) -> tuple[str, ...]:
    """A row of the table."""
    ratios = (f"{seconds['shared'] / seconds[name]:.2f}" for name in PAIRS[1:])
    return (f"{count} {kind}", *(f"{value:.2f}" for value in seconds.values()), *ratios, f"{apart:.0e}")


def main(arguments: Sequence[str]) -> None:
    """Measure, show, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reranking", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="", help="folder or name; a random one if left out")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--texts", type=int, default=50, help="candidates of the first row")
    parser.add_argument("--pictures", type=int, default=20, help="candidates of the second row")
    parser.add_argument("--rounds", type=int, default=3, help="that are counted")
    parser.add_argument("--out", type=Path, help="FILE.md")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as home:
        folder = asked.model
        if not folder:
            folder = str(Path(home) / "bare")
            for part in judging.model():
                part.save_pretrained(folder)
        runs = contenders(folder, Path(home) / "saved", asked.device)
        rows = []
        for kind, count in (("texts", asked.texts), ("pictures", asked.pictures)):
            some = judging.pairs(kind, count)
            rows.append(cells(kind, count, *measure(runs, some, asked.rounds, 0.5 if asked.model else 1e-3)))
    table = Table(title="candidates of one query with a picture")
    for n, column in enumerate(COLUMNS):
        table.add_column(column, justify="right" if n else "left")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, width=140).print(table)
    if asked.out:
        about = [f"- {key}: {value}" for key, value in describe(arguments, "reranking", "src/hardwon/models").items()]
        lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS), *(f"| {' | '.join(row)} |" for row in rows)]
        asked.out.write_text("\n".join(["# Time of reranking the candidates of a query", "", *about, "", *lines, ""]))


if __name__ == "__main__":
    main(sys.argv[1:])
