"""Two workers against one, and a million items against ten thousand.

    python -m benchmarks.scaling --out benchmarks/scaling_<hardware>_<date>.md
    python -m benchmarks.scaling --rounds 1 --most 100000 --items 2048

**Workers.** Embedding: texts by a BERT of 6 layers and 384 numbers with random weights, in shards of 512, as `hardwon index
--workers` does it. Searching: the nearest 50 of a pool for blocks of 1,024 queries, as `hardwon mine --workers` does it.
Workers are processes of one thread that run already and have their model loaded; everything else counts: writing shards,
claiming, reading and checking what came out. One and two take turns; efficiency: median time of one over twice that of two.

**Items.** What one item costs among ten thousand, a hundred thousand and a million, vectors of 64 numbers: kept in a store and
found again by another store; put into an index, saved and loaded; scored for one of a thousand queries. Medians of rounds.
"""

import argparse
import contextlib
import io
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.losses import describe
from hardwon.items import Item
from hardwon.models import Embedder
from hardwon.search import Index, retrieve
from hardwon.spread.engines import Workers, keeping
from hardwon.spread.models import SpreadEncoder
from hardwon.spread.search import Asked, nearest_of
from hardwon.store import Store

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import tiny

CHUNK, BLOCK, DEPTH, WIDTH, QUERIES = 512, 1024, 50, 64, 1000
GOALS = {"efficiency": 0.85, "flat": 1.10}


