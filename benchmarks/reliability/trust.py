"""Group E, continued: ties, leaks, stale vectors, several processes, and differences that are none."""

import io
import itertools
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from benchmarks.reliability.trial import Outcome, Trial
from hardwon.evaluation import Benchmark, Report, Task, TaskResult, evaluate, leakage
from hardwon.items import Candidate, Example, Item
from hardwon.models import Embedder

TESTS = Path(__file__).parents[2] / "tests"


# ---- E2: ties


@dataclass
class Coarse:
    """Vectors of few different numbers, as narrow formats and cut embeddings give them."""

    seed: int
    steps: int
    dim: int = 4
    fingerprint: str = field(default="coarse")

    def encode(self, items: list[Item], *, progress: str = "") -> np.ndarray:
        """One of a few vectors, chosen by the item."""
        draws = [np.random.default_rng([self.seed, int(item.key[:12], 16)]) for item in items]
        rows = np.stack([draw.integers(1, self.steps + 1, self.dim) for draw in draws]).astype(np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def in_every_order(scores: np.ndarray, gold: int) -> tuple[float, float, int]:
    """Hit and rank of the gold, expected over all orders of the candidates that tie with it, and its worst rank."""
    above, tied = int((scores > scores[gold]).sum()), int((scores == scores[gold]).sum())
    ranks = [above + 1 + order.index(0) for order in itertools.permutations(range(tied))]
    return float(np.mean([rank == 1 for rank in ranks])), float(np.mean(ranks)), above + tied


def ties(times: int, seed: int) -> Outcome:
    """E2: every number of a result against all orders of its ties, tried one by one."""
    failed, warned, shares = 0, 0, []
    for n in range(times):
        model = Coarse(seed + n, steps=1 + n % 6)
        queries, corpus = (tuple(Item(text=f"{what}{n} {k}") for k in range(6)) for what in "qc")
        task = Task("t", "retrieval", "ind", queries, corpus, tuple((k,) for k in range(6)))
        report = evaluate(model, Benchmark("b", (task,)), progress=False)
        (result,) = report.results
        cosines = (model.encode(list(queries)).astype(np.float64) @ model.encode(list(corpus)).astype(np.float64).T).astype(
            "f4"
        )
        truth = [in_every_order(row, k) for k, row in enumerate(cosines)]
        columns = list(zip(result.hits, result.ranks, result.worst, strict=True))
        text = " ".join(str(report).split())
        said = "WARNING" in text
        agree = np.allclose(columns, truth, atol=1e-12) and said == (result.tied > 0.01) and "% of queries" in text
        failed, warned = failed + (not agree), warned + said
        shares.append(result.tied)
    return Outcome(times, failed, f"ties for {100 * np.mean(shares):.1f} % of queries, {warned} reports warned")


# ---- E4: leaks


def encoded(image: Image.Image, kind: str = "PNG", quality: int = 90) -> bytes:
    """A picture as bytes."""
    out = io.BytesIO()
    image.save(out, kind, quality=quality)
    return out.getvalue()


CHANGES: dict[str, Callable[[Image.Image], bytes]] = {
    "exact": encoded,
    "re-encoded": lambda image: encoded(image, "JPEG", 50),
    "resized": lambda image: encoded(image.resize((70, 78), Image.Resampling.LANCZOS)),
    "cropped to 92 %": lambda image: encoded(image.crop((2, 2, 94, 94))),
    "cropped to 64 %, off centre": lambda image: encoded(image.crop((15, 4, 92, 81)), "JPEG", 85),
    "cropped to 36 %, off centre": lambda image: encoded(image.crop((30, 8, 88, 66)), "JPEG", 85),
}
GOALS = {"exact": 0.99, "re-encoded": 0.95, "resized": 0.95, "text exact": 0.99, "two words, exact": 0.99}
WORDS = [
    a + b
    for a in ("ka", "lo", "mi", "ru", "te", "sa", "bo", "ne")
    for b in ("ran", "tis", "mol", "der", "vik", "pan", "lus", "gor")
]


def scene(seed: int, side: int = 96) -> Image.Image:
    """A picture: a background of soft colours with discs on it."""
    draw = np.random.default_rng(seed)
    colours = draw.integers(0, 255, (4, 4, 3), dtype=np.uint8)
    image = Image.fromarray(colours).resize((side, side), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(image)
    for _ in range(6):
        x, y, w, h = draw.integers(0, side, 4)
        pen.ellipse((x, y, x + w // 2, y + h // 2), fill=tuple(draw.integers(0, 255, 3).tolist()))
    return image


def sentence(seed: int) -> list[str]:
    """Twelve words."""
    return np.random.default_rng(seed).choice(WORDS, 12).tolist()


def leaks(times: int, seed: int) -> Outcome:
    """E4: `times` training pictures and texts, some of which the benchmark holds, changed in a known way."""
    base, planted = 10_000_019 * (seed + 1), max(1, times // 50)
    trained = [Item(images=(encoded(scene(base + n)),)) for n in range(times)]
    trained += [Item(text=" ".join(sentence(base + n))) for n in range(times)]
    trained += [Item(text=" ".join([*sentence(base + n)[:2], str(n)])) for n in range(planted)]
    examples = [Example(item, (Candidate(Item(text="label"), origin="gold"),), "s") for item in trained]
    asked: list[tuple[str, Item]] = []
    for place, (name, change) in enumerate(CHANGES.items()):
        rows = range(place * planted, (place + 1) * planted)
        asked += [(name, Item("what is this?", (change(scene(base + n)),))) for n in rows]
    for n in range(planted):
        words = sentence(base + n)
        asked.append(("text exact", Item(text=" ".join(words), instruction="Find it.")))
        asked.append(("text, one word changed", Item(text=" ".join([*words[:6], "other", *words[7:]]))))
        asked.append(("text, halves exchanged", Item(text=" ".join([*words[6:], *words[:6]]))))
        asked.append(("text, a third of the words replaced", Item(text=" ".join([*words[:8], *sentence(base - n - 1)[:4]]))))
        asked.append(("two words, exact", Item(text=f"{words[0]} {words[1]} {n}")))
    asked += [("none", Item("what is this?", (encoded(scene(base + times + n)),))) for n in range(times)]
    asked += [("none", Item(text=" ".join(sentence(base + times + n)))) for n in range(times)]
    task = Task("asked", "vqa", "ind", tuple(item for _, item in asked), (Item(text="yes"),), ((0,),) * len(asked))
    found = {leak.row for leak in leakage(examples, Benchmark("b", (task,)), progress=False).found}
    counts: dict[str, list[bool]] = {}
    for row, (name, _) in enumerate(asked):
        counts.setdefault(name, []).append(row in found)
    shares = {name: float(np.mean(rows)) for name, rows in counts.items()}
    failed = sum(shares[name] < goal for name, goal in GOALS.items()) + (shares["none"] > 0.001)
    told = ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares.items() if name != "none")
    return Outcome(len(asked), failed, f"found: {told}; false alarms {100 * shares['none']:.2f} %")


# ---- E5: stale vectors


def stale(times: int, seed: int) -> Outcome:
    """E5: one weight of the model is changed, and the same benchmark is asked again with the same store."""
    sys.path.append(str(TESTS))
    import tiny

    with tempfile.TemporaryDirectory() as folder:
        model = Embedder.load(tiny.build_text(Path(folder) / "model"), device="cpu")
        items = tuple(Item(text=f"a {colour} {shape}") for colour in ("red", "blue") for shape in ("square", "bar"))
        task = Task("t", "retrieval", "ind", items, items, tuple((n,) for n in range(4)))
        draw, reused, repeated = torch.Generator().manual_seed(seed), 0, 0
        weights = list(model.module.parameters())
        for _ in range(times):
            weight = weights[int(torch.randint(len(weights), (), generator=draw))]
            with torch.no_grad():
                weight.view(-1)[int(torch.randint(weight.numel(), (), generator=draw))] += 1e-3
            made = [
                evaluate(model, Benchmark("b", (task,)), store=Path(folder) / "store", progress=False).made for _ in range(2)
            ]
            reused += made[0]["items"] - made[0]["items_encoded"]
            repeated += made[1]["items_encoded"]
    return Outcome(times, reused + repeated, f"{reused} vectors of other weights used, {repeated} of the same computed again")


# ---- E6: several processes


def several(times: int, seed: int) -> Outcome:
    """E6: 83 queries asked by one process and by two; every column of the result, its order included."""
    sys.path.append(str(TESTS))
    import processes
    import tiny

    from hardwon.models import Reranker

    failed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, ranker = str(tiny.build_text(folder / "model")), folder / "reranker"
        Reranker.start_from(Embedder.load(model, device="cpu"), layers=1, seed=seed).save(ranker)
        for n in range(times):
            alone = processes.evaluating(model, str(ranker), str(folder / f"alone-{n}"))
            work = (processes.evaluating, model, str(ranker), str(folder / f"two-{n}"))
            for (found,) in processes.together(2, folder / f"out-{n}", work):
                failed += any(found[store]["results"] != alone[store]["results"] for store in ("none", "shared"))
    return Outcome(2 * times, failed, "83 rows in order, to the last bit" if not failed else "rows differ")


# ---- E8: differences that are none


def null(times: int, seed: int) -> Outcome:
    """E8: two models that are equally good, on other seeds; how often a difference is claimed."""
    draw, low, claimed = np.random.default_rng(seed), 0, 0
    for _ in range(times):
        reports = []
        rates, sizes = draw.uniform(0.2, 0.8, 3), draw.integers(60, 250, 3)
        hard = [draw.beta(2 * rate, 2 * (1 - rate), size) for rate, size in zip(rates, sizes, strict=True)]
        for _ in range(2):
            hits = [tuple((draw.random(len(chance)) < chance).astype(float).tolist()) for chance in hard]
            results = tuple(
                TaskResult(f"t{n}", "retrieval", "ind", row, tuple(2 - hit for hit in row), (0,) * len(row), 0.1, 10)
                for n, row in enumerate(hits)
            )
            reports.append(Report("m", "b", "r", ("t0", "t1", "t2"), "", results))
        overall = next(row for row in reports[0].diff(reports[1]).means if row.name == "all")
        low += overall.p <= 0.05
        claimed += overall.verdict != "not distinguishable"
    rate = low / times
    failed = int(not 0.03 <= rate <= 0.07)
    return Outcome(times, failed, f"p <= 0.05 in {100 * rate:.1f} %, a difference claimed in {100 * claimed / times:.1f} %")


TRIALS: tuple[Trial, ...] = (
    Trial("E2", "models whose scores tie", "hit, rank and worst rank of all orders; more than 1 % warns", 300, ties),
    Trial(
        "E4",
        "training items that the benchmark holds, changed",
        "found: 99 % exact, 95 % re-encoded or resized; false alarms at most 0.1 %; cropped and reworded as found",
        4000,
        leaks,
    ),
    Trial("E5", "one weight changed, the benchmark asked again", "no vector of other weights, none computed twice", 200, stale),
    Trial("E6", "one and two processes, 83 rows", "identical predictions, order included", 3, several),
    Trial("E8", "two equally good models compared", "p <= 0.05 in 5 ± 2 %", 400, null),
)
