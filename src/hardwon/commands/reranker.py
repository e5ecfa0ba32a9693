"""A reranker as the command line names it: the options that `search` and `serve` share."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hardwon.stages.reranking import Rerank

Model = Annotated[
    str, typer.Option("--rerank", help="Reranker that reads the best candidates once more: a folder, or a name on the hub.")
]
Fusion = Annotated[
    str, typer.Option(help="What was learned of it, gate and all: a .fusion.json, or the folder of a stage that evaluated.")
]
Depth = Annotated[int | None, typer.Option(help="Candidates that it reads; 10 if nothing says it.", min=1)]
Weight = Annotated[float | None, typer.Option(help="Of its log-odds beside the cosine; 0.05 if nothing says it.")]
Pairs = Annotated[float | None, typer.Option(help="Candidates that it may read at most: the best.", min=0)]
Milliseconds = Annotated[float | None, typer.Option(help="Time that its reading may take.", min=0)]


def chosen(
    model: str, fusion: str, depth: int | None, weight: float | None, pairs: float | None, milliseconds: float | None
) -> "Rerank | None":
    """What these options name; None without a reranker.

    Raises:
        typer.BadParameter: something about a reranker, and none is named.
    """
    from hardwon.stages.reranking import Rerank

    if model:
        return Rerank(model, fusion, depth, weight, pairs, milliseconds)
    if fusion or (depth, weight, pairs, milliseconds) != (None,) * 4:
        raise typer.BadParameter(
            "--fusion, --depth, --weight, --pairs and --milliseconds are about a reranker: name one with --rerank"
        )
    return None
