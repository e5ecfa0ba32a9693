"""How architectures look at pictures, and how what they saw is put back into a text.

Two kinds. Of the built-in backbone the tower's features are kept and the projector goes on learning. Of chat models everything
before the language model is kept, projector or merger included; texts are rendered by the model's own processor, whose image
processor is replaced by one that remembers what it said of each picture, so that the tokens are the same to the last one.
"""

import contextlib
import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from hardwon.items import Picture
from hardwon.models.loading import ENDLESS
from hardwon.models.small import has_tower
from hardwon.models.vision import Record, View, digest, weights_digest
from hardwon.pictures import open_picture

BATCH = 16  # measured on two cores: larger batches fall out of the cache of the processor
BATCH_TOKENS = 4096  # of a chat model: its pictures differ in size
LANGUAGE = "language_model"
CHAT = ("LlavaModel", "LlavaOnevisionModel", "Qwen2VLModel", "Qwen2_5_VLModel", "Qwen3VLModel")
# What processors say of pictures: where their patches lie, how large they were, how many there are in each text.
GRID, SIZES, COUNTS = "image_grid_thw", "image_sizes", "batch_num_images"
SHAPE = "shape"  # of one picture's pixels
# Of a configuration, what says nothing about pictures. Types of weights are in their digest.
ELSEWHERE = ("text_config", "_name_or_path", "transformers_version", "architectures", "dtype")


def eye_of(module: Any, tokens: Callable[[Picture], int]) -> "TowerEye | ChatEye | None":
    """How the model inside a `Transformer` of sentence-transformers looks at pictures; None if features cannot be kept."""
    model: Any = getattr(module, "model", None)
    if has_tower(model):
        return TowerEye(model.vision_tower, module.processor.image_processor)
    inner: Any = getattr(model, "base_model", None)  # of a generating model: what its head reads
    # With Pixtral's tower the tokens of a picture are of several kinds.
    if type(inner).__name__ not in CHAT or inner.config.vision_config.model_type == "pixtral":
        return None
    return ChatEye(module, tokens) if "message" in module.modalities else None


class TowerEye:
    """The convolutional tower of the built-in backbone.

    Args:
        tower: gives feature maps [n w h h'].
        processor: turns pictures into pixels.
    """

    names: tuple[str, ...] = ("",)
    small: bool = True

    def __init__(self, tower: nn.Module, processor: Any):
        self.tower, self.processor = tower, processor

    @property
    def learns(self) -> bool:
        """As `Eye.learns`."""
        return any(p.requires_grad for p in self.tower.parameters())

    @property
    def usable(self) -> bool:
        """As `Eye.usable`."""
        return True

    def state(self) -> Any:
        """As `Eye.state`."""
        return versions(self.tower.parameters()), self._settings

    def identity(self) -> str:
        """As `Eye.identity`."""
        return weights_digest(self.tower) + self._settings

    @property
    def _settings(self) -> str:
        # The class too: the same settings in PIL and in torchvision give slightly different pixels.
        return json.dumps([type(self.processor).__name__, self.processor.to_dict()], sort_keys=True, default=str)

    def views(self, pictures: Sequence[Picture]) -> list[View]:
        """Each is seen alone."""
        return [View(picture) for picture in pictures]

    def batches(self, views: Sequence[View]) -> list[list[View]]:
        """As many at a time as suit the processor's cache."""
        return [list(views[start : start + BATCH]) for start in range(0, len(views), BATCH)]

    @torch.no_grad()
    def look(self, views: Sequence[View]) -> list[Record]:
        """Features [t w]."""
        opened = [open_picture(view.picture) for view in views]
        pixels = self.processor(images=opened, return_tensors="pt")["pixel_values"].to(next(self.tower.parameters()).device)
        grid = self.tower(pixels.contiguous(memory_format=torch.channels_last)).last_hidden_state
        return [{"": made} for made in grid.flatten(2).transpose(1, 2).contiguous().cpu()]


