"""`hardwon evaluate MODEL BENCHMARK`: one model on one benchmark, without a recipe."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from hardwon.artifacts import MANIFEST, fingerprint, write_json
from hardwon.data import read
from hardwon.distributed import World
from hardwon.errors import ArtifactError, OnError, RecipeError
from hardwon.evaluation import (
    Benchmark,
    Report,
    cost_of_sample,
    evaluate,
    evaluate_again,
    leakage,
    learn_fusion,
    load_benchmark,
    sampled,
)
from hardwon.evaluation import benchmark_of as held_out_pairs
from hardwon.evaluation.leaderboard import PARTS, submission
from hardwon.evaluation.load import READERS, SMALL
from hardwon.evaluation.task import digests_of
from hardwon.models import CachedEncoder, Embedder, load_reranker
from hardwon.models.precision import Precision
from hardwon.progress import console
from hardwon.search import Budget, Fused
from hardwon.spread.engines import Workers
from hardwon.spread.models import SpreadEncoder

BOARDS = frozenset(benchmark for benchmark, _ in PARTS.values())  # what the public leaderboard asks for
SOURCE = "source"  # in `Report.made`: where the benchmark lies, so that its queries can be shown later


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated, and how.

    Attributes:
        model: folder of an embedder, a stage's folder that holds one, or a name on the hub.
        benchmark: what `load_benchmark` takes.
        root: folder of the benchmark's data, if `load_benchmark` needs one.
        rerank: folder or name of a reranker; none if empty.
        depth: candidates per query that the reranker reads.
        weight: of the reranker's log-odds beside the cosine, where no `held_out` says it.
        held_out: benchmark, or file of pairs, from which weights and gate of the reranker are learned: neither trained on nor
            asked here; none if empty.
        precision: of the reranker.
        tasks: data sets to ask; all if empty.
        budget: queries to ask in all; all of them if 0.
        seed: of the budget's draw.
        device: "cpu", "cuda" ...; the best there is if None.
        label: what the model is called in tables; its folder's name if empty.
        on_error: whether the other data sets are asked where one cannot be.
        leaks: training data that is looked through for what the benchmark asks; none if empty.
        pairs: that the reranker may read, per query in the mean of a data set; no limit if None. See `Budget`.
        milliseconds: that it may take, likewise.
        workers: who embeds; this process alone if None. The report is the same.
    """

    model: str
    benchmark: str
    root: Path | None = None
    rerank: str = ""
    depth: int = 10
    weight: float = 0.05
    held_out: str = ""
    precision: Precision = "fp32"
    tasks: tuple[str, ...] = ()
    budget: int = 0
    seed: int = 0
    device: str | None = None
    label: str = ""
    on_error: OnError = "raise"
    leaks: str = ""
    pairs: float | None = None
    milliseconds: float | None = None
    workers: Workers | None = None

    @property
    def name(self) -> str:
        """What the model is called."""
        path = Path(self.model)
        return self.label or (path.parent.name if path.name == "model" and path.parent.name else path.name)

    @property
    def home(self) -> Path:
        """The report if no other place is named. What is not as usual adds a hash: no other run's report is replaced."""
        usual = {f.name: f.default for f in fields(self)} | {"model": self.name, "benchmark": Path(self.benchmark).stem}
        matters = [name for name in usual if name not in ("label", "workers")]
        odd = {name: getattr(self, name) for name in matters if getattr(self, name) != usual[name]}
        short = (fingerprint(odd)[:8],) if odd else ()
        parts = (self.name, *(("reranked",) if self.rerank else ()), Path(self.benchmark).stem, *short)
        return Path("runs/evaluations") / ("-".join(parts) + ".json")

    def run(self, out: Path | None, cache: Path | None) -> Report:
        """Ask, and write the report; with a reranker also that of the embedder alone, and what `Fused.from_json` reads.

        Args:
            out: the JSON file; `home` if None.
            cache: folder of vectors; "features" beside the report if None.
        """
        out = out or self.home
        whole = load_benchmark(self.benchmark, self.root, on_error=self.on_error)
        benchmark = sampled(whole, self.budget, seed=self.seed, tasks=self.tasks or None) if self.budget else whole
        found = leakage(list(read(Path(self.leaks), on_error="skip")), benchmark) if self.leaks else None
        store = cache or out.parent / "features"
        loaded = Embedder.load(model_folder(self.model), device=self.device, vision_cache=store)
        embedder = CachedEncoder(self._spread(loaded, store), store)
        more: dict[str, Any] = {
            SOURCE: source(
                self.benchmark, self.root, budget=self.budget, seed=self.seed, tasks=self.tasks, on_error=self.on_error
            )
        }
        rerank = replace(self._reranker(embedder, store), budget=self._budget()) if self.rerank else None
        label = f"{self.name} without reranker" if rerank else self.name
        report = evaluate(embedder, benchmark, tasks=self.tasks or None, label=label, on_error=self.on_error)
        if rerank:
            # Written before the long work begins: whatever becomes of it, this is done.
            _write(out.with_suffix(".alone.json"), replace(report, made=report.made | more).to_json())
            _write(out.with_suffix(".fusion.json"), rerank.to_json())
            both = evaluate_again(embedder, benchmark, rerank, report, label=self.name, on_error=self.on_error)
            console().print(both)
            report = both.reranked
        if self.budget:
            more["sample"] = cost_of_sample(report, whole)
        if found is not None:
            more["leaks"] = {"training data": self.leaks, **found.counts()}
        report = replace(report, made=report.made | more)
        if World.current().first:
            _write(out, report.to_json())
            if self.benchmark in READERS and report.benchmark in BOARDS:  # own data may have such a name, too
                write_json(out.with_suffix(".leaderboard.json"), submission([report], {"model_name": self.name}))
            if found is not None:
                write_json(out.with_suffix(".leaks.json"), found.to_json())
                console().print(f"{found}\n   all of them are listed in {out.with_suffix('.leaks.json')}", markup=False)
        return report

    def _spread(self, embedder: Embedder, store: Path) -> Embedder | SpreadEncoder:
        if self.workers is None:
            return embedder
        return SpreadEncoder(embedder, model_folder(self.model), workers=self.workers, below=store / "work")

    def _budget(self) -> Budget | None:
        limits = (self.pairs, self.milliseconds)
        return None if limits == (None, None) else Budget(*limits)

    def _reranker(self, embedder: CachedEncoder, store: Path) -> Fused:
        folder = model_folder(self.rerank)
        reranker = load_reranker(folder, device=self.device, vision_cache=store, precision=self.precision)
        if not self.held_out:
            return Fused(reranker, self.depth, self.weight)
        path = Path(self.held_out)
        pairs = path.is_file()
        asked = held_out_pairs(list(read(path)), path.stem) if pairs else load_benchmark(self.held_out, self.root)
        learned = learn_fusion(embedder, reranker, asked, depth=self.depth)
        console().print(learned)
        return learned.fused


