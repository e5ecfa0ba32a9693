"""Group E: evaluation that cannot be believed."""

import copy
import hashlib
import json
import os
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.reliability.trial import Outcome, Trial
from hardwon import metrics
from hardwon.errors import ArtifactError, ModelError
from hardwon.evaluation import Benchmark, Report, Task, evaluate, load_benchmark
from hardwon.evaluation.leaderboard import MEASURES, PARTS, problems, submission
from hardwon.items import Item

sys.path.append(str(Path(__file__).parents[2] / "tests"))  # for the tiny MMEB
import mmeb

CUTOFFS = (1, 5, 10)


def rankings(times: int, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Scores without ties, grades, and which candidates are offered, for one query each."""
    rng = random.Random(seed)
    for _ in range(times):
        width = rng.randint(1, 40)
        scores = torch.tensor([rng.sample(range(-500, 500), width)]).double() / 500
        valid = torch.tensor([[rng.random() < 0.9 for _ in range(width)]])
        valid[0, rng.randrange(width)] = True
        grades = torch.tensor([[rng.choice((0, 0, 0, 0, 1, 2, 3)) for _ in range(width)]]).double() * valid
        if not bool((grades > 0).any()):
            grades[0, rng.choice(valid[0].nonzero().flatten().tolist())] = rng.choice((1, 2, 3))
        yield scores, grades, valid


def theirs(scores: torch.Tensor, grades: torch.Tensor, valid: torch.Tensor) -> dict[str, float]:
    """The same query, measured by ir-measures."""
    import ir_measures
    from ir_measures import AP, RR, P, R, Success, nDCG

    names = {"precision": P, "recall": R, "hit": Success, "mrr": RR, "ndcg_linear": nDCG}
    asked = {f"{name}@{k}": measure @ k for name, measure in names.items() for k in CUTOFFS}
    if float(grades.count_nonzero()) <= min(CUTOFFS[1:]):  # theirs divides by all there are, ours by what could be found
        asked |= {f"map@{k}": AP @ k for k in CUTOFFS[1:]}
    gains = {grade: 2**grade - 1 for grade in (1, 2, 3)}
    graded = {f"ndcg_exponential@{k}": nDCG(gains=gains) @ k for k in CUTOFFS}
    offered = valid[0].nonzero().flatten().tolist()
    qrels = {"q": {f"d{n}": int(grades[0, n]) for n in offered}}
    run = {"q": {f"d{n}": float(scores[0, n]) for n in offered}}
    made: dict[str, float] = {}
    for group in (asked, graded):  # nDCG of both kinds in one call gives numbers that depend on the order of a set
        found = ir_measures.calc_aggregate(list(group.values()), qrels, run)
        made |= {name: found[measure] for name, measure in group.items()}
    return made


def ours(scores: torch.Tensor, grades: torch.Tensor, valid: torch.Tensor) -> dict[str, list[float]]:
    """What every function of ours says for each of their measures."""
    at = metrics.worst_ranks(scores, grades, valid).at(CUTOFFS)
    ranking = metrics.rank(scores, grades > 0, valid)
    made = {name: [float(value)] for name, value in at.items()}
    for k in CUTOFFS:
        made[f"hit@{k}"].append(float(ranking.hit(k)))
        made[f"recall@{k}"].append(float(metrics.recall(scores, grades > 0, valid, k)))
        made[f"ndcg_linear@{k}"].append(float(metrics.ndcg(scores, grades, valid, k)))
        made[f"ndcg_exponential@{k}"].append(float(metrics.ndcg(scores, grades, valid, k, gains="exponential")))
    return made


def metrics_agree(times: int, seed: int) -> Outcome:
    """E7."""
    worst = failed = 0.0
    for row in rankings(times, seed):
        mine = ours(*row)
        apart = max(abs(value - other) for name, other in theirs(*row).items() for value in mine[name])
        worst, failed = max(worst, apart), failed + (apart > 1e-12)
    return Outcome(times, int(failed), f"largest difference {worst:.1e}")


class Model:
    """Vectors that depend on the item and a name alone: random, all the same ("constant"), NaN, or of few values ("coarse")."""

    def __init__(self, fingerprint: str, dim: int = 8):
        self.fingerprint, self.dim = fingerprint, dim

    def encode(self, items: Sequence[Item], *, progress: str = "") -> np.ndarray:
        """A vector for each item."""
        if self.fingerprint == "nan":
            return np.full((len(items), self.dim), np.nan, dtype=np.float32)
        if self.fingerprint == "constant":
            return np.full((len(items), self.dim), self.dim**-0.5, dtype=np.float32)
        return np.stack([self._vector(item) for item in items]).astype(np.float32)

    def _vector(self, item: Item) -> np.ndarray:
        seed = int.from_bytes(hashlib.blake2b((self.fingerprint + item.key).encode(), digest_size=8).digest(), "big")
        rng = np.random.default_rng(seed)
        vector = rng.choice((-1.0, 1.0), size=3) if self.fingerprint.startswith("coarse") else rng.normal(size=self.dim)
        vector = np.pad(vector, (0, self.dim - len(vector)))
        return vector / np.linalg.norm(vector)


def tiny(root: Path, **sizes: int) -> Benchmark:
    return load_benchmark("mmeb", mmeb.write_images(root, **sizes))


def hit(report: Report, name: str) -> float:
    hits = report.result(name).hits
    return sum(hits) / len(hits)


def shuffled(task: Task, rng: random.Random) -> Task:
    """The same question with corpus and candidates in another order."""
    order = list(range(len(task.corpus)))
    rng.shuffle(order)
    new = {old: n for n, old in enumerate(order)}
    corpus = tuple(task.corpus[old] for old in order)
    gold = tuple(tuple(new[n] for n in row) for row in task.gold)
    candidates = tuple(tuple(rng.sample([new[n] for n in row], len(row))) for row in task.candidates or ())
    return replace(task, corpus=corpus, gold=gold, candidates=candidates or None)


def collapsed(times: int, seed: int, *, queries: int = 40, candidates: int = 20) -> Outcome:
    """E1."""
    with tempfile.TemporaryDirectory() as folder:
        made = tiny(Path(folder), queries=queries, candidates=candidates)
        names = [task.name for task in made.tasks]
        constant = evaluate(Model("constant"), made, progress=False)
        apart = {name: abs(hit(constant, name) - 1 / candidates) for name in names}
        failed = sum(value > 1e-9 for value in apart.values())
        for name in names:
            try:
                evaluate(Model("nan"), made, tasks=[name], progress=False)
                failed += 1
            except ModelError as error:
                failed += name not in str(error)
        rng = random.Random(seed)
        other = Benchmark(made.name, tuple(shuffled(task, rng) for task in made.tasks))
        for kind in ("coarse", "random"):
            first, second = (evaluate(Model(f"{kind}{seed}"), b, progress=False) for b in (made, other))
            failed += sum(first.result(name).hits != second.result(name).hits for name in names)
        sums = dict.fromkeys(names, 0.0)
        for n in range(times):
            report = evaluate(Model(f"random{seed}-{n}"), made, progress=False)
            sums = {name: value + hit(report, name) for name, value in sums.items()}
    # Fewer models, less certainty: four and a half standard errors, or 0.02.
    allowed = max(0.02, 4.5 * ((1 / candidates) * (1 - 1 / candidates) / (queries * times)) ** 0.5)
    worst = max(abs(value / times - 1 / candidates) for value in sums.values())
    failed += sum(abs(value / times - 1 / candidates) > allowed for value in sums.values())
    found = f"constant exactly 1/N, NaN refused by data set, order without effect, random within {worst:.4f} of 1/N"
    return Outcome(5 * len(names), failed, found)


def incomplete(times: int, seed: int) -> Outcome:
    """E3."""
    rng = random.Random(seed)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        report = evaluate(Model("random"), tiny(Path(folder)), progress=False)
    groups = list(report.means())
    for n in range(times):
        count = 1 if n < len(report.results) else rng.randint(1, len(report.results) - 1)
        gone = {report.results[n % len(report.results)].name, *rng.sample([r.name for r in report.results], count - 1)}
        part = replace(report, results=tuple(result for result in report.results if result.name not in gone))
        for group in groups:
            try:
                part.mean(group)
                failed += 1
            except ArtifactError as error:
                failed += f"{len(gone)} of 36" not in str(error)
        failed += "mean:" in str(part) or not part.mean("all", partial=True).mean >= 0
    return Outcome(times, failed, "no mean of any group, no row of means, the missing ones named")


def spoiled(made: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """A submission with one thing wrong."""
    made = copy.deepcopy(made)
    part = rng.choice([part for part in PARTS if any(isinstance(v, dict) for v in made["metrics"][part].values())])
    name = rng.choice([name for name, values in made["metrics"][part].items() if isinstance(values, dict)])
    values, measure = made["metrics"][part][name], rng.choice(MEASURES)
    what = rng.randrange(7)
    if what == 0:
        values.pop(rng.choice((measure, "num_pred", "num_data")))
    elif what == 1:
        values[measure] = rng.choice((float("nan"), float("inf"), -0.1, 1.1, 54.3))
    elif what == 2:
        values[measure] = rng.choice(("0.5", None, True, [0.5]))
    elif what == 3:
        made["metrics"][part][name] = rng.choice(("missing", None, 0.5, []))
    elif what == 4:
        made["metrics"][part] = {"ImageNet": values}
    elif what == 5:
        made["metrics"].pop(part)
    else:
        made["metadata"].pop("model_name")
    return made


def leaderboard(times: int, seed: int) -> Outcome:
    """E9; published files are tried as well if their folder is named in HARDWON_LEADERBOARD."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        report = evaluate(Model("random"), tiny(Path(folder)), progress=False)
    ours = json.loads(json.dumps(submission([report], {"model_name": "ours"})))
    failed = bool(problems(ours)) + sum(not problems(spoiled(ours, rng)) for _ in range(times))
    published = sorted(Path(os.environ["HARDWON_LEADERBOARD"]).rglob("*.json")) if "HARDWON_LEADERBOARD" in os.environ else []
    broken = [path.name for path in published if problems(json.loads(path.read_text()))]
    found = f"ours valid, all {times} spoiled ones found; published: {len(published) - len(broken)} of {len(published)} valid"
    return Outcome(times + 1 + len(published), failed + len(broken), found)


TRIALS: tuple[Trial, ...] = (
    Trial(
        "E1",
        "constant, NaN, coarse and random models on the 36 data sets, candidates in another order",
        "constant and random within 0.02 of 1/N, NaN refused, order without effect",
        60,
        collapsed,
    ),
    Trial("E3", "data sets left out of a report on 36", "every headline number refused, the missing named", 500, incomplete),
    Trial("E7", "random rankings, eight metrics at 1, 5, 10 against ir-measures", "equal to 1e-12", 10_000, metrics_agree),
    Trial(
        "E9",
        "leaderboard JSON of ours, and with one thing wrong",
        "ours and published ones valid, all wrong ones found",
        2000,
        leaderboard,
    ),
)
