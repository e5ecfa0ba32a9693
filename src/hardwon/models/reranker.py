"""`Reranker`: (query, candidate) pairs in, log-odds of "belongs" out, around any `CrossEncoder`."""

import contextlib
import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from hardwon.artifacts import fingerprint
from hardwon.distributed import World
from hardwon.errors import ModelError
from hardwon.items import Item
from hardwon.models.body import Body
from hardwon.models.card import pooling_of, save, write
from hardwon.models.embedder import Embedder, in_turn
from hardwon.models.outputs import outputs
from hardwon.models.precision import Precision
from hardwon.models.scorer import Pair


class Reranker:
    """A model that reads query and candidate together.

    Attributes:
        body: the `CrossEncoder` with the way pairs are rendered for it.
    """

    def __init__(self, body: Body):
        self.body = body

    @classmethod
    def load(
        cls, path: str | Path, *, device: str | None = None, vision_cache: Path | None = None, precision: Precision = "fp32"
    ) -> "Reranker":
        """Load a model folder or a name on the hub, as `CrossEncoder` takes it.

        Arguments and errors as `Embedder.load`; `precision` "bf16" scores in bfloat16 where that is safe,
        "auto" where the machine is also faster at it.
        """
        from sentence_transformers import CrossEncoder

        return cls(Body.load(CrossEncoder, path, device, vision_cache, precision))

    @classmethod
    def start_from(cls, embedder: Embedder, *, layers: int | None = None, seed: int = 0) -> "Reranker":
        """A reranker with a copy of an embedder's weights below a new linear score.

        Args:
            embedder: where to start from.
            layers: of the language model, from the bottom, that are kept; all if None. When time is short fewer layers learn
                more: they take more steps.
            seed: of the new weights.

        Raises:
            ModelError: an embedder that reads text and pictures by different encoders, or `layers` on an architecture that we
                cannot cut.
        """
        import tempfile

        from sentence_transformers import CrossEncoder
        from sentence_transformers.base.modules import Dense, Transformer
        from sentence_transformers.sentence_transformer.modules import Pooling

        if not embedder.body.fused:
            raise ModelError("this model has one encoder for text and one for pictures: it cannot read a pair together")
        if World.current().size > 1:  # transformers writes in the first process only
            transformer: Any = copy.deepcopy(embedder.body.model[0]).requires_grad_(True)
        else:
            with tempfile.TemporaryDirectory() as folder:
                write(embedder.body.model, Path(folder))
                transformer = Transformer(folder)
        if layers is not None:
            _cut(transformer.model, layers)
        width, mode = int(embedder.dim), cast(Any, pooling_of(embedder.body.model) or "mean")
        start = torch.randn(1, width, generator=torch.Generator().manual_seed(seed)) * 0.05
        head = Dense(width, 1, bias=True, activation_function=nn.Identity(), init_weight=start, module_output_name="scores")
        nn.init.zeros_(head.linear.bias)
        made = CrossEncoder(
            modules=[transformer, Pooling(width, pooling_mode=mode), head], device=str(embedder.body.model.device)
        )
        seen = embedder.body.vision
        return cls(Body(made, None if seen is None else seen.home))

    @property
    def module(self) -> nn.Module:
        """The module whose parameters are trained."""
        return self.body.model

    @property
    def fingerprint(self) -> str:
        """Identity of weights and pre-processing: changes when the scores may."""
        return fingerprint(["reranker", self.body.identity()])

    def cost(self, pair: Pair) -> int:
        """Tokens, about: what a batch is filled by."""
        return self.body.cost(pair[0]) + self.body.cost(pair[1])

    def name(self, pair: Pair) -> str:
        """How errors speak of a pair."""
        return f"the pair of items {pair[0].key[:12]} ({pair[0].text[:60]!r}) and {pair[1].key[:12]} ({pair[1].text[:60]!r})"

    def forward(self, pairs: Sequence[Pair]) -> Float[Tensor, " n"]:
        """Log-odds with a graph, as one batch, or in turn what the model cannot read together (`Body.kind`)."""
        kinds = [(self.body.kind(query), self.body.kind(item)) for query, item in pairs]
        if len(set(kinds)) > 1:
            return in_turn(pairs, kinds, self.forward)
        rows = [list(pair) for pair in pairs]
        features = self.body.features(rows)
        with self.body.blaming(rows):
            return self.body.model(features)["scores"].float().squeeze(-1)

    def score_pairs(self, pairs: Sequence[Pair], *, progress: str = "") -> np.ndarray:
        """Log-odds that each candidate belongs to its query, [n], float32. Identical pairs are scored once.

        Raises:
            BadItems: items that cannot be used, before anything is computed; names them all.
            ModelError: odds that are not finite, or a pair that cannot be read together or is too large for memory; names it.
        """
        return outputs(self, pairs, (), doing="scoring", unit="pairs", progress=progress)

    def score(self, query: Item, items: Sequence[Item]) -> np.ndarray:
        """Log-odds of each item for one query, [k]."""
        return self.score_pairs([(query, item) for item in items])

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Dropout off within the block."""
        with self.body.evaluating():
            yield

    def freeze(self, parts: Iterable[str]) -> "Reranker":
        """Exclude parts from training; see `Embedder.freeze`."""
        self.body.freeze(parts)
        return self

    def save(self, path: str | Path, about: Mapping[str, Any] | None = None) -> None:
        """Write a folder that `CrossEncoder(path)` loads; `about` is kept in `hardwon.json` and shown in the model card.

        Its `predict` gives the sigmoid of our log-odds, or the log-odds with `activation_fn=torch.nn.Identity()`.
        """
        save(self.body.model, Path(path), about or {})


def _cut(model: Any, layers: int) -> None:
    """Keep the first `layers` layers of a language model of BERT's kind."""
    language = getattr(model, "language_model", model)
    stack = getattr(getattr(language, "encoder", None), "layer", None)
    if stack is None:
        raise ModelError(f"cannot cut the layers of a {type(language).__name__}: leave layers at None")
    if not 1 <= layers <= len(stack):
        raise ModelError(f"layers must lie between 1 and {len(stack)}, got {layers}")
    language.encoder.layer = stack[:layers]
    language.config.num_hidden_layers = layers