def _write(file: Path, row: dict[str, Any]) -> None:
    if World.current().first:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, row)


def source(
    benchmark: str,
    root: Path | None = None,
    *,
    budget: int = 0,
    seed: int = 0,
    tasks: Sequence[str] = (),
    on_error: OnError = "raise",
) -> dict[str, Any]:
    """Where a benchmark lies and what was asked of it, as `benchmark_of` takes it."""
    path = Path(benchmark)
    # A folder that happens to be called like a benchmark, or that is looked for below the root, is not the one beside us.
    own = root is None and benchmark not in (SMALL, *READERS) and path.exists()
    where = {"benchmark": str(path.resolve()) if own else benchmark, "root": None if root is None else str(root.resolve())}
    return where | {"budget": budget, "seed": seed, "tasks": list(tasks), "on_error": on_error}


def benchmark_of(reports: Sequence[Report], benchmark: str = "", root: Path | None = None) -> Benchmark:
    """The benchmark that reports are about, exactly as it was asked.

    Args:
        reports: of one revision, or at least with the same questions in the tasks that all of them answered.
        benchmark: what `load_benchmark` takes; what a report says if empty.
        root: as of `load_benchmark`.

    Raises:
        ArtifactError: no report says where it lies, or what lies there is another revision.
    """
    told = [report.made[SOURCE] for report in reports if SOURCE in report.made]
    given = dict(told[0]) if told else {"root": None, "budget": 0, "seed": 0}
    if not benchmark and not told:
        raise ArtifactError("the reports do not say where the benchmark lies: name it with --benchmark")
    if benchmark:
        given |= {"benchmark": benchmark, "root": None if root is None else str(root)}
    below = None if given["root"] is None else Path(given["root"])
    found = load_benchmark(given["benchmark"], below, on_error=given.get("on_error", "raise"))  # older reports do not say
    if given["budget"]:
        found = sampled(found, given["budget"], seed=given["seed"], tasks=given.get("tasks") or None)
    answered = set.intersection(*({result.name for result in report.results} for report in reports))
    there = digests_of(found)
    same = all(report.digests.get(name, "") == there.get(name) for report in reports for name in answered)
    if found.revision != reports[0].revision and not same:
        raise ArtifactError(
            f"{given['benchmark']} is {found.name} {found.revision[:12]}, but the reports are about "
            f"{reports[0].benchmark} {reports[0].revision[:12]}: name the benchmark that was asked with --benchmark"
        )
    return found


def model_folder(name: str) -> Path | str:
    """A model's folder or name; of a stage's folder the model in it."""
    path = Path(name)
    if (path / MANIFEST).is_file() and (path / "model").is_dir():
        return path / "model"
    return path if path.exists() else name


def read_report(path: Path) -> Report:
    """A report from its file, or from the folder of a stage that evaluated.

    Raises:
        ArtifactError: nothing there, or no report.
    """
    file = path / "report.json" if path.is_dir() else path
    try:
        row = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(f"{file} cannot be read ({error.strerror or error}): `hardwon evaluate` writes reports") from error
    except ValueError as error:
        raise ArtifactError(f"{file} is no report: not JSON ({error})") from error
    try:
        return Report.from_json(row)
    except (ArtifactError, RecipeError) as error:
        raise ArtifactError(f"{file} is no report: {error}") from error
