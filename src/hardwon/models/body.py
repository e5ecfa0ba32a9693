"""What `Embedder` and `Reranker` share: a sentence-transformers model and the way items are rendered for it."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hardwon.errors import ModelError
from hardwon.items import Item
from hardwon.models.eyes import ChatEye, TowerEye, eye_of, mark
from hardwon.models.length import GUESS, PictureTokens, Shares, VideoTokens, readable, shortened
from hardwon.models.loading import control_tokens, has_template, open_model, prompt_for
from hardwon.models.options import Options
from hardwon.models.precision import Precision, computed_in
from hardwon.models.render import Show, as_shown, payload, refuse_parts, words
from hardwon.models.small import has_tower, settle_pixels
from hardwon.models.vision import VisionCache, weights_digest
from hardwon.pictures import open_picture


class Body:
    """A `SentenceTransformer` or `CrossEncoder`, rendered for by us.

    Args:
        model: the model; its first module is a sentence-transformers `Transformer`.
        vision_cache: folder for what the vision tower makes of pictures, where the architecture allows that; None: no cache.
        precision: of scoring (training has its own setting): "bf16" computes in bfloat16 where that is safe, "auto" does so
            where the machine is faster at it.

    Attributes:
        vision: what the tower makes of pictures, by picture; None where that is computed every time.
    """

    def __init__(self, model: Any, vision_cache: Path | None = None, precision: Precision = "fp32"):
        self.model = model
        settle_pixels(model)
        self.precision = computed_in(precision, model.device.type)
        self._choose_attention()
        self.special = control_tokens(self.tokenizer, self.processor)
        self.picture_tokens = PictureTokens(self.processor, getattr(self.transformer, "config", None))
        self.video_tokens = VideoTokens(model)
        self._shares = Shares(model, self.tokenizer)
        self._eye, self._home = eye_of(model[0], self.picture_tokens), vision_cache
        self.vision = self._cache() if vision_cache is not None else None
        self._digest: tuple[Any, str] | None = None
        self._frames: dict[tuple[int, str], int] = {}

    @classmethod
    def load(
        cls,
        kind: Any,
        path: str | Path,
        device: str | None,
        vision_cache: Path | None,
        precision: Precision,
        options: Options | None = None,
    ) -> "Body":
        """Load with `SentenceTransformer` or `CrossEncoder`; errors as `open_model`."""
        return cls(open_model(kind, path, device, options), vision_cache, precision)

    def _choose_attention(self) -> None:
        # Measured on two cores: for sequences of 20 to 60 tokens the plain attention takes 0.74 x the time of the fused one.
        if has_tower(self.transformer) and self.model.device.type == "cpu":
            self.transformer.set_attn_implementation("eager")

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, also of a model with a multimodal processor."""
        return getattr(self.model[0], "tokenizer", None) or self.model.tokenizer

    @property
    def processor(self) -> Any:
        """What sentence-transformers renders with: a processor of transformers, a tokenizer, or None."""
        return getattr(self.model[0], "processor", None)

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

    def kind(self, item: Item) -> int:
        """Items of one kind can be read in one batch.

        A dual encoder reads texts and pictures in turn; where a processor stacks videos, they need the same number of frames.
        """
        if not self.fused:
            return int(bool(item.images))
        return len(item.video) if self.video_tokens.stacked else 0

    def identity(self) -> list[str]:
        """Weights, everything around them and the number format; the weights are hashed again only after they changed."""
        state = tuple((p.data_ptr(), p._version) for p in self.model.parameters())
        if self._digest is None or self._digest[0] != state:
            self._digest = (state, weights_digest(self.model))
        around = [repr(self.model), str(self.model.max_seq_length), str(getattr(self.processor, "chat_template", ""))]
        around.append(repr((self.model.default_prompt_name, sorted(self.model.prompts.items()))))
        around.append(_spelling(self.tokenizer))
        if self.precision != "fp32":  # not said of float32, so that what was kept before is still found
            around.append(self.precision)
        pictures = getattr(self.processor, "image_processor", None)
        # The class too: the same settings in PIL and in torchvision give slightly different pixels.
        kind = type(pictures).__name__
        made = [self._digest[1], *around, kind, str(pictures.to_dict() if pictures is not None else "")]
        videos = getattr(self.processor, "video_processor", None)
        return made if videos is None else [*made, type(videos).__name__, str(videos.to_dict())]

    def cost(self, item: Item) -> int:
        """Tokens of an item, about: four characters a token, and the model's picture tokens."""
        text = len(item.instruction or self.prompt(item)) + len(item.text)
        shown = as_shown(item, self.modalities, self.fused)
        seen = self.picture_tokens.of(shown.images)
        seen = GUESS * len(shown.images) if seen is None else seen
        seen += self.video_tokens(shown.video) if shown.video else 0
        return self._frame + min(text // 4 + 1, self.model.max_seq_length) + seen

    @cached_property
    def _frame(self) -> int:
        """Tokens around an item: those of the chat template, or a beginning and an end."""
        kept = self.vision is not None and has_tower(self.transformer)
        if kept or "message" not in self.model.modalities:
            return 2
        return self._around(1)

    def prompt(self, item: Item) -> str:
        """What the model itself says before an item that brings no instruction; see `Options.instruction`."""
        return "" if item.instruction else prompt_for(self.model, item.modality)

    def _around(self, parts: int, prompt: str = "") -> int:
        """Tokens of the chat template around a row of one item or two, with the model's own prompt for one."""
        if (parts, prompt) not in self._frames:
            row = ({"text": "a"},) * parts
            made = self.model.preprocess([row] if parts > 1 else [row[0]], prompt or None)
            self._frames[parts, prompt] = len(made["input_ids"][0])
        return self._frames[parts, prompt]

    def check(self, row: Sequence[Item]) -> None:
        """Refuse what the model cannot read, by its parts and the headers of its pictures.

        Args:
            row: one item (embedder) or two (reranker: query, candidate).

        Raises:
            ModelError: a picture for a model of text, a shape that the processor refuses or blows up, more pictures than the
                model takes, two videos of different lengths where the processor stacks them.
            BadMedia: a picture whose header cannot be read.
        """
        for item in row:
            shown = as_shown(item, self.modalities, self.fused)
            refuse_parts(shown, self.modalities, self.fused)
            if shown.pictures and not self._places_pictures:
                raise ModelError(
                    f"item {item.key[:12]} holds a picture, but the model's processor has no chat template that says where "
                    "it goes: copy chat_template.jinja from the original model"
                )
            for picture in shown.images:
                self.picture_tokens.check(picture)
        self._check_videos([item for item in row if item.video])
        self._room(row)

    def _check_videos(self, row: Sequence[Item]) -> None:
        lengths = [self.video_tokens.frames(item.video) for item in row]
        if self.video_tokens.stacked and len(set(lengths)) > 1:
            names, counts = (" and ".join(parts) for parts in ((f"item {i.key[:12]}" for i in row), map(str, lengths)))
            raise ModelError(
                f"{names} hold videos of {counts} frames, but this model reads videos together only if they are equally long: "
                "give them the same number of frames"
            )

    @cached_property
    def _places_pictures(self) -> bool:
        # A model that puts pictures among words learns from the template where.
        return not hasattr(self.processor, "image_token") or has_template(self.model[0])

    def _room(self, row: Sequence[Item]) -> int | None:
        """Tokens that are left for the texts of a row beside its pictures and videos.

        None where nobody can say, and where sentence-transformers cuts texts well itself: a single one, and two of them that
        no template holds together.
        """
        shown = [as_shown(item, self.modalities, self.fused) for item in row]
        known = [self.picture_tokens.of(item.images) for item in shown]
        known += [self.video_tokens.known(item.video) for item in shown if item.video]
        seen = sum(tokens or 0 for tokens in known)
        if None in known or not (seen or (len(row) > 1 and "message" in self.model.modalities)):
            return None
        marks = 2 * sum(len(item.images) for item in shown)  # one before and one after each picture
        prompt = self.prompt(row[0]) if len(row) == 1 else ""
        room = self.model.max_seq_length - seen - self._around(len(row), prompt) - marks
        if room < 0:
            names = " and ".join(f"item {item.key[:12]}" for item in row if item.pictures)
            parts = {"pictures": any(item.images for item in row), "frames": any(item.video for item in row)}
            what = " and ".join(part for part, there in parts.items() if there)
            raise ModelError(
                f"{names} comes to {seen} tokens of {what}, but the model takes {self.model.max_seq_length} "
                f"in all: make the {what} smaller, or give it fewer of them"
            )
        return room

    def _cut(self, row: Sequence[Item]) -> Callable[[Item, str], str]:
        """Shortens texts so that pictures and template stay whole: where those are cut, another kind of token is pooled.

        Two texts are cut to equal shares, or the first could leave no room for the second.
        """
        room = self._room(row)
        if room is None and len(row) == 1:  # sentence-transformers cuts plain text exactly, and keeps the template's end
            return lambda item, text: readable(text, self.tokenizer, self.model.max_seq_length)
        texts = [words(as_shown(item, self.modalities, self.fused), self.special) for item in row]
        share = self._shares.of(texts, room)
        if room is None:  # of two texts without a template it cuts the longer one, as far as the other
            return lambda item, text: readable(text, self.tokenizer, self.model.max_seq_length)
        return lambda item, text: text if share is None else shortened(text, self.tokenizer, share)

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

    def _cache(self) -> VisionCache | None:
        if self._eye is None or (self._home is None and not self._eye.small):
            return None
        self._keep_tower_still()
        return VisionCache(self._eye, self._home)

    def settle_vision(self) -> None:
        """Before training: features are kept if all that they depend on is frozen, and forgotten if it is going to change.

        Of a chat model that is the projector (or merger) too, and they are kept only where it was loaded with a folder.
        """
        if self._eye is None or self._eye.learns:
            self.vision = None
        elif self.vision is None:
            self.vision = self._cache()

    def prepare(self, rows: Iterable[Sequence[Item]], progress: bool) -> None:
        """Compute vision features that are missing, with a bar of its own when there are many.

        Without a bar a tower's own are left to `features`, which makes those that it meets: a process that trains with others
        needs its share alone.

        Args:
            rows: as for `features`, but all of them.
            progress: whether there is a bar.
        """
        if self.vision is not None and (progress or not isinstance(self.vision.eye, TowerEye)):
            shown = ([as_shown(item, self.modalities) for item in row] for row in rows)
            self.vision.prepare(([picture for item in row for picture in item.images] for row in shown), progress)

    @property
    def _kept(self) -> VisionCache | None:
        """The cache, where a gradient need not pass through what is in it."""
        return self.vision if self.vision is not None and self.vision.eye.usable else None

    def features(self, rows: Sequence[Sequence[Item]], prompt: str = "") -> dict[str, Any]:
        """Model inputs for rows of one item (embedder) or two (reranker: query, candidate), with one prompt for all.

        Raises:
            ModelError: as `check`, and whatever else the processor refuses.
            BadMedia: a picture that cannot be decoded.
        """
        for row in rows:
            self.check(row)
        with self.blaming(rows):
            return self._features(rows, prompt)

    def _features(self, rows: Sequence[Sequence[Item]], prompt: str) -> dict[str, Any]:
        kept = self._kept
        eye = None if kept is None else kept.eye
        shown = [[as_shown(item, self.modalities) for item in row] for row in rows]
        if isinstance(eye, TowerEye):
            return self._cached_features(shown, prompt)
        # A model that reads videos as such takes kept features of pictures only where there is none.
        if kept is None or not isinstance(eye, ChatEye) or any(item.video for row in shown for item in row):
            return self._on_device(self._rendered(rows, prompt, open_picture, self.model.preprocess))
        records = kept.records([[picture for item in row for picture in item.images] for row in shown])
        marks = iter([mark(record) for record in records])
        return self._on_device(eye.put_back(self._rendered(rows, prompt, lambda _: next(marks), eye.preprocess), records))

    @contextlib.contextmanager
    def blaming(self, rows: Sequence[Sequence[Item]]) -> Iterator[None]:
        """Turn a ValueError of processor or model into a ModelError that names what it was given."""
        try:
            yield
        except ValueError as error:
            given = [item for row in rows for item in row]
            first = next((item for item in given if item.pictures), given[0])
            more = f" and {len(given) - 1} others" if len(given) > 1 else ""
            raise ModelError(f"the model cannot read item {first.key[:12]} ({first.label}){more}: {error}") from error

    def _rendered(self, rows: Sequence[Sequence[Item]], prompt: str, show: Show, preprocess: Any) -> Mapping[str, Any]:
        made = []
        for row in rows:
            cut, least = self._cut(row), self.video_tokens.least
            made.append([payload(item, self.special, self.modalities, self.fused, cut, least, show) for item in row])
        if len(rows[0]) == 1:
            return preprocess([row[0] for row in made], prompt or None)
        if "message" in self.model.modalities:
            return preprocess([tuple(row) for row in made])
        # A model of text alone takes pairs as plain strings; within a pair they are never taken for a path or URL.
        return preprocess([tuple(part["text"] for part in row) for row in made])

    def _on_device(self, features: Mapping[str, Any]) -> dict[str, Any]:
        return {k: v.to(self.model.device) if isinstance(v, torch.Tensor) else v for k, v in features.items()}

    def _cached_features(self, rows: Sequence[Sequence[Item]], prompt: str) -> dict[str, Any]:
        """The same tokens as sentence-transformers renders, with the tower's features looked up instead of computed."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        assert self.vision is not None
        texts = self._prompts(rows, prompt)
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

    def _prompts(self, rows: Sequence[Sequence[Item]], prompt: str) -> list[str]:
        """What the model's chat template makes of the rows, with a placeholder for every picture token."""
        roles = ("query", "document") if len(rows[0]) == 2 else ("user",)
        talks = []
        for row in rows:
            talk: list[Any] = [{"role": "system", "content": [{"type": "text", "text": prompt}]}] if prompt else []
            cut = self._cut(row)
            for role, item in zip(roles, row, strict=True):
                text = cut(item, words(item, self.special))
                content = [{"type": "image"}] * len(item.images) + ([{"type": "text", "text": text}] if text else [])
                talk.append({"role": role, "content": content})
            talks.append(talk)
        made, token = self.processor.apply_chat_template(talks, tokenize=False), self.processor.image_token
        return [text.replace(token, token * self.picture_tokens.fixed) for text in made]

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
        if has_tower(self.transformer):
            self.transformer.vision_tower.eval()


def _belongs(name: str, part: str) -> bool:
    inner = name.split(".", 2)[-1]  # without the number of the module and where it holds the model: "0.model."
    if part == "vision":
        return any(f"{tower}." in name for tower in ("vision_tower", "visual", "vision_model"))
    if part == "words":
        return any(f"{table}." in name for table in ("word_embeddings", "embed_tokens", "token_embedding"))
    return name.startswith(part) or inner.startswith(part)


def _spelling(tokenizer: Any) -> str:
    """How words become tokens. What comes before the added tokens is left out: the last call's lengths are noted there."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    rules = repr(tokenizer) if fast is None else fast.to_str().partition('"added_tokens"')[2]
    return rules + str(getattr(tokenizer, "truncation_side", ""))


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """Parameters that training may change."""
    return [p for p in module.parameters() if p.requires_grad]
