"""Group E: evaluation that cannot be believed."""

import random
from collections.abc import Iterator

import torch

from benchmarks.reliability.trial import Outcome, Trial
from hardwon import metrics

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
    at = metrics.at_cutoffs(scores, grades, valid, CUTOFFS)
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


TRIALS: tuple[Trial, ...] = (
    Trial("E7", "random rankings, eight metrics at 1, 5, 10 against ir-measures", "equal to 1e-12", 10_000, metrics_agree),
)
