"""Smaller forms of vectors, and what they cost: 16 or 8 bits or one bit a number, fewer numbers a vector.

The forms are faiss's: half floats; numbers of eight bits between the smallest and the largest of each column; and signs,
compared by how many differ. What is small may only propose: some times as many candidates as were asked for are scored again
with the whole vectors. How many times is a setting, and `enough` finds the smallest that a recall takes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import faiss
import numpy as np
import torch
from jaxtyping import Float32

from hardwon import metrics
from hardwon.errors import DataError, unknown
from hardwon.metrics import Interval
from hardwon.search.retrieve import Found, as_float32, check_positive, nearest, retrieve, shortened

KINDS = ("float32", "float16", "int8", "binary")
PROPOSED = 10  # candidates for each one asked for, of signs alone
STEPS = (1, 2, 4, 10, 20, 40, 80, 160, 320)  # that `enough` tries
MOST_QUERIES = 500  # in a table of recalls
SEED = 0
_AT_ONCE = 65_536  # vectors coded at a time


@runtime_checkable
class Whole(Protocol):
    """Whole vectors that lie elsewhere, on disk perhaps."""

    @property
    def dim(self) -> int:
        """Width of a vector."""
        ...

    def __len__(self) -> int: ...

    def take(self, places: np.ndarray | slice) -> np.ndarray:
        """The vectors at these positions, float32."""
        ...


@dataclass(frozen=True)
class Form:
    """How vectors are kept.

    Attributes:
        kind: "float32", "float16", "int8", or "binary" (a sign for each number, looked at again with the whole vectors).
        dim: numbers of a vector that are kept, from the first, for models trained for that (Matryoshka); None: all. What is
            left is scaled to unit length again.
        proposed: candidates for each one asked for that are scored again with the whole vectors; 0: none; None: 10 of signs
            and none of the others.
    """

    kind: str = "float32"
    dim: int | None = None
    proposed: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise DataError(unknown("form", self.kind, KINDS))
        if self.dim is not None:
            check_positive("dim", self.dim)
        if self.proposed is not None and self.proposed < (self.kind == "binary"):
            raise DataError(
                f"proposed of the form {self.kind} must be at least {int(self.kind == 'binary')}, got {self.proposed}"
            )
        if self.proposed and self.kind == "float32":
            raise DataError("whole vectors are not scored again: leave proposed out")

    @property
    def again(self) -> int:
        """Candidates for each one asked for that are scored again."""
        return (PROPOSED if self.kind == "binary" else 0) if self.proposed is None else self.proposed

    def __str__(self) -> str:
        times = "" if self.proposed is None else f" x {self.proposed}"
        return f"{self.kind}{'' if self.dim is None else f', {self.dim} numbers'}{f', rescored{times}' if self.again else ''}"

    def bytes(self, width: int) -> int:
        """Of one vector that was `width` numbers; of what is searched first where it is scored again."""
        kept = min(self.dim or width, width)
        return {"float32": 4 * kept, "float16": 2 * kept, "int8": kept, "binary": (kept + 7) // 8}[self.kind]


class Compressed:
    """Vectors in a smaller form, to be searched.

    Args:
        vectors: unit vectors, [n d]; or whole ones that lie elsewhere and are read for scoring again only.
        form: how they are kept.

    Raises:
        DataError: more numbers asked for than there are, or signs of a width that is no multiple of 8.
    """

    def __init__(self, vectors: Float32[np.ndarray, "n d"] | Whole, form: Form):
        self.form, self._whole = form, _Array(as_float32(vectors)) if isinstance(vectors, np.ndarray) else vectors
        width, given = form.dim or self._whole.dim, self._whole.dim
        if width > given:
            raise DataError(f"dim is {width}, but the vectors hold {given} numbers")
        if form.kind == "binary" and width % 8:
            raise DataError(f"binary packs eight numbers into a byte: dim must be a multiple of 8, got {width}")
        self._width = width
        if form.kind == "float32":
            self._kept = shortened(self._whole.take(slice(None)), width)
        else:
            self._index = self._coded()

    def search(self, queries: Float32[np.ndarray, "q d"], k: int) -> Found:
        """The k best of each query as far as this form can tell; scores are cosines in it, or whole ones if scored again."""
        check_positive("k", k)
        queries, k = as_float32(queries), min(k, len(self._whole))
        asked = shortened(queries, self._width)
        if self.form.kind == "float32":
            return nearest(asked, self._kept, k)
        fetched = min(max(1, self.form.again) * k, len(self._whole))
        scores, proposed = self._index.search(_signs(asked) if self.form.kind == "binary" else asked, fetched)
        if not self.form.again:
            return Found(proposed, scores)
        scores = np.empty(proposed.shape, dtype=np.float32)
        for row, places in enumerate(proposed):
            scores[row] = self._whole.take(places) @ queries[row]
        order = np.lexsort((proposed, -scores), axis=1)[:, :k]
        return Found(np.take_along_axis(proposed, order, axis=1), np.take_along_axis(scores, order, axis=1))

    def proposing(self, times: int) -> "Compressed":
        """The same with another number of candidates that are scored again; nothing is coded anew."""
        made = object.__new__(Compressed)
        made.__dict__.update(self.__dict__, form=replace(self.form, proposed=times))
        return made

    def _coded(self) -> Any:
        if self.form.kind == "binary":
            index = faiss.IndexBinaryFlat(self._width)
        else:
            kind = faiss.ScalarQuantizer.QT_8bit if self.form.kind == "int8" else faiss.ScalarQuantizer.QT_fp16
            index = faiss.IndexScalarQuantizer(self._width, kind, faiss.METRIC_INNER_PRODUCT)
            index.train(shortened(self._whole.take(slice(None) if self.form.kind == "int8" else slice(0, 1)), self._width))
        for start in range(0, len(self._whole), _AT_ONCE):
            kept = shortened(self._whole.take(slice(start, start + _AT_ONCE)), self._width)
            index.add(_signs(kept) if self.form.kind == "binary" else kept)
        return index


class _Array:
    """Whole vectors in memory."""

    def __init__(self, vectors: Float32[np.ndarray, "n d"]):
        self._vectors = vectors

    @property
    def dim(self) -> int:
        return self._vectors.shape[1]

    def __len__(self) -> int:
        return len(self._vectors)

    def take(self, places: np.ndarray | slice) -> np.ndarray:
        return self._vectors[places]


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
    sample = _Sample(vectors, queries, k)
    return tuple(sample.recall(Compressed(vectors, form)) for form in forms)


def enough(
    vectors: Float32[np.ndarray, "n d"],
    form: Form,
    target: float,
    *,
    queries: Float32[np.ndarray, "q d"] | None = None,
    k: int = 10,
) -> Recall:
    """The form with the fewest candidates scored again that reaches a recall; with the most of `STEPS` if none does.

    Arguments and errors as of `recalls`; `target` is a share between 0 and 1 that the mean over the queries must reach.
    """
    sample, coded, made = _Sample(vectors, queries, k), Compressed(vectors, form), None
    for times in (0,) if form.kind == "float32" else STEPS:
        made = sample.recall(coded.proposing(times) if times else coded)
        if made.value.mean >= target or times * k >= len(vectors):
            break
    assert made is not None
    return made


class _Sample:
    """Queries with what whole vectors find for them."""

    def __init__(self, vectors: np.ndarray, queries: np.ndarray | None, k: int):
        check_positive("k", k)
        if len(vectors) < 2 or (queries is not None and not len(queries)):
            raise DataError(f"{len(vectors)} vectors and {0 if queries is None else len(queries)} queries: nothing to compare")
        self.own = None
        if queries is None:
            self.own = np.random.default_rng(SEED).permutation(len(vectors))[:MOST_QUERIES]
            queries = vectors[self.own]
        self.vectors, self.queries = vectors, queries
        self.k = min(k, len(vectors) - (self.own is not None))
        left_out = None if self.own is None else [[int(place)] for place in self.own]
        self.truth = retrieve(queries, vectors, self.k, exclude=left_out)

    def recall(self, coded: Compressed) -> Recall:
        found = coded.search(self.queries, self.k + (self.own is not None)).ids
        shares = [
            self._share(n, row[row != (-1 if self.own is None else self.own[n])][: self.k]) for n, row in enumerate(found)
        ]
        value = metrics.interval(torch.tensor(shares), seed=SEED)
        return Recall(coded.form, value, coded.form.bytes(self.vectors.shape[1]))

    def _share(self, row: int, found: np.ndarray) -> float:
        last = self.truth.scores[row][-1]
        scores = self.vectors[found].astype(np.float64) @ self.queries[row].astype(np.float64)
        return float((scores >= last - 1e-6).sum() / self.truth.ids.shape[1])
