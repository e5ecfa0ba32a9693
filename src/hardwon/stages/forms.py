"""What smaller forms of an index's vectors would find: the table of `hardwon inspect` for an index."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from hardwon.errors import ArtifactError
from hardwon.randomness import generator
from hardwon.search import Index, StoredIndex, model_named, open_index
from hardwon.search.compressed import MOST_QUERIES, Form, recalls
from hardwon.search.retrieve import nearest

K = 10
LEAST = 0.95  # recall below which an index should be looked after


def table(folder: Path) -> Table | None:
    """Recall and size by form, on the index's own vectors; None for an index of a single item.

    Args:
        folder: what `BuildIndex` or `Index.save` wrote.

    Raises:
        ArtifactError: no index, or a damaged one.
    """
    places = [place for place in (folder / "index", folder) if (place / "vectors.safetensors").is_file()]
    if not places:
        raise ArtifactError(f"{folder} holds no vectors: make an index with `hardwon index`")
    return _table(Index.load(places[0]).vectors)


def about(folder: Path) -> Iterator[RenderableType]:
    """What an index of `hardwon index` is, and what it finds, piece by piece.

    Args:
        folder: the index.

    Raises:
        ArtifactError: a damaged one, or one whose store cannot be reached.
    """
    index = open_index(folder)
    try:
        said, space = index.about, index.space
        made = Table(show_header=False, title=escape(f"{folder}: index, whole"))
        for name, value in {
            "rows": f"{len(index):,}",
            "sources": ", ".join(f"{source} {count:,}" for source, count in list(index.sources().items())[:20]),
            "model": str(model_named(folder)),
            "fingerprint": space.model,
            "vectors": f"{space.dim} of {space.width} numbers, {space.dtype}, {space.metric}",
            "instruction": space.instruction or "none",
            "store": f"{said.store}, table {said.name}",
            "searched as": str(said.form),
        }.items():
            made.add_row(name, escape(value))
        yield made
        if len(index) < 2:
            yield "a single item: nothing to compare" if len(index) else "no items"
            return
        ids = [row.id for row in index.rows()]
        vectors = index.vectors(ids)
        share = recall_of(index, ids, vectors)
        if space.narrowed and (lost := said.measured.get("narrowed")):
            told = f"{lost['recall']:.3f} [{lost['low']:.3f}, {lost['high']:.3f}]"
            yield f"these numbers find {told} of the best {K} of whole vectors, as they were when it was written"
        yield f"recall@{min(K, len(ids))} of its searches: {share:.4f} of what an exact search over its vectors finds"
        if share < LEAST:
            yield f"[bold red]that is below {LEAST}: build it anew (hardwon index ... --rebuild), or take a larger --form[/]"
        yield _table(vectors) or ""
    finally:
        index.close()


def recall_of(index: StoredIndex, ids: list[str], vectors: np.ndarray, most: int = 200) -> float:
    """Share of the best of an exact search that the store's own search finds; what ties with the last counts as found.

    Args:
        index: an index.
        ids: of all its rows.
        vectors: theirs.
        most: rows that are asked for, drawn with a seed.
    """
    k, place = min(K, len(ids)), {key: n for n, key in enumerate(ids)}
    asked = sorted(generator(0, "check").sample(range(len(ids)), min(most, len(ids))))
    truth = nearest(vectors[asked], vectors, k)
    found = index.search_vectors(vectors[asked], k)
    shares = []
    for query, rows, scores in zip(vectors[asked], found, truth.scores, strict=True):
        got = vectors[[place[row.id] for row, _ in rows if row.id in place]].astype(np.float64) @ query.astype(np.float64)
        shares.append(float((got >= scores[-1] - 1e-6).sum()) / k)
    return float(np.mean(shares))


def _table(vectors: np.ndarray) -> Table | None:
    if len(vectors) < 2:
        return None
    made = Table(
        "kept as",
        title=f"what smaller vectors would find of the best {min(K, len(vectors) - 1)}",
        caption=f"{min(MOST_QUERIES, len(vectors)):,} of the items search for the others; 95 % interval over them. Fewer "
        "numbers suit models trained for that (Matryoshka). Rescored: signs propose, whole vectors decide.",
    )
    for heading in ("recall", "interval", "bytes a vector"):
        made.add_column(heading, justify="right")
    for row in recalls(vectors, forms(vectors.shape[1]), k=K):
        value = row.value
        made.add_row(str(row.form), f"{value.mean:.3f}", f"[{value.low:.3f}, {value.high:.3f}]", f"{row.bytes:,}")
    return made


def forms(width: int) -> tuple[Form, ...]:
    """Every kind, whole, halved and quartered where eight numbers still fill the bytes."""
    widths = [None, *(part for part in (width // 2, width // 4) if part and part % 8 == 0)]
    kinds = ("float32", "int8", "binary") if width % 8 == 0 else ("float32", "int8")
    return tuple(Form(kind, dim) for dim in widths for kind in kinds)
