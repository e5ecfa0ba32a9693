"""`hardwon search`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from hardwon.commands.recipes import hide_loading
from hardwon.items import Item

THUMBNAIL = 24  # columns of a terminal


def search(  # noqa: PLR0913, PLR0917  (each of them is one thing that people set)
    folder: Annotated[Path, typer.Argument(help="An index made by `hardwon index` or `hardwon run`.", show_default=False)],
    words: Annotated[str, typer.Argument(help="What to look for, in words.")] = "",
    image: Annotated[Path | None, typer.Option("--image", "-i", help="A picture to look for, alone or with words.")] = None,
    instruction: Annotated[str, typer.Option(help="Instruction that the model saw on such queries in training.")] = "",
    k: Annotated[int, typer.Option("-k", min=1, help="How many results.")] = 10,
    rerank: Annotated[str, typer.Option(help="A reranker's folder or name, which reads the best hits once more.")] = "",
    depth: Annotated[int, typer.Option(help="Hits that it reads.", min=1)] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
    thumbnails: Annotated[
        bool | None,
        typer.Option(
            "--thumbnails/--no-thumbnails", help="Show pictures; in terminals that can if left out.", show_default=False
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda ...; the best there is if left out.")] = None,
) -> None:
    """Search an index by words, by picture, or by both.

    Each hit is told with its place and its cosine; with --rerank with the reranker's score, which fuses both.
    """
    from hardwon.models import Embedder, load_reranker
    from hardwon.pictures import check_picture
    from hardwon.search import Fused, model_named, open_index

    if not words and image is None:
        raise typer.BadParameter("give words, --image, or both")
    if as_json and thumbnails:
        raise typer.BadParameter("--json prints no pictures: leave --thumbnails out")
    if image is not None:
        check_picture(image)
    model = model_named(folder)
    hide_loading()
    index = open_index(folder, Embedder.load(model, device=device))
    reranker = Fused(load_reranker(rerank, device=device), depth) if rerank else None
    try:
        hits = index.search(Item(words, () if image is None else (image.resolve(),), instruction), k, reranker)
        rows = index.rows([str(hit.id) for hit in hits])
    finally:
        index.close()
    if as_json:
        for hit, row in zip(hits, rows, strict=True):
            told = {"rank": hit.rank, "score": round(hit.score, 6), "id": row.id, "place": row.place, "source": row.source}
            typer.echo(json.dumps(told | hit.item.to_json(Path.cwd()), ensure_ascii=False))
        return
    _show(hits, rows, len(index), thumbnails)


def _show(hits: Any, rows: Any, total: int, thumbnails: bool | None) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    shown = _shower(thumbnails, console.is_terminal)
    table = Table("rank", "score", "what", *(["picture"] if shown else []), title=f"{total} items searched")
    for hit, row in zip(hits, rows, strict=True):
        cells: list[Any] = [str(hit.rank), f"{hit.score:.3f}", escape(_what(hit.item, row.place))]
        if shown:
            cells.append(shown(row.picture) if row.picture else "")
        table.add_row(*cells)
    console.print(table)


def _shower(thumbnails: bool | None, terminal: bool) -> Any:
    """What makes something that rich prints of a picture's path; None where no pictures are shown."""
    if thumbnails is False or (thumbnails is None and not terminal):
        return None
    try:
        from textual_image import renderable  # asks the terminal what it can
    except ImportError:
        if thumbnails is None:
            return None
        from hardwon.errors import MissingExtra

        raise MissingExtra("textual-image", "terminal") from None
    if thumbnails is None and renderable.Image not in (renderable.SixelImage, renderable.TGPImage):
        return None
    from hardwon.pictures import open_picture

    return lambda path: renderable.Image(open_picture(path), width=THUMBNAIL, height="auto")


def _what(item: Item, place: str = "") -> str:
    """An item in a row of a table: its words, and where it is; of a video its first frame."""
    if "#" in place or ("/" in place and not item.pictures):
        return f"{item.text}  {place}".strip() if item.text else place
    video = [f"{item.video[0]} ({len(item.video)} frames)"] if item.video else []
    return " ".join([item.text, *(str(picture) for picture in item.images), *video]).strip()
