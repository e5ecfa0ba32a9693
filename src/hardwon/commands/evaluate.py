"""`hardwon evaluate` and `hardwon compare`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hardwon.commands.recipes import Count, Engine, Place, hide_loading, run_verb, workers_of
from hardwon.progress import program

if TYPE_CHECKING:  # the command line starts without what it may not need
    from hardwon.evaluation import Report

WIDE = 120  # columns of a terminal that has room for the sources of published results
EVALUATE = (
    "Evaluate a model on a benchmark, or the models of a recipe, with intervals.\n\n"
    "[bold]hardwon evaluate MODEL BENCHMARK[/] asks one model: each distinct item is encoded once and kept in the cache, so an "
    "interrupted evaluation goes on and a second one encodes nothing; data sets are told as they are done. The report (--out) "
    "is what `hardwon compare` reads. BENCHMARK is mmeb-small (built in), a folder or file of your own, or one whose data you "
    "have (--root FOLDER): mmeb, mmeb-v2-video, mmeb-v2-visdoc, flickr30k, coco, sharegpt4v, urban1k, sugarcrepe, msrvtt, "
    "msvd; docs/evaluation.md says how the folders look. With --rerank it also says what the reranker changed, data set by "
    "data set; --held-out lets it learn where the reranker helps and leave all other queries alone.\n\n"
    "[bold]hardwon evaluate RECIPE --out WORKSPACE[/] runs the stages of a recipe that evaluate.\n\n"
    "Example: [bold]hardwon evaluate runs/demo/round2 runs/demo/data/mmeb-small --budget 200[/]"
)


def evaluate(  # noqa: PLR0913, PLR0917  (each of them is one thing that people set)
    model: Annotated[
        str, typer.Argument(help="Folder or name of an embedder; or a recipe.", metavar="MODEL|RECIPE", show_default=False)
    ],
    benchmark: Annotated[str, typer.Argument(help="A benchmark's name, folder or file.", show_default=False)] = "",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The report (.json); of a recipe the workspace.")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of the benchmark's data.", show_default=False)] = None,
    rerank: Annotated[str, typer.Option(help="Reranker that reads the best candidates once more.")] = "",
    depth: Annotated[int | None, typer.Option(help="Candidates per query that it reads; 10 if left out.", min=1)] = None,
    weight: Annotated[
        float | None, typer.Option(help="Of its log-odds beside the cosine, if nothing is held out; 0.05 if left out.")
    ] = None,
    held_out: Annotated[str, typer.Option(help="Benchmark or pairs to learn weights and gate of the reranker from.")] = "",
    pairs: Annotated[
        float | None, typer.Option(help="Pairs that it may read, per query in the mean: the smallest margins first.", min=0)
    ] = None,
    milliseconds: Annotated[
        float | None, typer.Option(help="Time that it may take, per query in the mean: the smallest margins first.", min=0)
    ] = None,
    precision: Annotated[Literal["fp32", "bf16", "auto"], typer.Option(help="Of the reranker.")] = "fp32",
    task: Annotated[list[str] | None, typer.Option("--task", "-t", help="Only this data set. May be repeated.")] = None,
    budget: Annotated[int, typer.Option(help="Ask this many queries in all, drawn from every data set; 0: all.", min=0)] = 0,
    cache: Annotated[
        Path | None, typer.Option(help="Where vectors are kept; 'features' beside the report if left out.")
    ] = None,
    label: Annotated[str, typer.Option(help="What the model is called; its folder's name if left out.")] = "",
    device: Annotated[str | None, typer.Option(help="cpu, cuda ...; the best there is if left out.")] = None,
    on_error: Annotated[
        Literal["raise", "skip"], typer.Option(help="skip: ask the other data sets where one cannot be asked.")
    ] = "raise",
    leaks: Annotated[str, typer.Option(help="Training data: list what of the benchmark it holds.")] = "",
    settings: Annotated[list[str] | None, typer.Option("--set", help="Of a recipe: STAGE.FIELD=VALUE.")] = None,
    stage: Annotated[str, typer.Option("--stage", "-s", help="Of a recipe: name of the stage.")] = "",
    workers: Count = 0,
    engine: Engine = "local",
) -> None:
    """Evaluate: see `hardwon.stages.evaluating`."""
    if Path(model.partition(":")[0]).suffix == ".py":
        if benchmark or out is None:
            raise typer.BadParameter("a recipe names its benchmarks itself" if benchmark else "a recipe needs --out WORKSPACE")
        run_verb("evaluate", model, out, stage=stage, settings=settings or [], place=Place(workers, engine))
        return
    if not benchmark or settings or stage:
        what = "name a benchmark after the model" if not benchmark else "--set and --stage belong to a recipe (FILE.py)"
        raise typer.BadParameter(what)
    from hardwon.stages.evaluating import Evaluation

    hide_loading()
    _check_reranking(rerank, {"--depth": depth, "--weight": weight, "--held-out": held_out or None}, (pairs, milliseconds))
    asked = Evaluation(
        model, benchmark, root, rerank, depth or 10, 0.05 if weight is None else weight, held_out, precision,
        tuple(task or ()), budget, device=device, label=label, on_error=on_error, leaks=leaks, pairs=pairs,
        milliseconds=milliseconds, workers=workers_of(workers, engine),
    )  # fmt: skip
    _show(asked.run(out, cache), benchmark)
    typer.echo(f"\nCompare it with another: {program()} compare {out or asked.home} OTHER.json --html page.html")


def _show(report: "Report", benchmark: str) -> None:
    """The table, where the model stands among what was published, and what a sample costs."""
    from rich.console import Console

    from hardwon.evaluation.load import READERS
    from hardwon.evaluation.references import COLUMNS, standing

    Console().print(report)
    if benchmark in READERS and report.benchmark in COLUMNS and not report.missing:  # own data may have such a name, too
        Console().print(standing(report, sources=Console().width >= WIDE))
    if "sample" in report.made:
        typer.echo(report.made["sample"])


def _check_reranking(rerank: str, options: dict[str, object], limits: tuple[float | None, float | None]) -> None:
    """Refuse options of a reranker that can have no effect."""
    given = [name for name, value in options.items() if value is not None]
    given += [name for name, value in zip(("--pairs", "--milliseconds"), limits, strict=True) if value is not None]
    if given and not rerank:
        raise typer.BadParameter(
            f"{' and '.join(given)} {'is' if len(given) == 1 else 'are'} about a reranker: name it (--rerank)"
        )
    if "--weight" in given and "--held-out" in given:
        raise typer.BadParameter("--held-out finds the weights: leave --weight out, or --held-out")


def compare(
    first: Annotated[Path, typer.Argument(help="A report, or the folder of a stage that evaluated.", show_default=False)],
    second: Annotated[
        Path, typer.Argument(help="Another on the same benchmark; its numbers are subtracted.", show_default=False)
    ],
    html: Annotated[Path | None, typer.Option("--html", help="Write a page: which queries changed, with pictures.")] = None,
    benchmark: Annotated[str, typer.Option(help="The benchmark, if it is not where the reports say.")] = "",
    root: Annotated[Path | None, typer.Option(help="Folder of the benchmark's data.", show_default=False)] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Compare what both have where data sets are missing.")] = False,
) -> None:
    """Compare two reports query by query: difference, interval, p, and how many queries were won and lost."""
    from rich.console import Console

    from hardwon.stages.comparing import write_page
    from hardwon.stages.evaluating import read_report

    if (benchmark or root) and html is None:
        raise typer.BadParameter("--benchmark and --root are about the page: name it with --html")
    reports = [read_report(first), read_report(second)]
    found = reports[0].diff(reports[1], partial=partial)
    Console().print(found)
    if html is not None:
        write_page(reports, found, html, benchmark, root)
        typer.echo(f"\nOpen the page:  python3 -m webbrowser file://{html.resolve()}")
