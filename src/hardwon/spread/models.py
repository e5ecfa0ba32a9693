"""Models that work in several processes: `SpreadEncoder` and `SpreadJudge` stand where an encoder or a judge stands."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hardwon.items import Item
from hardwon.models.options import Dtype
from hardwon.models.precision import Precision
from hardwon.models.question import Question
from hardwon.models.scorer import Encoder, Judgements, Pair, Scorer, YesNo, judgements, judgements_of_readable
from hardwon.spread.engines import Workers, spread
from hardwon.spread.tasks import by_ray, row_of


class SpreadEncoder:
    """An embedder whose chunks are embedded by workers, each of which loads the model itself.

    Args:
        inner: the embedder, loaded here: it says what can be read, and does what a worker failed at.
        model: its folder, or its name on the hub, for the workers; they use it as it was saved, without options.
        workers: who they are.
        below: folder, seen by all of them, for the work under way.
    """

    def __init__(self, inner: Encoder, model: Path | str, *, workers: Workers, below: Path):
        self.inner, self.workers, self.below = inner, workers, below
        self.task = {"kind": "embed", "model": named(model), "fingerprint": inner.fingerprint}

    @property
    def fingerprint(self) -> str:
        """As `Encoder.fingerprint`: whoever computes them, vectors are the model's."""
        return self.inner.fingerprint

    @property
    def dim(self) -> int:
        """As `Encoder.dim`."""
        return self.inner.dim

    def encode(self, items: Sequence[Item], *, progress: str = "") -> np.ndarray:
        """As `Encoder.encode`, by this process: what comes in one call is one chunk."""
        return self.inner.encode(items, progress=progress)

    def encode_each(self, chunks: Sequence[Sequence[Item]]) -> Iterator[np.ndarray]:
        """Vectors of each chunk, in their order."""
        rows = [[row_of(item) for item in chunk] for chunk in chunks]
        outputs = spread(self.below, self.task, rows=rows, workers=self.workers, entry=by_ray)
        for chunk, output in zip(chunks, outputs, strict=True):
            yield self.inner.encode(chunk) if output is None else output.arrays["vectors"]


@dataclass(frozen=True)
class Chat:
    """How a chat model is asked; see `Judge.load`."""

    question: Question
    dtype: Dtype | None = None
    max_pixels: int | None = None
    tokens: int = 8192


class SpreadJudge:
    """A judge whose batches are judged by workers, each of which loads the model itself.

    Args:
        inner: the judge, loaded here; a `Blend` if `blend` is given.
        model: its folder or name.
        workers: who they are.
        below: as of `SpreadEncoder`.
        precision: of a reranker.
        chat: for a chat model that is asked in words.
        blend: "model" (of the embedder), "bias", "of_cosine" and "of_odds" of a `Blend` around it.
    """

    def __init__(
        self,
        inner: YesNo | Scorer,
        model: Path | str,
        *,
        workers: Workers,
        below: Path,
        precision: Precision = "fp32",
        chat: Chat | None = None,
        blend: Mapping[str, Any] | None = None,
    ):
        self.inner, self.workers, self.below = inner, workers, below
        told = {"precision": precision, "chat": None if chat is None else asdict(chat), "blend": blend and dict(blend)}
        self.task = {"kind": "judge", "model": named(model), "fingerprint": inner.fingerprint, **told}

    @property
    def fingerprint(self) -> str:
        """As `YesNo.fingerprint`."""
        return self.inner.fingerprint

    @property
    def at_once(self) -> int:
        """As `ManyJudge.at_once`."""
        return self.workers.count

    def judge(self, pairs: Sequence[Pair], *, progress: str = "") -> Judgements:
        """As `YesNo.judge`, by this process."""
        return judgements(self.inner, pairs, progress=progress)

    def judge_each(self, batches: Sequence[Sequence[Pair]], *, skip: bool) -> Iterator[Judgements]:
        """Judgements of each batch, in their order; `skip`: as `judgements_of_readable`."""
        task = {**self.task, "skip": skip}
        rows = [[[row_of(query), row_of(candidate)] for query, candidate in batch] for batch in batches]
        for batch, output in zip(batches, spread(self.below, task, rows=rows, workers=self.workers, entry=by_ray), strict=True):
            if output is None:
                yield (judgements_of_readable if skip else judgements)(self.inner, batch)
            else:
                problems = {int(n): why for n, why in json.loads(output.notes["problems"]).items()}
                yield Judgements(output.arrays["yes"], output.arrays["no"], problems)


def named(model: Path | str) -> str:
    """A model as workers elsewhere find it."""
    return str(Path(model).resolve()) if Path(model).exists() else str(model)
