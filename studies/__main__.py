"""`python -m studies run | show | compare | gates | page`."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from hardwon.errors import HardwonError
from hardwon.progress import console

RESULTS = Path(__file__).parent / "results"  # what the page is made from


def main(arguments: list[str]) -> int:
    """Parse and do."""
    parser = argparse.ArgumentParser(prog="python -m studies", description="what each idea is worth, on one backbone")
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="train and measure what is missing; a run that was stopped goes on")
    run.add_argument("--backbone", default="", help="of --suite gpu: a folder or name that Embedder.load takes")
    run.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these rows, their controls and what they need")
    run.add_argument("--seeds", type=int, default=3)
    run.add_argument("--first", type=int, default=0, help="first seed")
    run.add_argument("--workers", type=int, default=2, help="processes of one thread each; 0 for this one alone")
    run.add_argument("--keep", action="store_true", help="write the results to studies/results as well, for the page")
    show = verbs.add_parser("show", help="the table of what is there")
    page = verbs.add_parser("page", help="write docs/studies.md and its plots from studies/results")
    for verb in (show, page):
        verb.add_argument("--results", type=Path, default=RESULTS)
    show.add_argument("--suite", default="small")
    compare = verbs.add_parser("compare", help="a run beside another one, else beside the results that the page shows")
    compare.add_argument("new", type=Path, help="folder of a run, as runs/studies/small")
    compare.add_argument("old", type=Path, nargs="?", default=RESULTS)
    gates = verbs.add_parser("gates", help="what a run's rerankers gain behind bolder gates; trains nothing")
    gates.add_argument("--seeds", type=int, default=6)
    for verb in (run, gates):
        verb.add_argument("--suite", default="small")
        verb.add_argument("--out", type=Path, default=Path("runs/studies"))
    page.add_argument("--docs", type=Path, default=Path("docs"))
    asked = parser.parse_args(arguments)
    try:
        if asked.verb == "run":
            return _run(asked)
        if asked.verb == "show":
            from studies.table import load, shown

            console().print(shown(load(asked.results, asked.suite), console().width))
        elif asked.verb == "compare":
            _compare(asked)
        elif asked.verb == "gates":
            from studies.gates import gates as gates_of
            from studies.suites import suite_of

            console().print(gates_of(suite_of(asked.suite), asked.out, range(asked.seeds)))
        else:
            from studies.page import write

            write(asked.results, asked.docs)
        return 0
    except HardwonError as error:
        console().print(f"[red]{error}[/]", markup=True)
        return 1


def _compare(asked: argparse.Namespace) -> None:
    from studies.again import again
    from studies.table import load

    new = load(asked.new, "results")
    kept = (asked.old / f"{new.suite.name}.json").is_file()
    old = load(asked.old, new.suite.name if kept else "results")
    table, said = again(old, new)
    console().print(table)
    console().print(said)


def _run(asked: argparse.Namespace) -> int:
    from studies.language import smollm
    from studies.run import study
    from studies.suites import SMOLLM, suite_of
    from studies.table import keep, load, shown

    suite = suite_of(asked.suite)
    if asked.backbone:
        suite = replace(suite, backbone=asked.backbone)
    elif suite.backbone == SMOLLM:
        suite = replace(suite, backbone=str(smollm(asked.out / SMOLLM, None, console().print)))
    if asked.only:
        suite = suite.only(asked.only)
    seeds = range(asked.first, asked.first + asked.seeds)
    rows = study(suite, asked.out, seeds, workers=asked.workers, say=console().print)
    keep(rows, asked.out / suite.name / "results.json")
    if asked.keep:
        keep(rows, RESULTS / f"{suite.name}.json")
    console().print(shown(load(asked.out / suite.name, "results"), console().width))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
