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
from hardwon.models.chat import Chat, open_body, speaks
from hardwon.models.embedder import Embedder, in_turn
from hardwon.models.lora import merged
from hardwon.models.options import Dtype, LoRA, Options
from hardwon.models.outputs import outputs
from hardwon.models.precision import Precision
from hardwon.models.preflight import refusal
from hardwon.models.question import Question
from hardwon.models.scorer import Pair, by_pairs


class Reranker:
    """A model that reads query and candidate together.

    Any model that `CrossEncoder` loads works, and any chat model: that is asked whether the two belong together, and its score
    is the log-odds of Yes of one forward pass; nothing is generated. Whatever is trained loads with `CrossEncoder(path)`.

    Args:
        body: see below.
        question: what a chat model is asked; what it was saved with, or else hardwon's own, if None.

    Attributes:
        body: the `CrossEncoder` with the way pairs are rendered for it.
        chat: asks it, where it is a chat model; None for any other.

    Raises:
        ModelError: a question for a model that is not asked.
        JudgeError: a chat model that has no tokens for the two answers, or the same for both.
    """

    def __init__(self, body: Body, question: Question | None = None):
        self.body = body
        self.chat = Chat(body, "pairwise", question) if speaks(body) else None
        if self.chat is None and question is not None:
            raise ModelError("this model is no chat model, so that nothing is asked of it: leave question out")

    @classmethod
    def load(  # noqa: PLR0913  (each of them is one thing that people set)
        cls,
        path: str | Path,
        *,
        question: Question | None = None,
        instruction: str | Mapping[str, str] | None = None,
        lora: LoRA | None = None,
        freeze: tuple[str, ...] = (),
        max_pixels: int | None = None,
        dtype: Dtype | None = None,
        attention: str | None = None,
        device: str | None = None,
        vision_cache: Path | None = None,
        precision: Precision = "fp32",
    ) -> "Reranker":
        """Load a model folder or a name on the hub: of a reranker, or of a chat model as it comes.

        Args:
            path: as `CrossEncoder` takes it, or any model that transformers generates text with. Remote code is never run.
            question: what a chat model is asked.
            instruction: of queries that bring none, for chat models; see `Options`.
            lora: see `Options`.
            freeze: see `Options`.
            max_pixels: see `Options`.
            dtype: see `Options`.
            attention: see `Options`.
            device: see `Embedder.load`.
            vision_cache: see `Embedder.load`.
            precision: "bf16" scores in bfloat16 where that is safe, "auto" where the machine is also faster at it.

        Raises:
            ModelError: as `Embedder.load`.
            JudgeError: see `Reranker`.
            MissingExtra: as `Embedder.load`.
        """
        options = Options(None, instruction, lora, freeze, max_pixels, dtype, attention)
        return cls(open_body(path, device, vision_cache, precision, options), question).freeze(freeze)

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
        said = [] if self.chat is None else [self.chat.asked.question.fingerprint]
        return fingerprint(["reranker", self.body.identity(), *said])

    def cost(self, pair: Pair) -> int:
        """Tokens, about: what a batch is filled by."""
        if self.chat is not None:
            return self.chat.cost(pair, len(self.chat.asked.question.text))
        return self.body.cost(pair[0]) + self.body.cost(pair[1])

    def name(self, pair: Pair) -> str:
        """How errors speak of a pair."""
        return f"the pair of items {pair[0].key[:12]} ({pair[0].text[:60]!r}) and {pair[1].key[:12]} ({pair[1].text[:60]!r})"

    def refusal(self, query: Item, item: Item) -> str:
        """Why the model cannot read a pair although it can read either; "" if it can, as far as headers of pictures tell."""
        return refusal(self.body, (query, item))

    def kind(self, pair: Pair) -> tuple[int, ...]:
        """Pairs of one kind go through the model together."""
        return (self.body.kind(pair[0]), self.body.kind(pair[1])) if self.chat is None else self.chat.kind(pair)

    def forward(self, pairs: Sequence[Pair]) -> Float[Tensor, " n"]:
        """Log-odds with a graph, as one batch, or in turn what the model cannot read together (`Body.kind`)."""
        chat, kinds = self.chat, [self.kind(pair) for pair in pairs]
        if len(set(kinds)) > 1:
            return in_turn(pairs, kinds, self.forward)
        if chat is not None:
            return chat.odds(pairs)
        rows = [list(pair) for pair in pairs]
        features = self.body.features(rows)
        with self.body.blaming(rows):
            return self.body.model(features)["scores"].float().squeeze(-1)

    def score_pairs(self, pairs: Sequence[Pair], *, progress: str = "") -> np.ndarray:
        """Log-odds that each candidate belongs to its query, [n], float32. Identical pairs are scored once.

        Raises:
            BadItems: items that cannot be used, before anything is computed; names them all.
            ModelError: odds that are not finite, or a pair that cannot be read together or is too large for memory; names it.

        What the prompts of one query begin with a chat model reads once; see `Judge`.
        """
        if self.chat is not None:
            with self.evaluating():
                return self.chat.score_pairs(pairs, progress)
        return outputs(self, pairs, (), doing="scoring", unit="pairs", progress=progress)

    def score(self, query: Item, items: Sequence[Item]) -> np.ndarray:
        """Log-odds of each item for one query, [k]."""
        return self.score_pairs([(query, item) for item in items])

    def score_lists(self, queries: Sequence[Item], lists: Sequence[Sequence[Item]], *, progress: str = "") -> list[np.ndarray]:
        """As of a `ListScorer`: log-odds of the candidates of each query."""
        return by_pairs(self, queries, lists, progress=progress)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Dropout off within the block."""
        with self.body.evaluating():
            yield

    def freeze(self, parts: Iterable[str]) -> "Reranker":
        """Exclude parts from training; see `Embedder.freeze`."""
        self.body.freeze(parts)
        return self

    def save(self, path: str | Path, about: Mapping[str, Any] | None = None, *, merge: bool = False) -> None:
        """Write a folder that `CrossEncoder(path)` loads.

        Its `predict` gives the sigmoid of our log-odds, or the log-odds with `activation_fn=torch.nn.Identity()`. Of a model
        with an adapter only that is written, with the name of its base.

        Args:
            path: the folder.
            about: how the model came about: kept in `hardwon.json`, shown in the card.
            merge: work the adapter into the weights and write them whole.

        Raises:
            ModelError: nothing to merge.
        """
        save(merged(self.body.model) if merge else self.body.model, Path(path), about or {})


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
