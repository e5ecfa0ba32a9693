"""An encoder that remembers: each distinct item is embedded once per model, over all stages of a workspace."""

import importlib.metadata
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from hardwon.errors import BadItems
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
    come, so an interrupted run goes on, in the same chunks. The folder has a manifest, and what does not match it is embedded
    again. Device and versions, which change the last digits, are no part of the fingerprint; each file says what they were.

    Args:
        encoder: computes what is missing.
        folder: where vectors are kept; None keeps them in memory only.
    """

    def __init__(self, encoder: Encoder, folder: Path | None):
        self.encoder = encoder
        self.fingerprint, self.dim = encoder.fingerprint, encoder.dim
        kept = None if folder is None else folder / f"vectors-{self.fingerprint}"
        self.store = Store(kept, "vectors", {"encoder": self.fingerprint, "width": self.dim}, _circumstances(encoder))

    def missing(self, items: Iterable[Item]) -> dict[str, Item]:
        """The distinct items that have no vector yet, by key.

        Raises:
            BadItems: items among them that this model cannot use, before anything is computed; names them all.
        """
        found = {key: item for key, item in ((item.key, item) for item in items) if key not in self.store.rows}
        if isinstance(self.encoder, Embedder):
            refuse(self.encoder.body, found.values())
        return found

    def keep(self, keys: Sequence[str], vectors: np.ndarray) -> None:
        """Remember vectors that the encoder gave."""
        self.store.add(list(keys), torch.from_numpy(vectors))

    def known(self, keys: Sequence[str]) -> np.ndarray:
        """Vectors [n d] of items that are not missing, by their keys."""
        if not keys:
            return np.zeros((0, self.dim), dtype=np.float32)
        return np.stack([self.store.rows[key].numpy() for key in keys])

    def encode(self, items: Sequence[Item], *, progress: str = "") -> np.ndarray:
        """As `Encoder.encode`."""
        missing = self.missing(items)
        with bar(progress, len(missing), "items", shown=bool(progress and missing)) as advance:
            for start in range(0, len(missing), CHUNK):
                chunk = dict(itertools.islice(missing.items(), start, start + CHUNK))
                self.keep(list(chunk), self._made(list(chunk.values()), missing.values()))
                advance(len(chunk))
        self.store.describe()
        return self.known([item.key for item in items])

    def _made(self, chunk: Sequence[Item], missing: Iterable[Item]) -> np.ndarray:
        try:
            return self.encoder.encode(chunk)
        except BadItems:
            if isinstance(self.encoder, Embedder):
                refuse(self.encoder.body, missing, decode=True)  # names those of all chunks
            raise


def _circumstances(encoder: Encoder) -> str:
    """Device and versions that vectors come from."""
    if not isinstance(encoder, Embedder):
        return ""
    device = encoder.body.model.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return ", ".join([name, *(f"{package} {importlib.metadata.version(package)}" for package in ("torch", "transformers"))])
