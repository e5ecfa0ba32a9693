"""An encoder that remembers: each distinct item is embedded once per model, over all stages of a workspace."""

import importlib.metadata
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from hardwon.errors import BadItems
from hardwon.items import Item
from hardwon.models.embedder import Embedder
from hardwon.models.preflight import refuse
from hardwon.models.scorer import Encoder, ManyEncoder
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
        if (embedder := _embedder(self.encoder)) is not None:
            refuse(embedder.body, found.values())
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
        keys = list(missing)
        chunks = [keys[start : start + CHUNK] for start in range(0, len(keys), CHUNK)]
        with bar(progress, len(missing), "items", shown=bool(progress and missing)) as advance:
            for chunk, vectors in zip(chunks, self.each([[missing[key] for key in chunk] for chunk in chunks]), strict=True):
                self.keep(chunk, vectors)
                advance(len(chunk))
        self.store.describe()
        return self.known([item.key for item in items])

    def each(self, chunks: Sequence[Sequence[Item]]) -> Iterator[np.ndarray]:
        """Vectors of chunks of missing items as the encoder gives them, several at a time if it can; keep each as it comes.

        Raises:
            BadItems: what cannot be read, of all chunks together.
        """
        try:
            if isinstance(self.encoder, ManyEncoder) and chunks:
                yield from self.encoder.encode_each(chunks)
            else:
                yield from map(self.encoder.encode, chunks)
        except BadItems:
            if (embedder := _embedder(self.encoder)) is not None:
                refuse(embedder.body, itertools.chain.from_iterable(chunks), decode=True)  # names those of all chunks
            raise


def _embedder(encoder: Encoder) -> Embedder | None:
    found = encoder.inner if isinstance(encoder, ManyEncoder) else encoder
    return found if isinstance(found, Embedder) else None


def _circumstances(encoder: Encoder) -> str:
    """Device and versions that vectors come from."""
    if (embedder := _embedder(encoder)) is None:
        return ""
    device = embedder.body.model.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return ", ".join([name, *(f"{package} {importlib.metadata.version(package)}" for package in ("torch", "transformers"))])
