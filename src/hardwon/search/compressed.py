"""Smaller forms of vectors, and what they cost: eight bits or one bit a number, fewer numbers a vector.

The forms are faiss's: numbers of eight bits between the smallest and the largest of each column, and signs, compared by how
many differ. Signs alone only propose: ten times as many candidates as were asked for are scored again with the whole vectors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import torch
from jaxtyping import Float32

from hardwon import metrics
from hardwon.errors import DataError, unknown
from hardwon.metrics import Interval
from hardwon.search.retrieve import Found, as_float32, check_positive, retrieve

KINDS = ("float32", "int8", "binary")
PROPOSED = 10  # candidates for each one asked for, of signs alone
MOST_QUERIES = 500  # in a table of recalls
SEED = 0


@dataclass(frozen=True)
class Form:
    """How vectors are kept.

    Attributes:
        kind: "float32", "int8", or "binary" (a sign for each number, looked at again with the whole vectors).
        dim: numbers of a vector that are kept, from the first, for models trained for that (Matryoshka); None: all. What is
            left is scaled to unit length again.
    """

    kind: str = "float32"
    dim: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise DataError(unknown("form", self.kind, KINDS))
        if self.dim is not None:
            check_positive("dim", self.dim)

    def __str__(self) -> str:
        return (
            f"{self.kind}{'' if self.dim is None else f', {self.dim} numbers'}{', rescored' if self.kind == 'binary' else ''}"
        )

    def bytes(self, width: int) -> int:
        """Of one vector that was `width` numbers; for "binary" of what is searched first."""
        kept = min(self.dim or width, width)
        return {"float32": 4 * kept, "int8": kept, "binary": (kept + 7) // 8}[self.kind]


class Compressed:
    """Vectors in a smaller form, to be searched.

    Args:
        vectors: unit vectors, [n d].
        form: how they are kept.

    Raises:
        DataError: more numbers asked for than there are, or signs of a width that is no multiple of 8.
    """

    def __init__(self, vectors: Float32[np.ndarray, "n d"], form: Form):
        self.form, self._whole = form, as_float32(vectors)
        width = form.dim or vectors.shape[1]
        if width > vectors.shape[1]:
            raise DataError(f"dim is {width}, but the vectors hold {vectors.shape[1]} numbers")
        if form.kind == "binary" and width % 8:
            raise DataError(f"binary packs eight numbers into a byte: dim must be a multiple of 8, got {width}")
        self._width = width
        kept = self._cut(self._whole)
        self._index: Any = None
        if form.kind == "int8":
            self._index = faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
            self._index.train(kept)
        elif form.kind == "binary":
            self._index = faiss.IndexBinaryFlat(width)
        if self._index is None:
            self._kept = kept
        else:
            self._index.add(_signs(kept) if form.kind == "binary" else kept)

    def search(self, queries: Float32[np.ndarray, "q d"], k: int) -> Found:
        """The k best of each query as far as this form can tell; scores are cosines in this form, of signs the whole ones."""
        check_positive("k", k)
        queries, k = as_float32(queries), min(k, len(self._whole))
        asked = self._cut(queries)
        if self.form.kind == "float32":
            return retrieve(asked, self._kept, k)
        if self.form.kind == "int8":
            scores, ids = self._index.search(asked, k)
            return Found(ids, scores)
        _, proposed = self._index.search(_signs(asked), min(PROPOSED * k, len(self._whole)))
        scores = np.einsum("qd,qmd->qm", queries, self._whole[proposed])
        order = np.lexsort((proposed, -scores), axis=1)[:, :k]
        return Found(np.take_along_axis(proposed, order, axis=1), np.take_along_axis(scores, order, axis=1))

    def _cut(self, vectors: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, "n _"]:
        if self._width == vectors.shape[1]:
            return vectors
        left = vectors[:, : self._width]
        lengths = np.linalg.norm(left, axis=1, keepdims=True)
        return as_float32(left / np.where(lengths > 0, lengths, 1))


def _signs(vectors: Float32[np.ndarray, "n d"]) -> np.ndarray:
    return np.packbits(vectors > 0, axis=1)


@dataclass(frozen=True)
class Recall:
    """What a form finds of what whole vectors find.

    Attributes:
        form: the form.
        value: share of the best k that it finds, with its 95 % interval over queries.
        bytes: of one vector.
    """

    form: Form
    value: Interval
    bytes: int


def recalls(
    vectors: Float32[np.ndarray, "n d"],
    forms: Sequence[Form],
    *,
    queries: Float32[np.ndarray, "q d"] | None = None,
    k: int = 10,
) -> tuple[Recall, ...]:
    """How many of the best k of whole vectors each form finds.

    What is as near as the k-th in whole vectors counts as found too.

    Args:
        vectors: unit vectors that are searched.
        forms: to compare.
        queries: unit vectors that search; None: up to `MOST_QUERIES` of the vectors themselves, drawn with a seed, which
            must find others than themselves.
        k: results that are looked at; fewer where fewer can be found.

    Raises:
        DataError: fewer than two vectors, no queries, or a form that does not fit.
    """
    check_positive("k", k)
    if len(vectors) < 2 or (queries is not None and not len(queries)):
        raise DataError(f"{len(vectors)} vectors and {0 if queries is None else len(queries)} queries: nothing to compare")
    own = None
    if queries is None:
        own = np.random.default_rng(SEED).permutation(len(vectors))[:MOST_QUERIES]
        queries = vectors[own]
    k = min(k, len(vectors) - (own is not None))
    truth = retrieve(queries, vectors, k, exclude=None if own is None else [[int(place)] for place in own])
    made = []
    for form in forms:
        found = Compressed(vectors, form).search(queries, k + (own is not None)).ids
        shares = [
            _share(queries[n], vectors, truth, n, row[row != (-1 if own is None else own[n])][:k])
            for n, row in enumerate(found)
        ]
        made.append(Recall(form, metrics.interval(torch.tensor(shares), seed=SEED), form.bytes(vectors.shape[1])))
    return tuple(made)


def _share(query: np.ndarray, vectors: np.ndarray, truth: Found, row: int, found: np.ndarray) -> float:
    last = truth.scores[row][-1]
    scores = vectors[found].astype(np.float64) @ query.astype(np.float64)
    return float((scores >= last - 1e-6).sum() / truth.ids.shape[1])
