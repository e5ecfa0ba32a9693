"""`Embedder`: items in, unit vectors out, around any `SentenceTransformer`."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hardwon.artifacts import fingerprint
from hardwon.items import Item
from hardwon.models.body import Body
from hardwon.models.card import save
from hardwon.models.lora import merged
from hardwon.models.options import Dtype, LoRA, Options, Pooling
from hardwon.models.outputs import outputs
from hardwon.models.scorer import Pair


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
    def load(  # noqa: PLR0913  (each of them is one thing that people set)
        cls,
        path: str | Path,
        *,
        pooling: Pooling | None = None,
        instruction: str | Mapping[str, str] | None = None,
        lora: LoRA | None = None,
        freeze: tuple[str, ...] = (),
        max_pixels: int | None = None,
        dtype: Dtype | None = None,
        attention: str | None = None,
        device: str | None = None,
        vision_cache: Path | None = None,
    ) -> "Embedder":
        """Load a model folder or a name on the hub; what is not said stays as the model's folder says it.

        Args:
            path: folder or name, as `SentenceTransformer` takes it; an adapter's folder too. Remote code is never run.
            pooling: see `Options`.
            instruction: see `Options`.
            lora: see `Options`.
            freeze: see `Options`.
            max_pixels: see `Options`.
            dtype: see `Options`.
            attention: see `Options`.
            device: "cpu", "cuda" ...; the best there is if None.
            vision_cache: folder where features of pictures are kept between runs: of the built-in backbone those of its vision
                tower, of LLaVA, LLaVA-OneVision and the Qwen-VL family what their language model reads. Nothing is kept for
                other architectures. Training uses them if all they depend on is frozen: of LLaVA "vision" and
                "multi_modal_projector", of LLaVA-OneVision "image_newline" as well, of others "vision".

        Raises:
            ModelError: nothing there, not a model, no finite maximum length, or an option that this model cannot have.
            MissingExtra: the model or an option needs a package that is not installed.
        """
        from sentence_transformers import SentenceTransformer

        options = Options(pooling, instruction, lora, freeze, max_pixels, dtype, attention)
        return cls(Body.load(SentenceTransformer, path, device, vision_cache, "fp32", options)).freeze(freeze)

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

    def name(self, item: Item) -> str:
        """How errors speak of an item."""
        return f"item {item.key[:12]} ({item.text[:60]!r})"

    def kind(self, item: Item) -> tuple[int, str]:
        """Items of one kind go through the model together."""
        return self.body.kind(item), self.body.prompt(item)

    def forward(self, items: Sequence[Item]) -> Float[Tensor, "n d"]:
        """Unit vectors with a graph, as one batch, or in turn what the model cannot read together."""
        kinds = [self.kind(item) for item in items]
        if len(set(kinds)) > 1:
            return in_turn(items, kinds, self.forward)
        rows = [[item] for item in items]
        features = self.body.features(rows, kinds[0][1])
        with self.body.blaming(rows):
            return F.normalize(self.body.model(features)["sentence_embedding"].float(), dim=-1)

    def encode(self, items: Sequence[Item], *, progress: str = "") -> np.ndarray:
        """Unit vectors [n d], float32. Identical items are encoded once; batches are filled by tokens, longest first.

        Where memory runs out, batches get smaller; the vectors are the same.

        Raises:
            BadItems: items that cannot be used, before anything is computed, or whose vectors are not finite; names them all.
            ModelError: an item too large for memory; names it.
        """
        return outputs(self, items, (self.dim,), doing="encoding", unit="items", progress=progress)

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

    def save(self, path: str | Path, about: Mapping[str, Any] | None = None, *, merge: bool = False) -> None:
        """Write a folder that `SentenceTransformer(path)` loads with the same vectors, with a model card.

        Of a model with an adapter only that is written, with the name of its base.

        Args:
            path: the folder.
            about: how the model came about: kept in `hardwon.json`, shown in the card.
            merge: work the adapter into the weights and write them whole.

        Raises:
            ModelError: nothing to merge.
        """
        save(merged(self.body.model) if merge else self.body.model, Path(path), about or {})


def in_turn(rows: Sequence[Any], kinds: Sequence[Any], forward: Callable[[Sequence[Any]], Tensor]) -> Tensor:
    """What `forward` makes of the rows of each kind, put together in the order of the rows."""
    sides = [[n for n, kind in enumerate(kinds) if kind == side] for side in sorted(set(kinds))]
    made = torch.cat([forward([rows[n] for n in side]) for side in sides])
    return made[torch.tensor([n for side in sides for n in side], device=made.device).argsort()]
