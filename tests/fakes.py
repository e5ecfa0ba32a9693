"""An encoder without a model."""

from dataclasses import dataclass, field

import numpy as np


@dataclass
class FakeEncoder:
    """Each item's vector is drawn from its key; remembers what it was asked to encode."""

    fingerprint: str = "fake-1"
    dim: int = 12
    given: dict = field(default_factory=dict)  # text -> vector, instead of a drawn one
    asked: list = field(default_factory=list)
    named: list = field(default_factory=list)

    def encode(self, items, *, progress=""):
        self.asked.append([item.key for item in items])
        self.named.append(progress)
        rows = [self.given.get(item.text, self._drawn(item)) for item in items]
        return np.asarray(rows, dtype=np.float32).reshape(len(items), -1 if items else self.dim)

    def _drawn(self, item):
        row = np.random.default_rng(int(item.key, 16)).standard_normal(self.dim)
        return row / np.linalg.norm(row)
