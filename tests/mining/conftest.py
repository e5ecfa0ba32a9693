"""Encoders and judges without a model. hardwon is imported inside functions: the shape checks come before it."""

import hashlib

import numpy as np
import pytest


def number(*parts, modulus=2**32):
    """A number that depends on the parts alone, on every machine."""
    return int(hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()[:12], 16) % modulus


class FakeEncoder:
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


class FakeJudge:
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


@pytest.fixture
def encoder():
    return FakeEncoder


@pytest.fixture
def judging():
    return FakeJudge


@pytest.fixture
def by_hash():
    """Log-odds between -4 and 4 that depend on the pair alone."""
    return lambda query, item: number("odds", query.key, item.key, modulus=8001) / 1000 - 4


@pytest.fixture
def pairs():
    """Examples "q0" -> "t0", "q1" -> "t1" ...; `related` by number of row, as texts."""

    def build(count, source="s", related=None):
        from hardwon.items import Candidate, Example, Item

        return tuple(
            Example(
                Item(text=f"{source}q{n}"),
                (Candidate(Item(text=f"{source}t{n}"), origin="gold"),),
                source,
                frozenset(Item(text=text).content for text in (related or {}).get(n, ())),
            )
            for n in range(count)
        )

    return build


@pytest.fixture
def angled(pairs, encoder):
    """Ten examples; seen from every query, t0 is the most similar text, then t1, and so on."""
    examples = pairs(10)
    return examples, encoder({f"sq{n}": 0 for n in range(10)} | {f"st{n}": 5 * n for n in range(10)})
