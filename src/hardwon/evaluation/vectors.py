"""Vectors of the items of a benchmark: each distinct one is encoded once, by one of the processes, and kept."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from hardwon.distributed import World
from hardwon.errors import BadItem, BadItems, ModelError
from hardwon.items import Item
from hardwon.models import CachedEncoder, Encoder
from hardwon.progress import console

SHARE = 128  # items encoded together, by whichever process: the vectors do not depend on how many processes there are


class Vectors:
    """Vectors by key; those that are missing are encoded, written to the store, and shared with the other processes.

    Args:
        encoder: computes what is missing.
        store: folder of vectors that outlive this run; None keeps them in memory.
        world: the processes that evaluate together; all of them must ask for the same items in the same order.
    """

    def __init__(self, encoder: Encoder, store: Path | None, world: World):
        self.cached = encoder if isinstance(encoder, CachedEncoder) else CachedEncoder(encoder, store)
        self.world = world
        self.encoded = 0  # items, by all processes together
        if world.first and (told := made_elsewhere(self.cached)):
            console().print(told, style="yellow", markup=False, soft_wrap=True)
        world.wait()  # before anybody writes what another one would find

    def add(self, items: Mapping[str, Item], advance: Callable[[int], None]) -> None:
        """Encode those of the items that have no vector.

        Args:
            items: by key, in an order that depends on the items alone.
            advance: told of items that are encoded by this process, or were by another.

        Raises:
            BadItems: items that the model cannot use, or whose vectors are not finite or not of unit length.
            ModelError: vectors of another shape, or whatever the encoder raises.
        """
        missing = self._missing(items)
        keys_of = list(missing)
        chunks = [keys_of[start : start + SHARE] for start in range(0, len(missing), SHARE)]
        made = np.zeros((len(missing) if self.world.size > 1 else 0, self.cached.dim), dtype=np.float32)
        with self.world.all_or_none("encoding"):
            self.cached.missing(missing.values())  # refuses what cannot be used before anything is computed
            own = range(self.world.rank, len(chunks), self.world.size)
            made_here = self.cached.each([[missing[key] for key in chunks[number]] for number in own])
            for number, vectors in zip(own, made_here, strict=True):
                keys = chunks[number]
                self._check(vectors, [missing[key] for key in keys])
                self.cached.keep(keys, vectors)
                if self.world.size > 1:
                    made[number * SHARE : number * SHARE + len(keys)] = vectors
                advance(len(keys) if self.world.size == 1 else sum(map(len, chunks[number : number + self.world.size])))
        if self.world.size == 1:  # of a folder that several processes write to, the next one that writes alone gives account
            self.cached.store.describe()
        self.encoded += len(missing)
        if self.world.size > 1 and missing:
            self._share(keys_of, made)

    def of(self, keys: list[str]) -> np.ndarray:
        """Vectors [n d] of items that were added."""
        return self.cached.known(keys)

    def _missing(self, items: Mapping[str, Item]) -> dict[str, Item]:
        """What some process lacks: each may have another disk."""
        lacks = torch.tensor([float(key not in self.cached.store.rows) for key in items], device=self.world.device)
        anywhere = self.world.largest(lacks).tolist() if items else []
        return {key: item for (key, item), lacking in zip(items.items(), anywhere, strict=True) if lacking}

    def _check(self, vectors: np.ndarray, items: list[Item]) -> None:
        if vectors.shape != (len(items), self.cached.dim):
            right = (len(items), self.cached.dim)
            raise ModelError(f"the model gives an array of shape {vectors.shape} for {len(items)} items, not {right}")
        with np.errstate(over="ignore"):
            lengths = np.linalg.norm(vectors, axis=1)
        wrong = np.flatnonzero(~(np.abs(lengths - 1) <= 1e-3)).tolist()
        if wrong:
            raise BadItems([BadItem(items[n], _fault(float(lengths[n]))) for n in wrong], str(len(items)))

    def _share(self, keys: list[str], made: np.ndarray) -> None:
        together = self.world.in_step("sharing vectors")  # nobody is far behind: all have just met
        everything = together.sum(torch.from_numpy(made).to(together.device)).cpu()
        self.cached.store.rows.keep(keys, everything)


def made_elsewhere(cached: CachedEncoder) -> str:
    """A warning if kept vectors were made on another device or by other versions than this run's; "" if not."""
    here, others = cached.store.made_by, sorted(cached.store.makers - {cached.store.made_by})
    if not here or not others:
        return ""
    return (
        f"{cached.store.folder} holds vectors that were made on {'; '.join(others)}; they are used again on {here}, and the "
        "report names the latter: remove the folder to encode all of them here"
    )


def _fault(length: float) -> str:
    return f"its vector has length {length:.4g} instead of 1" if np.isfinite(length) else "its vector is not finite"
