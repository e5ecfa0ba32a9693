"""What a person sees in the terminal when a recipe has run."""

import itertools
import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from hardwon.artifacts import Manifest
from hardwon.evaluation import Report, comparison_table
from hardwon.progress import program
from hardwon.stages.base import Stage, Workspace
from hardwon.stages.learn import Train
from hardwon.stages.report import WriteReport


def show(workspace: Workspace, stages: Sequence[Stage], made: Sequence[Manifest], seconds: float) -> None:
    """Print the results of all evaluations side by side, what differs, and where the time went."""
    out = Console()
    if not out.is_terminal:
        out = Console(width=130)  # a log has no width; 80 columns would cut every name
    reports = {}
    for stage in stages:
        file = workspace.root / stage.out / "report.json"
        if stage.kind == "evaluation" and file.is_file():
            report = Report.from_json(json.loads(file.read_text(encoding="utf-8")))
            reports[report.label] = report
    if reports:
        out.print(comparison_table(reports))
        listed = list(reports.values())
        for earlier, later in itertools.pairwise(listed):
            overall = next(d for d in later.diff(earlier).means if d.name == "all")
            value = overall.value
            out.print(
                f"[bold]{later.label}[/] - {earlier.label}: {100 * value.mean:+.1f} "
                f"[{100 * value.low:+.1f}, {100 * value.high:+.1f}] points, p = {overall.p:.3g}: {overall.verdict}"
            )
    spent = sum(m.made["seconds"] for m in made)
    training = sum(m.made["seconds"] for s, m in zip(stages, made, strict=True) if s.verb == "train")
    out.print(
        f"\n{len(made)} stages, {spent:.0f} s of work in all, of which training {training:.0f} s; this command {seconds:.0f} s"
    )


def page_command(root: Path, index: Stage, stages: Sequence[Stage]) -> str:
    """The command that opens the search page of an index, with what else the recipe has made for it.

    Args:
        root: the workspace.
        index: the stage that made the index.
        stages: all of them: the last reranker is used, the last mined negatives are shown, and the instructions of the report's
            queries are offered.
    """
    parts = ["serve", str(root / index.out)]
    rerankers = [stage for stage in stages if isinstance(stage, Train) and stage.task == "reranker"]
    negatives = [stage for stage in stages if stage.kind == "negatives"]
    if rerankers:
        parts += ["--rerank", str(root / rerankers[-1].out / "model")]
    if negatives:
        parts += ["--negatives", str(root / negatives[-1].out)]
    queries = [query for stage in stages if isinstance(stage, WriteReport) for query in stage.queries]
    for instruction in dict.fromkeys(query.instruction for query in queries if query.instruction):
        parts += ["--instruction", instruction]
    return f"{program()} {shlex.join([*parts, '--open'])}"
