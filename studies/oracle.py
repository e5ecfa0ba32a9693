"""A judge that knows: annotations say of every candidate whether it belongs; a share of the answers can be made wrong."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.false_negatives import SOURCES
from benchmarks.false_negatives import Truth as AnnotatedFiles
from hardwon.items import Example, Item
from hardwon.randomness import generator
from studies.features import named
from studies.material import Material
from studies.plant import original

SURE = 3.0  # log-odds of what it says, about: grades of 0.95 and 0.05


class Truth(AnnotatedFiles):
    """The annotations, for thin items."""

    def shown(self, item: Item) -> frozenset[str]:
        """Slugs of what an item shows or names."""
        found = self.drawn.get(named(item)) if item.images else self.named.get(item.text)
        return found or frozenset()


@dataclass
class Oracle:
    """A `Scorer` that answers from the annotations of the emoji, but for a share of the pairs the opposite.

    Its errors depend on the pair alone: asked twice, it is wrong twice, like a model. Its log-odds vary a little from pair to
    pair, so that grades are not all equal.

    Attributes:
        truth: annotations.
        known: training pairs by query.
        error: share of wrong answers; one half tells nothing.
        seed: of the errors.
        asked: pairs so far.
    """

    truth: Truth
    known: dict[Item, list[Example]]
    error: float = 0.0
    seed: int = 0
    asked: int = field(default=0, repr=False)

    @classmethod
    def of(cls, examples: Sequence[Example], material: Material, error: float, seed: int) -> "Oracle":
        """From what a study is made of."""
        known: dict[Item, list[Example]] = {}
        for example in examples:
            known.setdefault(example.query, []).append(example)
        return cls(Truth.load(material.folder / "data" / "pictures"), known, error, seed)

    @property
    def fingerprint(self) -> str:
        """Of what it would say."""
        return f"oracle:{self.error}:{self.seed}"

    def score_pairs(self, pairs: Sequence[tuple[Item, Item]], *, progress: str = "") -> np.ndarray:
        """Log-odds, [n]."""
        self.asked += len(pairs)
        return np.array([self._odds(query, item) for query, item in pairs], dtype=np.float32)

    def _odds(self, query: Item, item: Item) -> float:
        rng = generator(self.seed, "oracle", query.key, item.key)
        right = self.belongs(query, item) != (rng.random() < self.error)
        return (SURE if right else -SURE) + rng.uniform(-0.5, 0.5)

    def belongs(self, query: Item, item: Item) -> bool:
        """Whether a candidate is a right answer."""
        item = original(item)
        return any(
            item == original(gold) or (one.source in SOURCES and self.truth.belongs(one, item))
            for one in self.known.get(query, ())
            for gold in one.gold
        )
