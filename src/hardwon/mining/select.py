"""Which of the retrieved candidates become hard negatives."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@runtime_checkable
class Selector(Protocol):
    """Chooses among candidates that survived the judge."""

    def __call__(self, survivors: Sequence[int], keep: int, rng: random.Random) -> list[int]:
        """At most `keep` of `survivors` (positions in retrieval order, best first), in retrieval order."""
        ...


@dataclass(frozen=True)
class Cyclic:
    """Every `step`-th survivor, then the ones after those: hard ones, but not all alike.

    UniME-V2 (arXiv:2510.13515) does this with step 5: positions 0, 5, 10 ... 1, 6, 11 ...

    Attributes:
        step: distance between neighbours of one round.
    """

    step: int = 5

    def __call__(self, survivors: Sequence[int], keep: int, rng: random.Random) -> list[int]:
        """See `Selector`."""
        order = [survivors[n] for offset in range(self.step) for n in range(offset, len(survivors), self.step)]
        return sorted(order[:keep])


@dataclass(frozen=True)
class Hardest:
    """The most similar survivors."""

    def __call__(self, survivors: Sequence[int], keep: int, rng: random.Random) -> list[int]:
        """See `Selector`."""
        return list(survivors[:keep])


@dataclass(frozen=True)
class AtRandom:
    """Any survivors."""

    def __call__(self, survivors: Sequence[int], keep: int, rng: random.Random) -> list[int]:
        """See `Selector`."""
        return sorted(rng.sample(list(survivors), min(keep, len(survivors))))