def unit(count: int, width: int, seed: int) -> np.ndarray:
    """Unit vectors drawn at random."""
    made = np.random.default_rng(seed).standard_normal((count, width), dtype=np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def model(folder: Path) -> Path:
    """A BERT that takes about a millisecond for a text."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling
    from transformers import BertConfig, BertModel

    if folder.exists():
        return folder
    words, parts = tiny.tokenizer(), folder.with_name("parts")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=384, num_hidden_layers=6, num_attention_heads=6, intermediate_size=1536
    )
    BertModel(config).eval().save_pretrained(parts)
    words.save_pretrained(parts)
    modules = [Transformer(str(parts)), Pooling(384, pooling_mode="mean"), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder), create_model_card=False)
    return folder


def texts(count: int, seed: int) -> list[Item]:
    """Different texts of eight to sixteen words that the tokenizer knows."""
    draw, words = np.random.default_rng(seed), [*tiny.COLOURS, *tiny.SHAPES, "find", "the"]
    return [Item(text=" ".join([*draw.choice(words, 8 + n % 9), str(n)])) for n in range(count)]


def embedding(folder: Path, items: int, count: int) -> Iterator[float]:
    """Seconds of each round, by so many workers."""
    place = model(folder / "model")
    spread = SpreadEncoder(Embedder.load(place, device="cpu"), place, workers=Workers(count), below=folder / f"work-{count}")
    for seed in itertools.count():
        made = texts(items if seed else 2 * CHUNK * count, seed)
        chunks = [made[start : start + CHUNK] for start in range(0, len(made), CHUNK)]
        start = time.perf_counter()
        assert sum(map(len, spread.encode_each(chunks))) == len(made)
        yield time.perf_counter() - start


def searching(folder: Path, items: int, count: int) -> Iterator[float]:
    """As `embedding`."""
    queries, pool = unit(8 * BLOCK, 256, 1), unit(items, 256, 2)
    blocks = [Asked("pool", range(n, n + BLOCK), [[n]] * BLOCK) for n in range(0, len(queries), BLOCK)]
    for _ in itertools.count():
        start = time.perf_counter()
        found = nearest_of(
            queries, {"pool": pool}, blocks=blocks, depth=DEPTH, workers=Workers(count), below=folder / f"search-{count}"
        )
        assert len(list(found)) == len(blocks)
        yield time.perf_counter() - start


def efficiency(work: Callable[[Path, int, int], Iterator[float]], items: int, rounds: int) -> dict[int, list[float]]:
    """Seconds by number of workers; rounds take turns, and the first, in which the workers start, is not counted."""
    taken: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder, keeping():
        those = {count: work(Path(folder), items, count) for count in taken}
        for each in those.values():
            next(each)
        for n in range(rounds):
            for count in (1, 2) if n % 2 else (2, 1):
                taken[count].append(next(those[count]))
    return taken


def storing(count: int) -> float:
    """Seconds to keep so many vectors and to find them again."""
    rows, keys = torch.from_numpy(unit(count, WIDTH, 0)), [f"{n:032x}" for n in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        store = Store(Path(folder), "vectors", {})
        for n in range(0, count, CHUNK):
            store.add(keys[n : n + CHUNK], rows[n : n + CHUNK])
        store.describe()
        again = Store(Path(folder), "vectors", {})
        assert len(again.rows) == count and torch.equal(again.rows[keys[-1]], rows[-1])
        return time.perf_counter() - start


class Known:
    """An encoder whose vectors are there."""

    fingerprint, dim = "known", WIDTH

    def __init__(self, vectors: np.ndarray):
        self.vectors = vectors

    def encode(self, items: Sequence[Item], *, progress: str = "") -> np.ndarray:
        """As `Encoder.encode`."""
        return self.vectors


def indexing(count: int) -> float:
    """Seconds to build an index of so many items, to save it and to load it."""
    items, encoder = [Item(text=f"item {n}") for n in range(count)], Known(unit(count, WIDTH, 0))
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        Index.build(encoder, items, progress="").save(Path(folder) / "index")
        assert len(Index.load(Path(folder) / "index")) == count
        return time.perf_counter() - start


def scoring(count: int) -> float:
    """Seconds to find the nearest 50 of so many for a thousand queries."""
    queries, pool = unit(QUERIES, WIDTH, 1), unit(count, WIDTH, 2)
    start = time.perf_counter()
    retrieve(queries, pool, DEPTH)
    return time.perf_counter() - start


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of Markdown."""
    return [
        f"| {' | '.join(head)} |",
        "|---" + "|---:" * (len(head) - 1) + "|",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
    ]


def main(arguments: Sequence[str]) -> None:
    """Measure, show, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--items", type=int, default=8192, help="texts to embed")
    parser.add_argument("--pool", type=int, default=100_000, help="vectors to search")
    parser.add_argument("--most", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    lines = [
        "# Scaling",
        "",
        *(f"- {name}: {value}" for name, value in describe(arguments, "scaling", "src/hardwon").items()),
        "",
    ]
    rows = []
    for name, work, items in (("embedding", embedding, asked.items), ("searching", searching, asked.pool)):
        with contextlib.redirect_stderr(io.StringIO()):
            taken = efficiency(work, items, asked.rounds)
        one, two = (statistics.median(taken[count]) for count in (1, 2))
        spread = ", ".join(f"{a / (2 * b):.2f}" for a, b in zip(taken[1], taken[2], strict=True))
        rows.append((f"{name} {items:,}", f"{one:.2f}", f"{two:.2f}", f"{one / (2 * two):.3f}", spread))
        print(rows[-1], flush=True)
    lines += ["## one and two workers", "", *table(("work", "s, one", "s, two", "efficiency", "by round"), rows)]
    sizes, rows = [size for size in (10_000, 100_000, 1_000_000) if size <= asked.most], []
    for name, measure, unit_of in (
        ("store: kept and found again", storing, 1), ("index: built, saved, loaded", indexing, 1),
        ("search: an item and a query", scoring, QUERIES),
    ):  # fmt: skip
        measure(sizes[0])
        micro = {
            size: statistics.median(measure(size) for _ in range(max(1, asked.rounds * sizes[0] * 10 // max(size, 100_000))))
            * 1e6 / size / unit_of
            for size in sizes
        }  # fmt: skip
        rows.append((name, *(f"{micro[size]:.4g}" for size in sizes), f"{micro[sizes[-1]] / micro[sizes[0]]:.3f}"))
        print(rows[-1], flush=True)
    head = ("microseconds per item", *(f"{size:,}" for size in sizes), "most / fewest")
    lines += ["## cost per item", "", *table(head, rows)]
    lines += [f"Goals: efficiency at least {GOALS['efficiency']}; cost per item flat within {GOALS['flat'] - 1:.0%}.", ""]
    if asked.out:
        asked.out.write_text("\n".join(lines))


if __name__ == "__main__":
    main(sys.argv[1:])
