"""Features of a frozen vision tower, computed once per picture and kept on disk.

Content-addressed: the folder's name holds the identity of tower weights and pre-processing, the file's rows are found by
the hash of the picture's bytes. A changed tower, picture or pre-processing therefore never meets old features.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hardwon.items import Item, Picture, picture_key
from hardwon.pictures import open_picture
from hardwon.progress import bar
from hardwon.store import Store

BATCH = 16  # measured on two cores: larger batches fall out of the cache of the processor


def weights_digest(module: nn.Module) -> str:
    """Hash of all parameters and buffers with their names, 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name}:{tuple(value.shape)}:{value.dtype}".encode())
        digest.update(
            value.detach().cpu().contiguous().view(torch.uint8).numpy() if value.dim() else repr(value.item()).encode()
        )
    return digest.hexdigest()


def can_cache(model: Any) -> bool:
    """Whether we know how to put kept features back in: the architecture of the built-in backbone."""
    return type(model).__name__ == "FastVlmModel"


class VisionCache:
    """Tower features by picture.

    Args:
        tower: the frozen vision tower; gives feature maps [n w h h'].
        processor: turns pictures into pixels.
        folder: where features are kept between runs; None keeps them in memory only.
    """

    def __init__(self, tower: nn.Module, processor: Any, folder: Path | None = None):
        self.tower, self.processor, self.home = tower, processor, folder
        identity = weights_digest(tower) + json.dumps(processor.to_dict(), sort_keys=True, default=str)
        self.fingerprint = hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()
        self.store = Store(None if folder is None else folder / f"vision-{self.fingerprint}")

    @property
    def rows(self) -> dict[str, Float[Tensor, "t w"]]:
        """Features by picture key."""
        return self.store.rows

    def prepare(self, items: Iterable[Item], progress: str = "looking at pictures") -> int:
        """Compute what is missing for these items, with a bar; returns how many pictures were new."""
        wanted = {picture_key(p): p for item in items for p in item.images}
        missing = {key: p for key, p in wanted.items() if key not in self.rows}
        if not missing:
            return 0
        keys, pictures = list(missing), list(missing.values())
        with bar(progress, len(keys), "pictures") as advance:
            for start in range(0, len(keys), 64 * BATCH):
                part = slice(start, start + 64 * BATCH)
                self.store.add(keys[part], self._compute(pictures[part], advance))
        return len(keys)

    @torch.no_grad()
    def _compute(self, pictures: Sequence[Picture], advance: Any) -> Float[Tensor, "n t w"]:
        made = []
        device = next(self.tower.parameters()).device
        for start in range(0, len(pictures), BATCH):
            opened = [open_picture(p) for p in pictures[start : start + BATCH]]
            pixels = self.processor(images=opened, return_tensors="pt")["pixel_values"].to(device)
            grid = self.tower(pixels.contiguous(memory_format=torch.channels_last)).last_hidden_state
            made.append(grid.flatten(2).transpose(1, 2).contiguous().cpu())
            advance(len(opened))
        return torch.cat(made)

    def features(self, pictures: Sequence[Picture]) -> Float[Tensor, "n t w"]:
        """Features of the pictures, in order; those never seen are computed."""
        keys = [picture_key(p) for p in pictures]
        missing = {key: p for key, p in zip(keys, pictures, strict=True) if key not in self.rows}
        if missing:
            self.store.add(list(missing), self._compute(list(missing.values()), lambda _: None))
        return torch.stack([self.rows[key] for key in keys])
