"""An encoder that remembers: each distinct item is embedded once per model, over all stages of a workspace."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from hardwon.items import Item
from hardwon.models.scorer import Encoder
from hardwon.store import Store


class CachedEncoder:
    """Wraps an encoder; vectors are kept on disk under the model's fingerprint and the item's key.

    The key covers content and instruction, the fingerprint weights, pre-processing and pooling: a vector of another model,
    prompt or picture is never returned. The weights must not change while the wrapper is in use.

    Args:
        encoder: computes what is missing.
        folder: where vectors are kept.
    """

    def __init__(self, encoder: Encoder, folder: Path):
        self.encoder = encoder
        self.fingerprint, self.dim = encoder.fingerprint, encoder.dim
        self.store = Store(folder / f"vectors-{self.fingerprint}")

    def encode(self, items: Sequence[Item], *, progress: str = "") -> np.ndarray:
        """As `Encoder.encode`."""
        keys = [item.key for item in items]
        missing = {key: item for key, item in zip(keys, items, strict=True) if key not in self.store.rows}
        if missing:
            made = self.encoder.encode(list(missing.values()), progress=progress)
            self.store.add(list(missing), torch.from_numpy(made))
        return np.stack([self.store.rows[key].numpy() for key in keys]) if keys else np.zeros((0, self.dim), dtype=np.float32)
