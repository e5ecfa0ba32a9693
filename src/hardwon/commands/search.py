"""`hardwon search`."""

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from hardwon.commands import reranker
from hardwon.commands.recipes import hide_loading
from hardwon.items import Item

THUMBNAIL = 24  # columns of a terminal


def search(  # noqa: PLR0913, PLR0917  (each of them is one thing that people set)
    folder: Annotated[Path, typer.Argument(help="An index made by `hardwon index` or `hardwon run`.", show_default=False)],
    words: Annotated[str, typer.Argument(help="What to look for, in words.")] = "",
    image: Annotated[Path | None, typer.Option("--image", "-i", help="A picture to look for, alone or with words.")] = None,
    instruction: Annotated[str, typer.Option(help="Instruction that the model saw on such queries in training.")] = "",
    k: Annotated[int, typer.Option("-k", min=1, help="How many results.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
    rerank: reranker.Model = "",
    fusion: reranker.Fusion = "",
    depth: reranker.Depth = None,
    weight: reranker.Weight = None,
    pairs: reranker.Pairs = None,
    milliseconds: reranker.Milliseconds = None,
    thumbnails: Annotated[
        bool | None,
        typer.Option(
            "--thumbnails/--no-thumbnails", help="Show pictures; in terminals that can if left out.", show_default=False
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda ...; the best there is if left out.")] = None,
) -> None:
    """Search an index by words, by picture, or by both; with --rerank the best candidates are read once more.

    Each hit is told with its place and its cosine; with --rerank also with the reranker's score, which fuses both, and with
    the place it had before.
    """
    from hardwon.models import Embedder
    from hardwon.pictures import check_picture
    from hardwon.search import model_named, open_index

    if not words and image is None:
        raise typer.BadParameter("give words, --image, or both")
    if as_json and thumbnails:
        raise typer.BadParameter("--json prints no pictures: leave --thumbnails out")
    asked = reranker.chosen(rerank, fusion, depth, weight, pairs, milliseconds)
    if image is not None:
        check_picture(image)
    model = model_named(folder)
    hide_loading()
    index = open_index(folder, Embedder.load(model, device=device))
    query = Item(words, () if image is None else (image.resolve(),), instruction)
    try:
        fused = None if asked is None else asked.load(device=device)
        found = _Found(index, query, k, fused)
    finally:
        index.close()
    if as_json:
        for row in found.to_json():
            typer.echo(json.dumps(row, ensure_ascii=False))
        return
    _show(found, thumbnails)


class _Found:
    """The hits with their rows of the index, and what they were before a reranker read them."""

    def __init__(self, index: Any, query: Item, k: int, fused: Any):
        before = index.search(query, k if fused is None else max(k, fused.depth))
        start = time.perf_counter()
        after = before if fused is None else before.rerank(fused)
        self.milliseconds = 1000 * (time.perf_counter() - start)
        self.query, self.fused, self.before, self.pairs = query, fused, before, after.pairs
        self.hits, self.total = after[:k], len(index)
        self.was = {hit.id: hit for hit in before}

    def to_json(self) -> list[dict[str, Any]]:
        made: list[dict[str, Any]] = []
        for hit in self.hits:
            told: dict[str, Any] = {"rank": hit.rank, "score": round(hit.score, 6)}
            if self.fused is not None:
                told |= {"was": self.was[hit.id].rank, "cosine": round(self.was[hit.id].score, 6)}
            place = {"id": hit.row.id, "place": hit.row.place, "source": hit.row.source}
            made.append(told | place | hit.item.to_json(Path.cwd()))
        return made

    def verdict(self) -> str:
        """What the reranker did, in words; "" if none was asked."""
        if self.fused is None:
            return ""
        first = self.before[: self.fused.depth]
        if self.pairs:
            return f"The reranker read {self.pairs} of {len(first)} candidates in {self.milliseconds:.0f} ms."
        import numpy as np

        gate = self.fused.gate
        gated = gate is not None and not gate.weights([self.query], np.array([[hit.score for hit in first]]))[0]
        why = ": its gate does not expect it to help a query of this kind, or one this clear" if gated else ""
        return f"The reranker read nothing{why}. This is the embedder's order."


def _show(found: _Found, thumbnails: bool | None) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    shown = _shower(thumbnails, console.is_terminal)
    names = ["rank", "score", "what"] if found.fused is None else ["rank", "was", "score", "cosine", "what"]
    table = Table(*names, *(["picture"] if shown else []), title=f"{found.total} items searched")
    for hit in found.hits:
        cells: list[Any] = [str(hit.rank), f"{hit.score:.3f}", escape(_what(hit.item, hit.row.place))]
        if found.fused is not None:
            was = found.was[hit.id]
            cells[1:2] = [str(was.rank), f"{hit.score:.3f}", f"{was.score:.3f}"]
        if shown:
            cells.append(shown(hit.row.picture) if hit.row.picture else "")
        table.add_row(*cells)
    console.print(table)
    if verdict := found.verdict():
        console.print(verdict)


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
