"""Try all failure modes and write the page of the docs.

    python -m benchmarks.reliability                       # all, in full: hours on two cores
    python -m benchmarks.reliability --only A6 D2          # some of them
    python -m benchmarks.reliability --share 0.01          # a hundredth of the tries of each, to see that they run

What a trial found is kept in benchmarks/reliability/results.json as soon as it ends, so interrupted work goes on with `--only`;
docs/reliability.md is made from it. With `--share` below 1 nothing is kept.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path

from rich.console import Console

from benchmarks.losses import commit, processor
from benchmarks.reliability import correctness, evaluation, index, inputs, mining, security, serving, training, trust
from benchmarks.reliability.trial import Trial
from hardwon.errors import unknown

GROUPS = (inputs, correctness, training, mining, evaluation, trust, index, serving, security)
TRIALS: tuple[Trial, ...] = tuple(trial for group in GROUPS for trial in group.TRIALS)
RESULTS = Path(__file__).parent / "results.json"
PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
LEFT_OUT = (
    "Left out: G13 (a lock with hashes, pip-audit, a list of all parts: `constraints.txt` pins versions and no more) and, of",
    "G8, the killed worker that is replaced: the models are in the server's own process, which a supervisor has to start",
    "again.",
)
COLUMNS = ("", "what is done", "goal", "tried", "failed", "found", "seconds", "code")


def attempt(trial: Trial, share: float, seed: int) -> dict[str, object]:
    """One trial, as it is kept."""
    start = time.perf_counter()
    outcome = trial.run(max(1, round(trial.full * share)), seed)
    code = commit("reliability", ("src/hardwon",))
    made = {"date": date.today().isoformat(), "code": code, "hardware": processor()}
    return {**asdict(outcome), "seed": seed, "seconds": round(time.perf_counter() - start, 1), **made}


def cells(trial: Trial, kept: dict[str, object]) -> tuple[str, ...]:
    """A row of the table."""
    numbers = (f"{kept['tried']:,}", f"{kept['failed']:,}", str(kept["found"]), f"{kept['seconds']:g}", str(kept["code"]))
    return (trial.name, trial.what, trial.goal, *numbers)


def page(results: dict[str, dict[str, object]]) -> str:
    """The page of the docs."""
    tried = [trial for trial in TRIALS if trial.name in results]
    left = [trial.name for trial in TRIALS if trial.name not in results]
    many, failed = (sum(int(str(results[trial.name][what])) for trial in tried) for what in ("tried", "failed"))
    total = f"In all {many:,} tries in {len(tried)} of {len(TRIALS)} trials, of which {failed:,} failed."
    missing = f"Not yet tried in full: {', '.join(left)}." if left else ""
    hardware = sorted({str(kept["hardware"]) for kept in results.values()})
    text = (
        "# Reliability",
        "",
        "Faults injected and bad inputs given, and what came of them. Every row is made by",
        "`python -m benchmarks.reliability --only NAME` (all of them without `--only`); this page is written by it.",
        f"Machine: {'; '.join(hardware)}. {total} {missing}".rstrip(),
        *LEFT_OUT,
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|" + "---|" * len(COLUMNS),
        *(f"| {' | '.join(cells(trial, results[trial.name]))} |" for trial in tried),
        "",
    )
    return "\n".join(text)


def main(arguments: Sequence[str]) -> int:
    """Try, show, keep; 1 if a goal is not reached."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[trial.name for trial in TRIALS])
    parser.add_argument("--share", type=float, default=1.0, help="of the tries of each trial")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(arguments)
    known = {trial.name: trial for trial in TRIALS}
    for name in asked.only:
        if name not in known:
            parser.error(unknown("trial", name, known))
    console, short = Console(highlight=False), False
    for name in asked.only:
        kept = attempt(known[name], asked.share, asked.seed)
        if asked.share >= 1:
            results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}  # now: others may be at work
            results[name] = kept
            RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
            PAGE.write_text(page(results))
        console.print(f"[bold]{name}[/] {kept['tried']:,} tried, {kept['failed']:,} failed; {kept['found']}")
        short |= bool(kept["failed"])
        if kept["failed"]:
            console.print(f"{name} does not reach its goal: {known[name].goal}", style="red")
    return int(short)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
