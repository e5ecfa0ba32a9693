"""`hardwon index`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from hardwon.commands.recipes import Count, Engine, Place, hide_loading, run_verb
from hardwon.progress import program

INDEX = (
    "Index a folder or file so that it can be searched, or build the indexes of a recipe.\n\n"
    "[bold]hardwon index MODEL PATH --out idx[/] reads pictures (a text beside one, or captions.csv, is its caption), texts "
    "(.txt, .md), the pages of PDF files, videos as frames, and JSON lines of items or pairs. Run again, it follows: only what "
    "is new or has changed is encoded, and what is gone is removed. Interrupted, even killed, it goes on where it was. "
    "--rebuild makes everything anew and puts it in the old one's place at the end; searches go on meanwhile.\n\n"
    "[bold]--store[/] says what keeps it: embedded (in the folder; searched in memory), lance (a LanceDB table in the folder), "
    "postgresql://USER@HOST/DATABASE (pgvector; the password from PGPASSWORD or ~/.pgpass), http://HOST:6333 (Qdrant; its key "
    "from QDRANT_API_KEY) or qdrant (its local mode, in the folder). [bold]--form[/] keeps vectors smaller in memory and says "
    "what that costs on your own data; docs/search.md.\n\n"
    "[bold]hardwon index RECIPE --out WORKSPACE[/] runs the stages of a recipe that index.\n\n"
    "Example: [bold]hardwon index runs/demo/round2/model ~/photos --out idx[/]"
)


def index(  # noqa: PLR0913, PLR0917  (each of them is one thing that people set)
    model: Annotated[
        str, typer.Argument(help="Folder or name of an embedder; or a recipe.", metavar="MODEL|RECIPE", show_default=False)
    ],
    path: Annotated[Path | None, typer.Argument(help="A folder, or a file, to index.", show_default=False)] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The index's folder; of a recipe the workspace.")] = None,
    store: Annotated[str, typer.Option(help="What keeps it; embedded if left out.", show_default=False)] = "",
    form: Annotated[
        Literal["", "float32", "float16", "int8", "binary"],
        typer.Option(help="How vectors are kept for searching; float32 if left out.", show_default=False),
    ] = "",
    dimensions: Annotated[
        int | None, typer.Option(help="Keep so many numbers of a vector, for models trained for that (Matryoshka).", min=1)
    ] = None,
    instruction: Annotated[str | None, typer.Option(help="Instruction that items are encoded with.")] = None,
    captions: Annotated[bool, typer.Option("--captions/--no-captions", help="A text beside a picture belongs to it.")] = True,
    passage: Annotated[int, typer.Option(help="Characters that long texts are cut into; 0: not at all.", min=0)] = 1000,
    frames: Annotated[int, typer.Option(help="Frames of a video.", min=1)] = 8,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Make it anew, then put it in the old one's place.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda ...; the best there is if left out.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="Of a recipe: STAGE.FIELD=VALUE.")] = None,
    stage: Annotated[str, typer.Option("--stage", "-s", help="Of a recipe: name of the stage.")] = "",
    workers: Count = 0,
    engine: Engine = "local",
) -> None:
    """Index: see `hardwon.stages.indexing`."""
    if Path(model.partition(":")[0]).suffix == ".py":
        if path is not None or out is None:
            raise typer.BadParameter("a recipe names what it indexes itself" if path else "a recipe needs --out WORKSPACE")
        run_verb("index", model, out, stage=stage, settings=settings or [], place=Place(workers, engine))
        return
    if workers:
        raise typer.BadParameter("--workers belongs to a recipe (FILE.py); a folder is indexed by one process")
    if path is None or out is None or settings or stage:
        what = "name what to index after the model" if path is None else "say where the index goes: --out FOLDER"
        raise typer.BadParameter("--set and --stage belong to a recipe (FILE.py)" if settings or stage else what)
    from hardwon.data.gather import Reading
    from hardwon.models import Embedder
    from hardwon.stages.indexing import Wanted, check_path, index_path, told

    check_path(path)
    hide_loading()
    reading = Reading(captions=captions, passage=passage, frames=frames)
    wanted = Wanted(store or None, form or None, dimensions, instruction, reading, rebuild)
    counts = index_path(Embedder.load(model, device=device), model, path, out, wanted)
    for line in told(counts, out):
        typer.echo(line)
    typer.echo(f'\nSearch it: {program()} search {out} "your words" [--image picture.png]')
