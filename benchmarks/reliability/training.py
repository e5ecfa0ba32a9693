"""Group C: training that breaks, hangs, is killed, or goes on wrongly.

The tests try a sample of the same: what does the work lies in tests/faulting.py and is shared.
"""

import math
import random
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "tests"))

import faulting
import tiny

from benchmarks.reliability.mining import quiet
from benchmarks.reliability.pytests import by_tests
from benchmarks.reliability.trial import Outcome, Trial

KILLS = 5  # of one run


def hanging(times: int, _seed: int) -> Outcome:
    """C3."""
    names = list(faulting.SCENARIOS)
    with quiet() as folder:
        models = (
            str(tiny.build_text(folder / "text")),
            str(tiny.build_vlm(folder / "vlm")),
            tiny.draw_all(folder / "pictures"),
        )
        wrong = []
        for n in range(times):
            name = names[n % len(names)]
            wrong += [f"{name}: {told}" for told in faulting.played(name, folder / f"run-{n}", models)]
    found = f"{len(names)} scenarios by two processes, none hung; a step waited {faulting.LIMIT_S:g} s here, 600 by default"
    return Outcome(times, len(wrong), "; ".join(wrong) or found)


def killed(times: int, seed: int) -> Outcome:
    """C4."""
    rng, wrong, kills = random.Random(seed), [], 0
    with quiet() as folder:
        model = str(tiny.build_text(folder / "text"))
        truth = {size: faulting.calm(folder / f"calm-{size}", model, size) for size in (1, 2)}
        runs = math.ceil(times / KILLS)
        for n in range(runs):
            size = 2 if n % 3 == 2 else 1
            made = faulting.killed(folder / f"run-{n}", model, size, [_fault(rng, size) for _ in range(KILLS)], truth[size])
            kills += made.kills
            wrong += made.wrong
    found = f"{kills} of them struck, in {runs} runs, a third of them by two processes: same weights to the bit, same losses"
    return Outcome(runs * KILLS, len(wrong), "; ".join(wrong)[:500] or found)


def _fault(rng: random.Random, size: int) -> tuple[str, int, int] | float:
    if rng.random() < 0.4:
        return rng.uniform(0, 0.5)
    point = rng.choice(faulting.POINTS)
    return point, rng.randrange(2), rng.randrange(size) if point == "after the update" else 0


def ended(times: int, seed: int) -> Outcome:
    """C10."""
    rng, wrong = random.Random(seed), []
    with quiet() as folder:
        model = str(tiny.build_text(folder / "text"))
        truth = {size: faulting.calm(folder / f"calm-{size}", model, size) for size in (1, 2)}
        for n in range(times):
            size = 1 + n % 2
            wrong += faulting.terminated(folder / f"run-{n}", model, size, rng.uniform(0, 1.1), truth[size])
    found = "exit code 0 within 10 s and a checkpoint each time, by one process and by two; then the weights of a calm run"
    return Outcome(times, len(wrong), "; ".join(wrong)[:500] or found)


def resized(times: int, _seed: int) -> Outcome:
    """C6."""
    wrong, worst = [], 0.0
    with quiet() as folder:
        model = str(tiny.build_text(folder / "text"))
        faulting.learn(model, str(folder / "truth"), dropout=False)
        truth = faulting.losses(folder / "truth")
        for n in range(times):
            told, losses = faulting.resized(folder / f"run-{n}", model, (2, 1, 2), shard=n % 2 == 0)
            apart = max((abs(one[1] - other[1]) for one, other in zip(losses, truth, strict=True)), default=math.inf)
            worst = max(worst, apart)
            wrong += told + ([f"losses differ by {apart}"] if apart > 1e-5 else [])
    return Outcome(times, len(wrong), "; ".join(wrong)[:500] or f"weights divided (FSDP2) and whole: losses within {worst:.1e}")


LOST, SAVED = "tests/faults/test_divergence.py", "tests/faults/test_checkpoints.py"

TRIALS: tuple[Trial, ...] = (
    by_tests(
        "C1",
        "NaN, infinities and overflows in weights, outputs, gradients, losses and updates",
        "found within one step; no update, no checkpoint of it; keys and first bad place named",
        LOST,
        each=len(faulting.injections()) + 2,
        full=len(faulting.injections()) + 2,
    ),
    by_tests(
        "C2",
        "memory that runs out in a step, in one process or in all",
        "the step again in smaller chunks, the same gradient to 1e-5",
        "tests/training/test_step_memory.py",
        each=14,
        full=14,
    ),
    Trial(
        "C3",
        "two gloo processes: uneven work, long work of one, a bug, a bad item, a kill, a hang, a full disk",
        "0 hangs; an error names process, step and collective",
        len(faulting.SCENARIOS),
        hanging,
    ),
    Trial(
        "C4",
        "SIGKILL at any time, within a save, between two steps, within a line of the log",
        "weights of a calm run to the bit, nothing learned twice",
        50,
        killed,
    ),
    by_tests(
        "C5",
        "files of the newest checkpoint missing, cut, flipped; single bits",
        "the newest whole one is read, the damage said",
        f"{SAVED} newest or bit",
        each=16 + 2 * 25,
        full=16 + 2 * 25 * 8,
    ),
    Trial("C6", "a run by 2, then 1, then 2 processes, weights divided and whole", "losses within 1e-5", 2, resized),
    by_tests(
        "C7",
        "every loss by two and four processes, 0 to 4 negatives, any chunks",
        "loss and gradient of one process to 2e-6 (float32)",
        "tests/distributed/test_gradients.py of_two_processes or of_four",
        each=44,
        full=44,
    ),
    by_tests(
        "C8",
        "batches with planted copies of positives, as 1, 2 and 4 processes share them",
        "0 collisions, the masked ones counted",
        "tests/distributed/test_batches.py copies",
        each=200,
        full=10_000,
    ),
    by_tests(
        "C9",
        "disk full while saving",
        "a clear error, the checkpoint before whole, the same end",
        f"{SAVED} room",
        each=1,
        full=10,
    ),
    Trial("C10", "SIGTERM at any time", "a checkpoint and exit code 0 within 10 s, the same end", 20, ended),
    by_tests(
        "C11",
        "mistyped fields in --set",
        "an error with the nearest name, before torch is imported",
        "tests/faults/test_typos.py nearest",
        each=10,
        full=200,
    ),
)  # fmt: skip
