"""An encoder that remembers: each distinct item is embedded once per model, over all stages of a workspace."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from hardwon.items import Item
from hardwon.models.embedder import Embedder
from hardwon.models.preflight import refuse
from hardwon.models.scorer import Encoder
from hardwon.progress import bar
from hardwon.store import Store

CHUNK = 512  # items embedded between two writes


class CachedEncoder:
    """Wraps an encoder; vectors are kept on disk under the model's fingerprint and the item's key.

    The key covers content and instruction, the fingerprint weights, pre-processing and pooling: a vector of another model,
    prompt or picture is never returned. The weights must not change while the wrapper is in use. Vectors are written as they
    come, so an interrupted run goes on, in the same chunks.

    Args:
        encoder: computes what is missing.
        folder: where vectors are kept; None keeps them in memory only.
    """

    def __init__(self, encoder: Encoder, folder: Path | None):
        self.encoder = encoder
        self.fingerprint, self.dim = encoder.fingerprint, encoder.dim
        self.store = Store(None if folder is None else folder / f"vectors-{self.fingerprint}")

    def encode(self, items: Sequence[Item], *, progress: str = "") -> np.ndarray:
        """As `Encoder.encode`."""
        keys = [item.key for item in items]
        missing = {key: item for key, item in zip(keys, items, strict=True) if key not in self.store.rows}
        if isinstance(self.encoder, Embedder):
            refuse(self.encoder.body, missing.values())  # all of them, before anything is computed
        with bar(progress, len(missing), "items", shown=bool(progress and missing)) as advance:
            for start in range(0, len(missing), CHUNK):
                chunk = dict(itertools.islice(missing.items(), start, start + CHUNK))
                self.store.add(list(chunk), torch.from_numpy(self.encoder.encode(list(chunk.values()))))
                advance(len(chunk))
        return np.stack([self.store.rows[key].numpy() for key in keys]) if keys else np.zeros((0, self.dim), dtype=np.float32)
