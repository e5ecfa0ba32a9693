"""`Embedder`: items in, unit vectors out, around any `SentenceTransformer`."""

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hardwon.artifacts import fingerprint
from hardwon.errors import ModelError
from hardwon.items import Item
from hardwon.models.body import Body, plan
from hardwon.models.preflight import decoding, refuse
from hardwon.models.scorer import Pair
from hardwon.progress import bar

ENCODE_TOKENS = 2048  # of one forward pass without a graph


class Embedder:
    """An embedding model and what belongs to it.

    Any model that `SentenceTransformer` loads works; whatever is trained is saved in its format and loads with
    `SentenceTransformer(path)`, where this package need not be installed.

    Attributes:
        body: the `SentenceTransformer` with the way items are rendered for it.
        dim: width of the vectors.
    """

    def __init__(self, body: Body):
        self.body = body
        self.dim = int(body.model.get_embedding_dimension())

    @classmethod
    def load(cls, path: str | Path, *, device: str | None = None, vision_cache: Path | None = None) -> "Embedder":
        """Load a model folder or a name on the hub.

        Args:
            path: folder or name, as `SentenceTransformer` takes it. Remote code is never run.
            device: "cpu", "cuda" ...; the best there is if None.
            vision_cache: folder where features of the vision tower are kept between runs, for architectures that allow it.

        Raises:
            ModelError: nothing there, not a model, or no finite maximum length.
        """
        from sentence_transformers import SentenceTransformer

        return cls(Body.load(SentenceTransformer, path, device, vision_cache, "fp32"))

    @property
    def module(self) -> nn.Module:
        """The module whose parameters are trained."""
        return self.body.model

    @property
    def fingerprint(self) -> str:
        """Identity of weights, pre-processing and pooling: changes when the vectors may."""
        return fingerprint(["embedder", self.body.identity()])

    def cost(self, item: Item) -> int:
        """Tokens, about: what a batch is filled by."""
        return self.body.cost(item)

    def forward(self, items: Sequence[Item]) -> Float[Tensor, "n d"]:
        """Unit vectors with a graph, as one batch (a dual encoder reads texts and pictures in turn)."""
        seeing = [bool(item.images) for item in items]
        if not self.body.fused and any(seeing) and not all(seeing):
            sides = [[n for n, sees in enumerate(seeing) if sees == side] for side in (False, True)]
            made = torch.cat([self.forward([items[n] for n in side]) for side in sides])
            return made[torch.tensor([n for side in sides for n in side], device=made.device).argsort()]
        rows = [[item] for item in items]
        features = self.body.features(rows)
        with self.body.blaming(rows):
            return F.normalize(self.body.model(features)["sentence_embedding"].float(), dim=-1)

    @torch.no_grad()
    def encode(self, items: Sequence[Item], *, progress: str = "") -> np.ndarray:
        """Unit vectors [n d], float32. Identical items are encoded once; batches are filled by tokens, longest first.

        Raises:
            BadItems: items that cannot be used, before anything is computed; names them all.
            ModelError: vectors that are not finite; names the first item.
        """
        refuse(self.body, items)
        place: dict[str, int] = {}
        rows = [place.setdefault(item.key, len(place)) for item in items]
        distinct = list({item.key: item for item in items}.values())
        made = np.zeros((len(distinct), self.dim), dtype=np.float32)
        with decoding(self.body, distinct), self.evaluating():
            self.body.prepare(distinct, bool(progress))
            with maybe_bar(progress, len(distinct)) as advance:
                for chunk in plan([self.cost(item) for item in distinct], ENCODE_TOKENS):
                    made[chunk] = self.forward([distinct[n] for n in chunk]).cpu().numpy()
                    advance(len(chunk))
        if not np.isfinite(made).all():
            bad = distinct[int(np.flatnonzero(~np.isfinite(made).all(axis=1))[0])]
            raise ModelError(f"the model gives vectors that are not finite, first for item {bad.key[:12]} ({bad.text[:60]!r})")
        return made[rows]

    def score_pairs(self, pairs: Sequence[Pair], *, progress: str = "") -> np.ndarray:
        """Cosine of each (query, candidate) pair, [n], float32."""
        vectors = self.encode([item for pair in pairs for item in pair], progress=progress)
        return np.einsum("nd,nd->n", vectors[0::2], vectors[1::2])

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Dropout off within the block."""
        with self.body.evaluating():
            yield

    def freeze(self, parts: Iterable[str]) -> "Embedder":
        """Exclude parts from training: "vision", "words" (the word embeddings), or the start of a parameter's name.

        Raises:
            ModelError: a part that matches no parameter; names the parts there are.
        """
        self.body.freeze(parts)
        return self

    def save(self, path: Path, about: dict[str, Any] | None = None) -> None:
        """Write a folder that `SentenceTransformer(path)` loads with the same vectors; `about` is kept in `hardwon.json`."""
        self.body.model.save(str(path), create_model_card=False)
        (path / "hardwon.json").write_text(json.dumps(about or {}, indent=1, sort_keys=True), encoding="utf-8")


@contextlib.contextmanager
def maybe_bar(what: str, total: int, unit: str = "items") -> Iterator[Any]:
    """A progress bar, or nothing when there is no name for the work."""
    if not what:
        yield lambda n=1, note="": None
        return
    with bar(what, total, unit) as advance:
        yield advance
