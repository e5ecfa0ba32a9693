"""Encoders and judges without a model."""

import hashlib
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


def number(*parts, modulus=2**32):
    """A number that depends on the parts alone, on every machine."""
    return int(hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()[:12], 16) % modulus


class AngledEncoder:
    """Unit vectors: at an angle (degrees) for texts that have one, else at random by content."""

    def __init__(self, angles=None, dim=2):
        self.angles, self.dim, self.fingerprint = angles or {}, dim, "fake"

    def encode(self, items, *, progress=""):
        return np.stack([self.vector(item) for item in items]).astype(np.float32)

    def vector(self, item):
        if item.text in self.angles:
            turn = np.deg2rad(self.angles[item.text])
            return np.array([np.cos(turn), np.sin(turn)] + [0.0] * (self.dim - 2))
        made = np.random.default_rng(number(item.content)).normal(size=self.dim)
        return made / np.linalg.norm(made)


class RuleJudge:
    """Log-odds by `rule(query, item)`; counts what it was asked, and dies after so many calls."""

    def __init__(self, rule, calls=None, fingerprint="judge"):
        self.rule, self.left, self.fingerprint = rule, calls, fingerprint
        self.asked = []

    def score_pairs(self, pairs, *, progress=""):
        if self.left is not None:
            if self.left == 0:
                raise RuntimeError("the judge fell over")
            self.left -= 1
        self.asked.append(list(pairs))
        return np.array([self.rule(query, item) for query, item in pairs], dtype=np.float32)


def odds_by_hash(query, item):
    """Log-odds between -4 and 4 that depend on the pair alone."""
    return number("odds", query.key, item.key, modulus=8001) / 1000 - 4
