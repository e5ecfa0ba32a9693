"""What every store keeps and promises, whatever keeps it: a folder, LanceDB, PostgreSQL or Qdrant."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from hardwon.errors import ArtifactError, DataError, ModelError, unknown
from hardwon.search.retrieve import as_float32, check_unit, shortened

LAYOUT = 1  # of rows and heads; a store of another layout is not touched
DTYPES = ("float32", "float16")
METRICS = ("cosine",)
_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Space:
    """What the vectors of an index are: others are never mixed with them, and no other model may search.

    Attributes:
        model: fingerprint of the encoder: weights, pooling, prompts, pre-processing.
        width: numbers of a vector as the encoder gives it.
        dim: numbers that are kept, from the first (Matryoshka); scaled to unit length again.
        dtype: of the numbers that are kept, "float32" or "float16".
        instruction: that items were encoded with.
        metric: how vectors are compared.
        layout: version of this form of keeping them.
    """

    model: str
    width: int
    dim: int
    dtype: str = "float32"
    instruction: str = ""
    metric: str = "cosine"
    layout: int = LAYOUT

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise DataError(unknown("dtype", self.dtype, DTYPES))
        if self.metric not in METRICS:
            raise DataError(unknown("metric", self.metric, METRICS))
        if not 1 <= self.dim <= self.width:
            raise DataError(
                f"dimensions is {self.dim}, but the model's vectors hold {self.width} numbers: choose 1 to that many"
            )

    @property
    def narrowed(self) -> bool:
        """Whether less than the whole vector is kept: fewer numbers, or shorter ones."""
        return self.dim < self.width or self.dtype != "float32"

    def to_json(self) -> dict[str, Any]:
        """As a store writes it down."""
        return asdict(self)

    def check(self, kept: Mapping[str, Any] | None, where: str) -> None:
        """Compare with what a store has written down.

        Raises:
            ArtifactError: anything differs; names what, both values, and what to do.
        """
        if kept is None:
            raise ArtifactError(f"{where} does not say what its vectors are: it was not made by hardwon; choose another place")
        mine = self.to_json()
        for field in fields(self):
            if kept.get(field.name) != mine[field.name]:
                raise ArtifactError(
                    f"{where} holds vectors of another kind: {_MEANING[field.name]} is {kept.get(field.name)!r} there and "
                    f"{mine[field.name]!r} here, and such vectors cannot be compared. Use what the index was built with, or "
                    "build it anew: hardwon index ... --rebuild"
                )

    def cut(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors [n width] as they are kept and searched with: [n dim], float32, unit length.

        Raises:
            ModelError: of another width, not finite or not of unit length, or nothing is left of one but zeros; names the
                first.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.width:
            raise ModelError(f"vectors of shape {list(vectors.shape)}, but the index takes [n, {self.width}]: use its model")
        vectors = as_float32(vectors)
        check_unit(vectors, lambda row: f"vector {row}")
        kept = shortened(vectors, self.dim)
        if not kept.any(axis=1).all():
            raise ModelError(f"the first {self.dim} numbers of a vector are all zero: keep more dimensions")
        return kept


_MEANING = {
    "model": "the model's fingerprint (weights, pooling, prompts, pre-processing)",
    "width": "the width of the model's vectors",
    "dim": "the number of dimensions kept",
    "dtype": "the type of the numbers",
    "instruction": "the instruction of the items",
    "metric": "the metric",
    "layout": "the layout",
}


class Entry(NamedTuple):
    """A row as stores keep it, beside its vector.

    Attributes:
        id: 32 hexadecimal digits.
        payload: JSON text in ASCII, so that no store has trouble with any character.
    """

    id: str
    payload: str


class Match(NamedTuple):
    """A row that a search found, with its cosine."""

    entry: Entry
    score: float


@runtime_checkable
class Store(Protocol):
    """Rows and their vectors, kept. What is written is there, whatever happens, as soon as the call returns.

    Vectors are of unit length and `space.dim` wide; `checked` looks at them first. A row of an id that is there is replaced.
    """

    @property
    def space(self) -> Space:
        """What the vectors are."""
        ...

    def upsert(self, entries: Sequence[Entry], vectors: np.ndarray) -> None:
        """Add rows, or replace those with the same id, with vectors [n d]: all of them or, after a crash, none."""
        ...

    def delete(self, ids: Sequence[str]) -> None:
        """Remove rows; ids that are not there are none to remove."""
        ...

    def search(self, vectors: np.ndarray, k: int) -> list[list[Match]]:
        """The k rows with the largest cosine for each query vector [q d], best first; fewer where there are fewer."""
        ...

    def rows(self, ids: Sequence[str] | None = None) -> Iterator[Entry]:
        """The rows of these ids, in their order, without those that are not there; all of them for None."""
        ...

    def vectors(self, ids: Sequence[str]) -> np.ndarray:
        """Vectors [n d], float32, of rows that are there. Raises DataError for an id that is not."""
        ...

    def __len__(self) -> int:
        """How many rows there are."""
        ...

    def refresh(self) -> bool:
        """See what others have written since; whether there was anything."""
        ...

    def close(self) -> None:
        """Let go of files and connections."""
        ...


def checked(entries: Sequence[Entry], vectors: np.ndarray, space: Space) -> np.ndarray:
    """Vectors as stores take them, after looking at what is to be written.

    Raises:
        DataError: an id twice or of another form, or not as many vectors as rows.
        ModelError: vectors of another width, not finite, or not of unit length.
    """
    if len(entries) != len(vectors):
        raise DataError(f"{len(entries)} rows and {len(vectors)} vectors: give one for each")
    if vectors.ndim != 2 or vectors.shape[1] != space.dim:
        raise ModelError(f"vectors of shape {list(vectors.shape)}, but the index takes [n, {space.dim}]: use its model")
    seen: set[str] = set()
    for entry in entries:
        check_id(entry.id)
        if entry.id in seen:
            raise DataError(f"the id {entry.id} stands twice among the rows to be written: ids are unique")
        seen.add(entry.id)
    vectors = as_float32(vectors)
    check_unit(vectors, lambda row: f"the vector of row {entries[row].id}")
    return vectors


def check_id(value: str) -> str:
    """The id. Raises DataError when it is not 32 hexadecimal digits."""
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise DataError(f"an id is 32 hexadecimal digits in lower case, got {str(value)[:60]!r}")
    return value


def missing(ids: Iterable[str], found: Mapping[str, Any]) -> None:
    """Raise DataError for the first id that was not found."""
    for each in ids:
        if each not in found:
            raise DataError(f"there is no row {each} in the index")
