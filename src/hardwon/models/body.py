"""What `Embedder` and `Reranker` share: a sentence-transformers model and the way items are rendered for it."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hardwon.errors import ModelError
from hardwon.items import Item
from hardwon.models.length import GUESS, PictureTokens, readable, shortened
from hardwon.models.loading import control_tokens, has_template, open_model
from hardwon.models.precision import Precision, computed_in
from hardwon.models.render import payload, refuse_parts, words
from hardwon.models.vision import VisionCache, can_cache, weights_digest


def plan(costs: Sequence[int], budget: int) -> list[list[int]]:
    """Positions grouped into chunks, longest first, so that rows x longest row stays within the budget.

    Equal costs stay in order, so the plan depends on nothing but the costs.

    >>> plan([3, 9, 4], 9)
    [[1], [2, 0]]
    """
    chunks: list[list[int]] = []
    longest = 0
    for n in sorted(range(len(costs)), key=lambda n: -costs[n]):
        if not chunks or (len(chunks[-1]) + 1) * longest > budget:
            chunks.append([])
            longest = costs[n]
        chunks[-1].append(n)
    return chunks


class Body:
    """A `SentenceTransformer` or `CrossEncoder`, rendered for by us.

    Args:
        model: the model; its first module is a sentence-transformers `Transformer`.
        vision_cache: folder for features of the vision tower, where the architecture allows that; None: no cache.
        precision: of scoring (training has its own setting): "bf16" computes in bfloat16 where that is safe, "auto" does so
            where the machine is faster at it.

    Attributes:
        vision: features of the tower by picture; None where they are computed every time.
    """

    def __init__(self, model: Any, vision_cache: Path | None = None, precision: Precision = "fp32"):
        self.model = model
        self.precision = computed_in(precision, model.device.type)
        self.vision = self._cache(vision_cache) if vision_cache is not None else None
        self._choose_attention()
        self.special = control_tokens(self.tokenizer, getattr(model[0], "processor", None))
        self.picture_tokens = PictureTokens(getattr(model[0], "processor", None), getattr(self.transformer, "config", None))
        self._digest: tuple[Any, str] | None = None
        self._frames: dict[int, int] = {}

    @classmethod
    def load(cls, kind: Any, path: str | Path, device: str | None, vision_cache: Path | None, precision: Precision) -> "Body":
        """Load with `SentenceTransformer` or `CrossEncoder`; errors as `open_model`."""
        model = open_model(kind, path, device)
        return cls(model, vision_cache, precision)

    def _choose_attention(self) -> None:
        # Measured on two cores: for sequences of 20 to 60 tokens the plain attention takes 0.74 x the time of the fused one.
        if can_cache(self.transformer) and self.model.device.type == "cpu":
            self.transformer.set_attn_implementation("eager")

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, also of a model with a multimodal processor."""
        return getattr(self.model[0], "tokenizer", None) or self.model.tokenizer

    @property
    def transformer(self) -> Any:
        """The transformers model inside, or None for other kinds (static embeddings)."""
        return getattr(self.model[0], "model", None)

    @property
    def modalities(self) -> tuple[str, ...]:
        """What can be read: "text", "image" ..."""
        return tuple(m for m in self.model.modalities if isinstance(m, str) and m != "message")

    @property
    def fused(self) -> bool:
        """Whether text and pictures, or several pictures, can be read together; dual encoders (CLIP, SigLIP) cannot."""
        return "message" in self.model.modalities or len(self.modalities) < 2

    def identity(self) -> list[str]:
        """Weights and everything around them; the weights are hashed again only after they changed."""
        state = tuple((p.data_ptr(), p._version) for p in self.model.parameters())
        if self._digest is None or self._digest[0] != state:
            self._digest = (state, weights_digest(self.model))
        processor = getattr(self.model[0], "processor", None)
        around = [repr(self.model), str(self.model.max_seq_length), str(getattr(processor, "chat_template", ""))]
        pictures = getattr(processor, "image_processor", None)
        # The class too: the same settings in PIL and in torchvision give slightly different pixels.
        kind = type(pictures).__name__
        return [self._digest[1], *around, kind, str(pictures.to_dict() if pictures is not None else "")]

    def cost(self, item: Item) -> int:
        """Tokens of an item, about: four characters a token, and the model's picture tokens."""
        text = len(item.instruction) + len(item.text)
        seen = self.picture_tokens.of(item.images)
        seen = GUESS * len(item.images) if seen is None else seen
        return self._frame + min(text // 4 + 1, self.model.max_seq_length) + seen

    @cached_property
    def _frame(self) -> int:
        """Tokens around an item: those of the chat template, or a beginning and an end."""
        if self.vision is not None or "message" not in self.model.modalities:
            return 2
        return self._around(1)

    def _around(self, parts: int) -> int:
        """Tokens of the chat template around a row of one item or two."""
        if parts not in self._frames:
            row = ({"text": "a"},) * parts
            self._frames[parts] = len(self.model.preprocess([row if parts > 1 else row[0]])["input_ids"][0])
        return self._frames[parts]

    def check(self, row: Sequence[Item]) -> None:
        """Refuse what the model cannot read, by its parts and the headers of its pictures.

        Args:
            row: one item (embedder) or two (reranker: query, candidate).

        Raises:
            ModelError: a picture for a model of text, a shape that the processor refuses, more pictures than the model takes.
            BadMedia: a picture whose header cannot be read.
        """
        for item in row:
            refuse_parts(item, self.modalities, self.fused)
            if item.images and not self._places_pictures:
                raise ModelError(
                    f"item {item.key[:12]} holds a picture, but the model's processor has no chat template that says where "
                    "it goes: copy chat_template.jinja from the original model"
                )
        self._room(row)

    @cached_property
    def _places_pictures(self) -> bool:
        # A model that puts pictures among words learns from the template where.
        return not hasattr(getattr(self.model[0], "processor", None), "image_token") or has_template(self.model[0])

    def _room(self, row: Sequence[Item]) -> int | None:
        """Tokens that are left for text beside the pictures of a row; None without pictures."""
        known = [self.picture_tokens.of(item.images) for item in row]
        seen = sum(tokens or 0 for tokens in known)
        if not seen or None in known:
            return None
        marks = 2 * sum(len(item.images) for item in row)  # one before and one after each picture
        room = self.model.max_seq_length - seen - self._around(len(row)) - marks
        if room < 0:
            names = " and ".join(f"item {item.key[:12]}" for item in row if item.images)
            raise ModelError(
                f"{names} comes to {seen} tokens of pictures, but the model takes {self.model.max_seq_length} "
                "in all: make the pictures smaller, or give it fewer of them"
            )
        return room

    def _cut(self, row: Sequence[Item]) -> Callable[[Item, str], str]:
        """Shortens texts so that pictures and template stay whole: where those are cut, another kind of token is pooled."""
        room = self._room(row)
        if room is None:
            # Sentence-transformers cuts plain text exactly, and keeps the template's end.
            return lambda item, text: readable(text, self.tokenizer, self.model.max_seq_length)
        share = room // max(sum(bool(words(item, ())) for item in row), 1)
        return lambda item, text: shortened(text, self.tokenizer, share)

    def freeze(self, parts: Iterable[str]) -> None:
        """See `Embedder.freeze`."""
        for part in parts:
            matched = [p for name, p in self.model.named_parameters() if _belongs(name, part)]
            if not matched:
                names = sorted({".".join(name.split(".")[:4]) for name, _ in self.model.named_parameters()})
                raise ModelError(
                    f"no parameter belongs to {part!r}. Parts: vision, words, or the start of {', '.join(names[:12])}"
                )
            for parameter in matched:
                parameter.requires_grad_(False)

    def _cache(self, folder: Path | None) -> VisionCache | None:
        if not can_cache(self.transformer):
            return None
        self.transformer.vision_tower.eval()
        return VisionCache(self.transformer.vision_tower, self.model[0].processor.image_processor, folder)

    def settle_vision(self) -> None:
        """Before training: features are kept if the tower is frozen, and forgotten if it is going to change."""
        if not can_cache(self.transformer):
            return
        if any(p.requires_grad for p in self.transformer.vision_tower.parameters()):
            self.vision = None
        elif self.vision is None:
            self.vision = self._cache(None)

    def prepare(self, items: Iterable[Item], progress: bool) -> None:
        """Compute vision features that are missing, with a bar of its own when there are many."""
        if self.vision is not None and progress:
            self.vision.prepare(items)

    def features(self, rows: Sequence[Sequence[Item]]) -> dict[str, Any]:
        """Model inputs for rows of one item (embedder) or two (reranker: query, candidate).

        Raises:
            ModelError: as `check`, and whatever else the processor refuses.
            BadMedia: a picture that cannot be decoded.
        """
        for row in rows:
            self.check(row)
        with self.blaming(rows):
            return self._cached_features(rows) if self.vision is not None else self._rendered(rows)

    @contextlib.contextmanager
    def blaming(self, rows: Sequence[Sequence[Item]]) -> Iterator[None]:
        """Turn a ValueError of processor or model into a ModelError that names what it was given."""
        try:
            yield
        except ValueError as error:
            given = [item for row in rows for item in row]
            first = next((item for item in given if item.images), given[0])
            more = f" and {len(given) - 1} others" if len(given) > 1 else ""
            raise ModelError(f"the model cannot read item {first.key[:12]} ({first.label}){more}: {error}") from error

    def _rendered(self, rows: Sequence[Sequence[Item]]) -> dict[str, Any]:
        made = []
        for row in rows:
            cut = self._cut(row)
            made.append([payload(item, self.special, self.modalities, self.fused, cut) for item in row])
        if len(rows[0]) == 1:
            features = self.model.preprocess([row[0] for row in made])
        elif "message" in self.model.modalities:
            features = self.model.preprocess([tuple(row) for row in made])
        else:  # a model of text alone takes pairs as plain strings; within a pair they are never taken for a path or URL
            features = self.model.preprocess([tuple(part["text"] for part in row) for row in made])
        return {k: v.to(self.model.device) if isinstance(v, torch.Tensor) else v for k, v in features.items()}

    def _cached_features(self, rows: Sequence[Sequence[Item]]) -> dict[str, Any]:
        """The same tokens as sentence-transformers renders, with the tower's features looked up instead of computed."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        assert self.vision is not None
        texts = self._prompts(rows)
        features = dict(
            self.tokenizer(texts, padding=True, truncation=True, max_length=self.model.max_seq_length, return_tensors="pt")
        )
        features = {k: v.to(self.model.device) for k, v in features.items()} | {"modality": "message"}
        pictures = [picture for row in rows for item in row for picture in item.images]
        if pictures:
            seen = self.vision.features(pictures).to(self.model.device)
            projected = self.transformer.multi_modal_projector(seen)
            features["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=projected)}
        return features

    def _prompts(self, rows: Sequence[Sequence[Item]]) -> list[str]:
        """What the model's chat template makes of the rows, with a placeholder for every picture token."""
        processor = self.model[0].processor
        roles = ("query", "document") if len(rows[0]) == 2 else ("user",)
        talks = []
        for row in rows:
            talk, cut = [], self._cut(row)
            for role, item in zip(roles, row, strict=True):
                text = cut(item, words(item, self.special))
                content = [{"type": "image"}] * len(item.images) + ([{"type": "text", "text": text}] if text else [])
                talk.append({"role": role, "content": content})
            talks.append(talk)
        made = processor.apply_chat_template(talks, tokenize=False)
        return [text.replace(processor.image_token, processor.image_token * self.picture_tokens.fixed) for text in made]

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Dropout off and the precision of scoring within the block."""
        training = self.model.training
        self.model.eval()
        try:
            with torch.autocast(self.model.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
                yield
        finally:
            self.model.train(training)
            self._keep_tower_still()

    def train(self) -> None:
        """Dropout on, but a convolutional tower keeps its running statistics, frozen or not."""
        self.model.train()
        self._keep_tower_still()

    def _keep_tower_still(self) -> None:
        # Statistics of a batch would make the gradient depend on how a step is cut into chunks, and count a replayed one twice.
        if can_cache(self.transformer):
            self.transformer.vision_tower.eval()


def _belongs(name: str, part: str) -> bool:
    inner = name.split(".", 2)[-1]
    if part == "vision":
        return any(f"{tower}." in name for tower in ("vision_tower", "visual", "vision_model"))
    if part == "words":
        return any(f"{table}." in name for table in ("word_embeddings", "embed_tokens", "token_embedding"))
    return name.startswith(part) or inner.startswith(part)


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """Parameters that training may change."""
    return [p for p in module.parameters() if p.requires_grad]
