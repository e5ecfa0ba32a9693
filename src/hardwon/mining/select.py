"""Which of the retrieved candidates become hard negatives."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from hardwon.errors import RecipeError


@dataclass(frozen=True)
class Survivors:
    """The candidates of one query that the judge left, best first.

    Attributes:
        similarities: cosine of each to the query, falling.
        positive: cosine of the query's own positive.
    """

    similarities: Sequence[float]
    positive: float

    def __len__(self) -> int:
        return len(self.similarities)


@runtime_checkable
class Selector(Protocol):
    """Chooses among candidates that survived the judge."""

    def __call__(self, survivors: Survivors, keep: int, rng: random.Random) -> list[int]:
        """At most `keep` places in `survivors` (0 is the most similar), each once, rising."""
        ...


@dataclass(frozen=True)
class Cyclic:
    """Every `step`-th survivor, then the ones after those: hard ones, but not all alike.

    UniME-V2 (arXiv:2510.13515) does this with step 5: places 0, 5, 10 ... 1, 6, 11 ... What it does when too few survive
    is not the selector's: see `Mining.fallback`.

    Attributes:
        step: distance between neighbours of one round.
    """

    step: int = 5

    def __post_init__(self) -> None:
        _at_least("step", self.step, 1)

    def __call__(self, survivors: Survivors, keep: int, rng: random.Random) -> list[int]:
        """See `Selector`."""
        order = [n for offset in range(self.step) for n in range(offset, len(survivors), self.step)]
        return sorted(order[:keep])


@dataclass(frozen=True)
class Hardest:
    """The most similar survivors."""

    def __call__(self, survivors: Survivors, keep: int, rng: random.Random) -> list[int]:
        """See `Selector`."""
        return list(range(min(keep, len(survivors))))


@dataclass(frozen=True)
class AtRandom:
    """Any survivors."""

    def __call__(self, survivors: Survivors, keep: int, rng: random.Random) -> list[int]:
        """See `Selector`."""
        return sorted(rng.sample(range(len(survivors)), min(keep, len(survivors))))


@dataclass(frozen=True)
class TopK:
    """Any of the `k` most similar survivors: hard, but other ones for every query and seed.

    Attributes:
        k: how many are drawn from.
    """

    k: int = 20

    def __post_init__(self) -> None:
        _at_least("k", self.k, 1)

    def __call__(self, survivors: Survivors, keep: int, rng: random.Random) -> list[int]:
        """See `Selector`."""
        first = range(min(self.k, len(survivors)))
        return sorted(rng.sample(first, min(keep, len(first))))


@dataclass(frozen=True)
class Margin:
    """Survivors that lie clearly below the query's own positive, chosen among by another selector.

    The positive-aware mining of NV-Retriever (arXiv:2407.15831): what is nearly as similar as the positive may well be one.
    With both margins given, a candidate has to keep both. A relative margin is a share of the positive's distance from 0,
    so that it lowers the bar below a positive with a negative cosine as well.

    Attributes:
        absolute: candidates lie below the positive's cosine minus this.
        relative: candidates lie below the positive's cosine minus this share of its absolute value; 0.05 is "95 % of the
            positive".
        then: chooses among those.
    """

    absolute: float = 0.0
    relative: float = 0.05
    then: Selector = field(default_factory=Hardest)

    def __post_init__(self) -> None:
        for name in ("absolute", "relative"):
            if not 0 <= getattr(self, name) <= 2:
                raise RecipeError(f"Margin: {name} must lie in [0, 2], got {getattr(self, name)}; 0 asks for no margin")

    def bar(self, positive: float) -> float:
        """Candidates must be less similar than this to the query."""
        return positive - max(self.absolute, self.relative * abs(positive))

    def __call__(self, survivors: Survivors, keep: int, rng: random.Random) -> list[int]:
        """See `Selector`."""
        bar = self.bar(survivors.positive)
        below = [n for n, similarity in enumerate(survivors.similarities) if similarity < bar]
        left = Survivors([survivors.similarities[n] for n in below], survivors.positive)
        return [below[n] for n in self.then(left, keep, rng)]


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise RecipeError(f"{name} must be at least {least}, got {value}")
