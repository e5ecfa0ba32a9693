"""Time and memory of in-batch contrastive losses, forward and backward, on the same unit vectors.

    python -m benchmarks.losses --batch 4096 8192 --out benchmarks/losses_<hardware>_<date>.md
    python -m benchmarks.losses --memory-only 32768

**Time.** The floor is the matrix products that nothing can do without: 3 of B x B x d one way (scores, gradient of the queries,
gradient of the candidates), 4 in the exact symmetric form, which needs the scores twice; `torch.mm` into memory that is there
already. Every contender starts at the vectors and ends with a value and both gradients. Everything is run once per round, in
an order that rotates; the medians are over rounds, after one round that is not counted. In that one, contenders of the same
objective must agree in value (relative 1e-4) and gradient (relative 1e-3), so that the wrong thing cannot be timed.

**Memory.** Each contender once more, in a process of its own: the largest resident memory while it runs, less the resident
memory just before. By then the vectors are there, the contender has run on 128 pairs (libraries loaded), and 1,024 rows have
gone through the three products (MKL keeps buffers for each thread). The two gradients that come out are part of it. What is
freed goes back to the system at once (MALLOC_MMAP_THRESHOLD_), so that needs are measured and not the habits of malloc.

**Contenders.** sentence-transformers' losses are called on vectors, behind their models: the cached one gets them in pieces,
as it makes them itself. It cuts the scores by the same `mini_batch_size` as the encoding; 32 is its default, 512 fairer to the
loss. All get dot products as similarity: the vectors have length 1 already. "torch" is what one writes first.
"""

import argparse
import contextlib
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import hardwon.models.torchvision_guard  # noqa: F401  (before sentence-transformers is imported)
from hardwon.losses import AmplifiedInfoNCE, InfoNCE, KnownPairs, TopKInfoNCE, value_and_gradient

ROOT = Path(__file__).parents[1]
TEMPERATURE, HARDNESS, K, BETA = 0.02, 9.0, 8, 0.1
LARGEST, MIB = 16_384, 2**20  # LARGEST: pairs at which whole matrices are still made


class Outcome(NamedTuple):
    """What a contender must deliver."""

    value: float
    queries: Tensor
    candidates: Tensor


Run = Callable[[Tensor, Tensor], Outcome]


@dataclass(frozen=True)
class Contender:
    """A row of the table.

    Attributes:
        name: of the row.
        objective: contenders of one objective must agree.
        run: from vectors to an outcome.
        products: matrix products of its floor.
        whole: it makes B x B matrices.
        own_gradient: its gradient is meant to differ from that of others with the same value.
    """

    name: str
    objective: str
    run: Run
    products: int = 3
    whole: bool = False
    own_gradient: bool = False


@dataclass(frozen=True)
class Row:
    """What was measured of one contender at one size.

    Attributes:
        contender: name.
        batch: pairs.
        seconds: of each round; empty when only memory was asked for.
        floor: median seconds of its floor.
        mib: memory above the inputs; None where it was not measured.
    """

    contender: str
    batch: int
    seconds: tuple[float, ...] = ()
    floor: float | None = None
    mib: float | None = None

    @property
    def cells(self) -> tuple[str, ...]:
        """The columns of the table."""
        middle = statistics.median(self.seconds) if self.seconds else None
        share = None if self.mib is None else self.mib * MIB / (4 * self.batch**2)
        ratio = middle / self.floor if middle and self.floor else None
        cells = ((middle, ".3f"), (ratio, ".2f"), (self.mib, ",.0f"), (share, ".2f"))
        return self.contender, *("" if number is None else format(number, form) for number, form in cells)


COLUMNS = ("contender", "median s", "x floor", "MiB", "x (B x B)")
LEGEND = (
    "Medians of interleaved rounds; symmetric rows against 4 products, others against 3. MiB: memory above the inputs, also as "
    "a share of one B x B matrix. st: sentence-transformers; MNRL: MultipleNegativesRankingLoss; 32, 512: mini_batch_size."
)


def hardwon_loss(loss: Any) -> Run:
    def run(queries: Tensor, candidates: Tensor) -> Outcome:
        targets = KnownPairs.diagonal(len(queries), len(candidates))
        value, *gradients = value_and_gradient(loss, queries, candidates, targets)
        return Outcome(float(value), *gradients)

    return run


