"""What smaller forms of an index's vectors would find: the table of `hardwon inspect` for an index."""

from pathlib import Path

from rich.table import Table

from hardwon.errors import ArtifactError
from hardwon.search import Index
from hardwon.search.compressed import MOST_QUERIES, Form, recalls

K = 10


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
    index = Index.load(places[0])
    if len(index) < 2:
        return None
    made = Table(
        "kept as",
        title=f"what smaller vectors would find of the best {min(K, len(index) - 1)}",
        caption=f"{min(MOST_QUERIES, len(index)):,} of the items search for the others; 95 % interval over them. Fewer numbers "
        "suit models trained for that (Matryoshka). Rescored: signs propose, whole vectors decide.",
    )
    for heading in ("recall", "interval", "bytes a vector"):
        made.add_column(heading, justify="right")
    for row in recalls(index.vectors, forms(index.vectors.shape[1]), k=K):
        value = row.value
        made.add_row(str(row.form), f"{value.mean:.3f}", f"[{value.low:.3f}, {value.high:.3f}]", f"{row.bytes:,}")
    return made


def forms(width: int) -> tuple[Form, ...]:
    """Every kind, whole, halved and quartered where eight numbers still fill the bytes."""
    widths = [None, *(part for part in (width // 2, width // 4) if part and part % 8 == 0)]
    kinds = ("float32", "int8", "binary") if width % 8 == 0 else ("float32", "int8")
    return tuple(Form(kind, dim) for dim in widths for kind in kinds)