class ChatEye:
    """Everything of a chat model that comes before the language model.

    Args:
        module: the `Transformer` of sentence-transformers.
        tokens: how many tokens a picture comes to, about.
    """

    names: tuple[str, ...] = ("", f"/{GRID}", f"/{SIZES}", f"/{SHAPE}")
    small: bool = False

    def __init__(self, module: Any, tokens: Callable[[Picture], int]):
        self.module, self.tokens = module, tokens
        self.model = module.model.base_model
        self._tiles = type(self.model).__name__ == "LlavaOnevisionModel"

    @property
    def learns(self) -> bool:
        """As `Eye.learns`."""
        return any(p.requires_grad for name, p in self.model.named_parameters() if not name.startswith(LANGUAGE))

    @property
    def usable(self) -> bool:
        """As `Eye.usable`."""
        return not self.learns or not (self.model.training or torch.is_grad_enabled())

    def state(self) -> Any:
        """As `Eye.state`."""
        weights = [p for name, p in self.model.named_parameters() if not name.startswith(LANGUAGE)]
        return versions(weights), self._settings()

    def identity(self) -> str:
        """As `Eye.identity`."""
        parts = {name: value for name, value in self.model.state_dict().items() if not name.startswith(LANGUAGE)}
        # The configuration says how weights are used: heads, layers that are read, tiles.
        config = {name: value for name, value in self.model.config.to_dict().items() if name not in ELSEWHERE}
        return digest(parts) + json.dumps(config, sort_keys=True, default=str) + self._settings()

    def _settings(self) -> str:
        pictures = self.module.processor.image_processor
        given = {kind: self.module.processing_kwargs.get(kind) for kind in ("image", "common")}
        # What says how strongly an adapter of peft counts is no weight.
        adapters = {
            name: [part.scaling, *(str(getattr(part, state, "")) for state in ("active_adapters", "disable_adapters"))]
            for name, part in self.model.named_modules()
            if isinstance(getattr(part, "scaling", None), dict) and not name.startswith(LANGUAGE)
        }
        return json.dumps([type(pictures).__name__, pictures.to_dict(), given, adapters], sort_keys=True, default=str)

    def views(self, pictures: Sequence[Picture]) -> list[View]:
        """LLaVA-OneVision looks at a picture in tiles only when it is alone."""
        return [View(picture, self._tiles and len(pictures) > 1) for picture in pictures]

    def batches(self, views: Sequence[View]) -> list[list[View]]:
        """As many as suit the memory, seen in the same way."""
        made: list[list[View]] = []
        room = 0
        for view in sorted(views, key=lambda view: view.together):
            cost = self.tokens(view.picture)
            if not made or len(made[-1]) == BATCH or cost > room or made[-1][0].together != view.together:
                made.append([])
                room = BATCH_TOKENS
            made[-1].append(view)
            room -= cost
        return made

    @torch.no_grad()
    def look(self, views: Sequence[View]) -> list[Record]:
        """Features [levels t w] and what the processor said; all levels but the first are added to deeper layers."""
        opened = [open_picture(view.picture) for view in views]
        shown = [{"image": picture} for picture in opened]
        if views[0].together:  # in one text, and never alone
            shown = [{"image": opened * 2 if len(opened) == 1 else opened}]
        # Only what is said of the pictures counts here, so their tokens need not fit.
        said = self.module.preprocess(shown, processing_kwargs={"text": {"max_length": ENDLESS}})
        device = next(self.model.parameters()).device
        where = {name: said[name].to(device) for name in (GRID, SIZES, COUNTS) if name in said}
        with self._still(), torch.autocast(device.type, enabled=False):
            seen = self.model.get_image_features(said["pixel_values"].to(device), **where, return_dict=True)
        made = []
        for n in range(len(views)):
            levels = [seen.pooler_output[n], *(level[n] for level in getattr(seen, "deepstack_features", None) or ())]
            record = {"": torch.stack(levels).cpu(), f"/{SHAPE}": torch.tensor(said["pixel_values"].shape[1:])}
            made.append(record | {f"/{name}": said[name][n].clone() for name in (GRID, SIZES) if name in said})
        return made

    @contextlib.contextmanager
    def _still(self) -> Iterator[None]:
        """No dropout: what is kept is seen again and again."""
        parts = [(part, part.training) for name, part in self.model.named_children() if name != LANGUAGE]
        for part, _ in parts:
            part.eval()
        try:
            yield
        finally:
            for part, training in parts:
                part.train(training)

    def preprocess(self, rows: Sequence[Any], prompt: str | None = None) -> Mapping[str, Any]:
        """As the module's own, for rows whose pictures are marks."""
        blind = copy.copy(self.module)
        blind.processor = copy.copy(self.module.processor)
        blind.processor.image_processor = self.remembering()
        return blind.preprocess(rows, prompt)

    def remembering(self) -> Any:
        """Takes the place of the image processor where pictures are marks."""
        return _Remembering(self.module.processor.image_processor)

    def put_back(self, features: Mapping[str, Any], records: Sequence[Record]) -> dict[str, Any]:
        """Model inputs with the records' features, in the order of the pictures."""
        made = {name: value for name, value in features.items() if name not in ("pixel_values", SIZES, COUNTS)}
        if records:
            levels = list(zip(*(record[""].to(self.module.model.device) for record in records), strict=True))
            # Any object with these two will do.
            seen = SimpleNamespace(pooler_output=levels[0], deepstack_features=levels[1:])
            made["mm_encoder_outputs"] = {"image": seen}
        return made


def mark(record: Record) -> Image.Image:
    """Stands in a text for a picture that has been looked at."""
    made = Image.new("RGB", (1, 1))
    made.info.update(record)
    return made


class _Remembering:
    """Takes the place of an image processor: says of marks what was said of their pictures."""

    def __init__(self, real: Any):
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def __call__(self, images: Sequence[Any], **_settings: Any) -> Any:
        from transformers import BatchFeature

        groups = [group if isinstance(group, list) else [group] for group in images]
        marks: list[dict] = [picture.info for group in groups for picture in group]
        said: dict[str, Tensor] = {
            name: torch.stack([record[f"/{name}"] for record in marks]) for name in (GRID, SIZES) if f"/{name}" in marks[0]
        }
        said[COUNTS] = torch.tensor([len(group) for group in groups if group])
        # Processors count the tokens of some models from the size of the pixels. These take no memory.
        said["pixel_values"] = torch.zeros(1).expand(len(marks), *marks[0][f"/{SHAPE}"].tolist())
        return BatchFeature(said)


def versions(parameters: Any) -> tuple:
    """Another value after any of the parameters was replaced or written to."""
    return tuple((p.data_ptr(), p._version) for p in parameters)
