"""What `hardwon search --rerank` prints."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hardwon.items import Item
from hardwon.search import Fused, Index


def show(index: Index, query: Item, k: int, fused: Fused, named: Callable[[Item], str] | None) -> None:
    """Search, rerank, and print the hits with the place and the cosine that each had before.

    Args:
        index: with its encoder.
        query: what is looked for.
        k: hits to show.
        fused: reads the best of them once more.
        named: an item in a row of the table; None prints one JSON object a line instead.
    """
    before = index.search(query, max(k, fused.depth))
    start = time.perf_counter()
    after = before.rerank(fused)
    took = 1000 * (time.perf_counter() - start)
    known = {hit.id: hit for hit in before}
    if named is None:
        for hit in after[:k]:
            was = known[hit.id]
            row = {"rank": hit.rank, "score": round(hit.score, 6), "was": was.rank, "cosine": round(was.score, 6)}
            typer.echo(json.dumps(row | hit.item.to_json(Path.cwd()), ensure_ascii=False))
        return
    table = Table("rank", "was", "score", "cosine", "what", title=f"{len(index)} items searched")
    for hit in after[:k]:
        was = known[hit.id]
        table.add_row(str(hit.rank), str(was.rank), f"{hit.score:.3f}", f"{was.score:.3f}", escape(named(hit.item)))
    screen = Console(highlight=False)
    screen.print(table)
    if after.pairs:
        screen.print(f"The reranker read {after.pairs} of {min(len(before), fused.depth)} candidates in {took:.0f} ms.")
        return
    cosines = np.array([[hit.score for hit in before[: fused.depth]]])
    gated = fused.gate is not None and not fused.gate.weights([query], cosines)[0]
    why = ": its gate does not expect it to help a query of this kind, or one this clear" if gated else ""
    screen.print(f"The reranker read nothing{why}. This is the embedder's order.")
