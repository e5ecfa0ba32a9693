"""`hardwon serve`: the search page and the API."""

from pathlib import Path
from typing import Annotated

import typer

from hardwon.commands import reranker
from hardwon.commands.recipes import hide_loading


def serve(  # noqa: PLR0913, PLR0917  (each of them is one thing that people set)
    place: Annotated[
        str,
        typer.Argument(
            help="An index made by `hardwon index` or `hardwon run`, a model's folder, or a name on the hub.",
            metavar="INDEX_OR_MODEL",
            show_default=False,
        ),
    ],
    rerank: reranker.Model = "",
    fusion: reranker.Fusion = "",
    depth: reranker.Depth = None,
    weight: reranker.Weight = None,
    pairs: reranker.Pairs = None,
    milliseconds: reranker.Milliseconds = None,
    host: Annotated[str, typer.Option(help="Address to listen at; one that others reach needs --api-key-env.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0 for any that is free.", min=0, max=65535)] = 8000,
    api_key_env: Annotated[str, typer.Option(help="Environment variable that holds the key clients must send.")] = "",
    name: Annotated[str, typer.Option(help="What clients call the model; the end of its path if left out.")] = "",
    device: Annotated[str | None, typer.Option(help="cpu, cuda ...; the best there is if left out.")] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(help="Set a limit of `hardwon.serve.limits.Limits`: NAME=VALUE, as timeout_s=30. May be repeated."),
    ] = None,
    negatives: Annotated[Path | None, typer.Option(help="What `hardwon mine` made, to look at beside the search page.")] = None,
    instruction: Annotated[
        list[str] | None,
        typer.Option(help="Instruction that the page gives with queries; the others are offered. May be repeated."),
    ] = None,
    browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Serve a search page, and embeddings, reranking and search to OpenAI's, Cohere's and Jina's clients, until Ctrl-C.

    Pictures are sent as data: URLs: no address is fetched and no file is opened for a client. What is said of the reranker is
    as of `hardwon search`.
    """
    from hardwon.stages.serving import serve as start

    def ready(url: str) -> None:
        typer.echo(f"serving at {url}/v1\nto look at {url}/")
        if browser:
            import webbrowser

            webbrowser.open(f"{url}/")

    hide_loading()
    start(
        place,
        rerank=reranker.chosen(rerank, fusion, depth, weight, pairs, milliseconds),
        host=host,
        port=port,
        key_name=api_key_env,
        name=name,
        device=device,
        limits=limit or (),
        ready=ready,
        negatives=negatives,
        instructions=instruction or (),
    )