def torch_loss(of_scores: Callable[[Tensor, Tensor], Tensor]) -> Run:
    def run(queries: Tensor, candidates: Tensor) -> Outcome:
        queries, candidates = leaf(queries), leaf(candidates)
        return backward(of_scores(queries @ candidates.T, torch.arange(len(queries))), queries, candidates)

    return run


def leaf(vectors: Tensor) -> Tensor:
    return vectors.detach().requires_grad_()


def backward(value: Tensor, *vectors: Any) -> Outcome:
    value.backward()
    return Outcome(float(value.detach()), *(side.grad for side in vectors))


def weighted(scores: Tensor) -> Tensor:
    return scores / TEMPERATURE + (HARDNESS * scores.detach()).fill_diagonal_(0)


def plain(scores: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(scores / TEMPERATURE, labels)


def one_way(scores: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(weighted(scores), labels)


def both_ways(scores: Tensor, labels: Tensor) -> Tensor:
    logits = weighted(scores)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def hardest(scores: Tensor, labels: Tensor) -> Tensor:
    gold = scores.diagonal()[:, None]
    left = scores.masked_fill((scores > gold + BETA) | torch.eye(len(scores), dtype=torch.bool), -torch.inf)
    return F.cross_entropy(torch.cat([gold, left.topk(K, dim=1).values], dim=1) / TEMPERATURE, torch.zeros_like(labels))


def theirs(**settings: Any) -> Run:
    def run(queries: Tensor, candidates: Tensor) -> Outcome:
        from sentence_transformers.sentence_transformer import losses
        from sentence_transformers.util import dot_score

        loss = losses.MultipleNegativesRankingLoss(NO_MODEL, 1 / TEMPERATURE, dot_score, **settings)
        queries, candidates = leaf(queries), leaf(candidates)
        return backward(loss.compute_loss_from_embeddings([queries, candidates], torch.empty(0)), queries, candidates)

    return run


def theirs_cached(rows: int, **settings: Any) -> Run:
    def run(queries: Tensor, candidates: Tensor) -> Outcome:
        from sentence_transformers.sentence_transformer import losses
        from sentence_transformers.util import dot_score

        loss = losses.CachedMultipleNegativesRankingLoss(NO_MODEL, 1 / TEMPERATURE, dot_score, rows, **settings)
        pieces: Any = [[leaf(piece) for piece in side.split(rows)] for side in (queries, candidates)]
        value = loss.calculate_loss(pieces, with_backward=True)
        return Outcome(float(value), *(torch.cat([piece.grad for piece in side]) for side in pieces))

    return run


NO_MODEL: Any = nn.Sequential(nn.Identity())
PLAIN, HARD, BOTH, TOP = "InfoNCE", f"hardness {HARDNESS:g}", f"symmetric, hardness {HARDNESS:g}", f"top {K}"
MODE: dict[str, Any] = {"hardness_mode": "in_batch_negatives", "hardness_strength": HARDNESS}

CONTENDERS = (
    Contender("hardwon InfoNCE", PLAIN, hardwon_loss(InfoNCE(TEMPERATURE))),
    Contender(f"hardwon InfoNCE, {HARD}", HARD, hardwon_loss(InfoNCE(TEMPERATURE, HARDNESS))),
    Contender(f"hardwon {BOTH}", BOTH, hardwon_loss(InfoNCE(TEMPERATURE, HARDNESS, symmetric=True)), products=4),
    Contender("hardwon AmplifiedInfoNCE", PLAIN, hardwon_loss(AmplifiedInfoNCE(TEMPERATURE)), own_gradient=True),
    Contender("hardwon TopKInfoNCE", TOP, hardwon_loss(TopKInfoNCE(TEMPERATURE, K, BETA))),
    Contender("torch InfoNCE", PLAIN, torch_loss(plain), whole=True),
    Contender(f"torch InfoNCE, {HARD}", HARD, torch_loss(one_way), whole=True),
    Contender(f"torch {BOTH}", BOTH, torch_loss(both_ways), products=4, whole=True),
    Contender("torch TopKInfoNCE", TOP, torch_loss(hardest), whole=True),
    Contender("st MNRL", PLAIN, theirs(), whole=True),
    Contender(f"st MNRL, {HARD}", HARD, theirs(**MODE), whole=True),
    Contender("st CachedMNRL 32", PLAIN, theirs_cached(32)),
    Contender(f"st CachedMNRL 32, {HARD}", HARD, theirs_cached(32, **MODE)),
    Contender("st CachedMNRL 512", PLAIN, theirs_cached(512)),
    Contender(f"st CachedMNRL 512, {HARD}", HARD, theirs_cached(512, **MODE)),
)


def make_vectors(batch: int, width: int) -> tuple[Tensor, Tensor]:
    """Pairs as a half-trained model would place them: 64 directions matter, positives have a cosine of about 0.6."""
    rng = torch.Generator().manual_seed(0)
    spread = torch.randn(64, width, generator=rng)
    meaning = torch.randn(batch, 64, generator=rng)
    other = torch.randn(batch, 64, generator=rng)
    return F.normalize(meaning @ spread, dim=1), F.normalize((0.6 * meaning + 0.8 * other) @ spread, dim=1)


def check_agreement(contender: Contender, outcome: Outcome, known: dict[str, Outcome]) -> None:
    """Compare an outcome with the first one of the same objective.

    Raises:
        SystemExit: they differ.
    """
    first = known.setdefault(contender.objective, outcome)
    gaps = {"value": (abs(outcome.value - first.value) / abs(first.value), 1e-4)}
    if not contender.own_gradient:
        for side in ("queries", "candidates"):
            one, other = getattr(outcome, side), getattr(first, side)
            gaps[side] = (float((one - other).norm() / other.norm()), 1e-3)
    for what, (gap, limit) in gaps.items():
        if not gap <= limit:
            sys.exit(f"{contender.name} computes something else: {what} differs by {gap:.1e} ({contender.objective})")


def time_all(batch: int, width: int, rounds: int, contenders: Sequence[Contender]) -> list[Row]:
    """Medians of interleaved rounds, the floors among them; agreement is checked in the round that is not counted."""
    queries, candidates = make_vectors(batch, width)
    known: dict[str, Outcome] = {}
    for contender in contenders:
        check_agreement(contender, contender.run(queries, candidates), known)
    runs: dict[str, Callable[[], Any]] = {c.name: lambda c=c: c.run(queries, candidates) for c in contenders}
    scores, of_queries, of_candidates = torch.empty(batch, batch), torch.empty_like(queries), torch.empty_like(candidates)

    def products(times: int) -> None:
        for _ in range(times - 2):
            torch.mm(queries, candidates.T, out=scores)
        torch.mm(scores, candidates, out=of_queries)
        torch.mm(scores.T, queries, out=of_candidates)

    bare = {n: f"floor: {n} x torch.mm" for n in sorted({3, *(c.products for c in contenders)})}
    runs |= {name: lambda n=n: products(n) for n, name in bare.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    products(3)
    for n in range(rounds):
        shift = n * max(len(runs) // rounds, 1) % len(runs)
        for name in [*runs][shift:] + [*runs][:shift]:
            gc.collect()
            start = time.perf_counter()
            outcome = runs[name]()
            seconds[name].append(time.perf_counter() - start)
            del outcome  # before the next one starts, outside of its time
    floors = {n: statistics.median(seconds[name]) for n, name in bare.items()}
    rows = [Row(name, batch, tuple(seconds[name])) for name in bare.values()]
    return rows + [Row(c.name, batch, tuple(seconds[c.name]), floors[c.products]) for c in contenders]


def with_memory(row: Row, width: int) -> Row:
    """The row with its memory, measured in a process of its own; as it is for floors and where the system does not tell."""
    if row.contender not in {c.name for c in CONTENDERS} or not Path("/proc/self/clear_refs").exists():
        return row
    options = f"-m benchmarks.losses --batch {row.batch} --width {width} --memory-of".split()
    run, environment = [sys.executable, *options, row.contender], {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(MIB)}
    said = subprocess.run(run, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    return replace(row, mib=float(said.split()[-1]))


def measure_here(contender: Contender, batch: int, width: int) -> float:
    """MiB above the inputs, in this process, which has done nothing else."""
    queries, candidates = make_vectors(batch, width)
    contender.run(queries[:128], candidates[:128])
    scores = queries[:1024] @ candidates.T
    warm = [scores @ candidates, scores.T @ queries[:1024]]
    del scores, warm
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    contender.run(queries, candidates)
    return (resident("VmHWM") - before) / 1024


def resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def title(batch: int, width: int) -> str:
    return f"B = {batch:,}, d = {width:,}, float32; one B x B matrix is {4 * batch**2 / MIB:,.0f} MiB"


def remarks(rows: Sequence[Row]) -> str:
    """What a reader of the table must know, and what was left out at this size."""
    batch = rows[0].batch
    left = ", ".join(c.name for c in CONTENDERS if c.whole)
    gib = 3 * 4 * batch**2 / 2**30
    return LEGEND + (f" Not run: {left} (three B x B matrices alone are {gib:.0f} GiB)." if batch > LARGEST else "")


def as_table(rows: Sequence[Row], width: int) -> Table:
    table = Table(title=title(rows[0].batch, width), caption=remarks(rows), caption_justify="left")
    for n, column in enumerate(COLUMNS):
        table.add_column(column, justify="right" if n else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row.cells)
    return table


def as_markdown(groups: Sequence[Sequence[Row]], width: int, about: dict[str, str]) -> str:
    """The whole result as a page."""
    lines = ["# Time and memory of contrastive losses", "", *(f"- {key}: {value}" for key, value in about.items())]
    for rows in groups:
        lines += ["", f"## {title(rows[0].batch, width)}", "", f"| {' | '.join(COLUMNS)} |", "|---|---:|---:|---:|---:|"]
        lines += [f"| {' | '.join(row.cells)} |" for row in rows]
        lines += ["", remarks(rows)]
    return "\n".join([*lines, ""])


def describe(arguments: Sequence[str], program: str = "losses", *measured: str) -> dict[str, str]:
    """Hardware, versions, date and the command; `measured`: folders whose files the numbers depend on."""
    code = commit(program, measured or ("src/hardwon/losses",))
    return {
        "command": f"`python -m benchmarks.{program} {' '.join(arguments)}`",
        "date": date.today().isoformat(),
        "hardware": f"{processor()}, {torch.get_num_threads()} threads",
        "versions": f"hardwon {code}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"sentence-transformers {version('sentence-transformers')}",
    }


def processor() -> str:
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return platform.processor()


def commit(program: str, measured: Sequence[str]) -> str:
    """Version, commit, and whether what was measured differs from it."""

    def git(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    changed = ", files changed since" if git("status", "--porcelain", *measured, f"benchmarks/{program}.py") else ""
    return f"{version('hardwon')} ({git('rev-parse', '--short', 'HEAD') or 'no commit'}{changed})"


def main(arguments: Sequence[str]) -> None:
    """Measure, show, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.losses", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[], help="pairs; time and memory (default 4096 8192)")
    parser.add_argument("--memory-only", type=int, nargs="+", default=[], help="pairs; memory alone")
    parser.add_argument("--width", type=int, default=1024, help="of a vector")
    parser.add_argument("--rounds", type=int, default=5, help="that are counted")
    parser.add_argument("--only", default="", help="contenders whose name contains this")
    parser.add_argument("--out", type=Path, nargs="+", default=[], help="FILE.md: the tables; FILE.jsonl: a line for every row")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)  # processes of their own are started with this
    asked = parser.parse_args(arguments)
    if asked.memory_of:
        contender = next(c for c in CONTENDERS if c.name == asked.memory_of)
        print(measure_here(contender, asked.batch[0], asked.width))
        return
    if bad := [str(path) for path in asked.out if path.suffix not in (".md", ".jsonl")]:
        parser.error(f"--out takes .md and .jsonl files, not {', '.join(bad)}")
    batches = asked.batch or ([] if asked.memory_only else [4096, 8192])
    if large := [batch for batch in batches if batch > LARGEST]:
        parser.error(f"the floor needs whole matrices; above {LARGEST} pairs use --memory-only {large[0]}")
    contenders = [c for c in CONTENDERS if asked.only.lower() in c.name.lower()]
    if not contenders:
        parser.error(f"no contender has {asked.only!r} in its name; there are {'; '.join(c.name for c in CONTENDERS)}")
    console, about, groups = Console(highlight=False), describe(arguments), []
    for batch in [*batches, *asked.memory_only]:
        rows = [Row(c.name, batch) for c in contenders if not (c.whole and batch > LARGEST)]
        if batch in batches:
            rows = time_all(batch, asked.width, asked.rounds, contenders)
        groups.append([with_memory(row, asked.width) for row in rows])
        console.print(as_table(groups[-1], asked.width))
    for path in asked.out:
        lines = [json.dumps({**asdict(row), "width": asked.width, **about}) + "\n" for rows in groups for row in rows]
        path.write_text(as_markdown(groups, asked.width, about) if path.suffix == ".md" else "".join(lines))


if __name__ == "__main__":
    main(sys.argv[1:])
