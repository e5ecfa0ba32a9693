"""Mined examples as data sets that sentence-transformers trains with: n-tuples and labelled lists.

Texts are plain strings. An item with a picture becomes an object, {"image": path} or {"image": path, "text": words}. Within a
column all items must be of one kind: Arrow fills what an object lacks with nulls, which sentence-transformers would take for
an input.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hardwon.artifacts import replacing
from hardwon.data.unime import pushed_away
from hardwon.errors import DataError, unknown
from hardwon.items import Example, Item

SUFFIXES = (".jsonl", ".parquet")

Row = dict[str, Any]


def tuples(examples: Sequence[Example], *, negatives: int | None = None) -> list[Row]:
    """Rows `query`, `positive`, `negative_1` ... `negative_k`, one for each positive: for ranking losses.

    What may belong to the query (gold, related) is never a negative. Examples with fewer than k negatives are left out.

    Args:
        examples: mined ones.
        negatives: k; None takes the k that keeps the most negatives over all.

    Raises:
        DataError: items of two kinds in one column, or no example with k negatives.
    """
    usable = [[c.item for c in pushed_away(example)] for example in examples]
    k = negatives or _best_width([len(items) for items in usable])
    rows = [
        {"query": example.query, "positive": gold} | {f"negative_{n}": item for n, item in enumerate(items[:k], start=1)}
        for example, items in zip(examples, usable, strict=True)
        if len(items) >= k
        for gold in example.gold
    ]
    if not rows:
        raise DataError(f"no example has {k} negatives: ask for fewer, or mine more for each query")
    kinds = {name: _kind((row[name] for row in rows), name) for name in rows[0]}
    return [{name: _cell(item, kinds[name]) for name, item in row.items()} for row in rows]


def _best_width(counts: Sequence[int]) -> int:
    return max(range(1, max([1, *counts]) + 1), key=lambda k: k * sum(count >= k for count in counts))


def lists(examples: Sequence[Example]) -> list[Row]:
    """Rows `query`, `docs`, `labels`: all candidates of an example with their grades, for list losses of a CrossEncoder.

    A gold candidate that nobody graded has the label 1, another one 0; one that may belong to the query and has no grade is
    left out.

    Raises:
        DataError: items of two kinds in one column.
    """
    made: list[tuple[Item, list[Item], list[float]]] = []
    for example in examples:
        negatives = {id(c) for c in pushed_away(example)}
        listed = [c for c in example.candidates if c.origin == "gold" or c.relevance is not None or id(c) in negatives]
        labels = [float(c.origin == "gold") if c.relevance is None else c.relevance for c in listed]
        made.append((example.query, [c.item for c in listed], labels))
    query_kind = _kind((query for query, _, _ in made), "query")
    kind = _kind((item for _, items, _ in made for item in items), "docs")
    return [
        {"query": _cell(query, query_kind), "docs": [_cell(item, kind) for item in items], "labels": labels}
        for query, items, labels in made
    ]


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as JSON lines or Parquet, by the name of the file; `datasets.load_dataset` reads both.

    Raises:
        DataError: a file of another kind.
    """
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path}: {unknown('kind of file', path.suffix, SUFFIXES)}")
    with replacing(path) as beside:
        if path.suffix == ".parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), beside, compression="zstd")
        else:
            with open(beside, "w", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _kind(items: Iterator[Item], column: str) -> str:
    kinds = Counter("text" if item.modality == "text" else "image" if not _words(item) else "image and text" for item in items)
    if len(kinds) > 1:
        told = ", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items()))
        raise DataError(f"{column} holds items of several kinds ({told}): export each source by itself")
    return next(iter(kinds), "text")


def _words(item: Item) -> str:
    """Instruction and text, as hardwon's models are shown them."""
    return " ".join(part for part in (item.instruction, item.text) if part)


def _cell(item: Item, kind: str) -> str | dict[str, str]:
    if kind == "text":
        return _words(item)
    if item.video or len(item.images) != 1:
        raise DataError(
            f"{item.label} holds {'a video' if item.video else 'several pictures'}: only single pictures are exported"
        )
    (picture,) = item.images
    if isinstance(picture, bytes):
        raise DataError("a picture held as bytes has no path: write it to a file first")
    return {"image": str(picture)} | ({"text": _words(item)} if kind == "image and text" else {})
