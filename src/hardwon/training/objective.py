"""What a step differentiates: a loss, and the choices around it that are no business of a single loss."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hardwon.distributed import World
from hardwon.errors import RecipeError
from hardwon.losses import (
    FalseNegatives,
    GradientReport,
    JudgeAlignment,
    KnownPairs,
    Loss,
    Targets,
    UnusableRows,
    Weighted,
    gradient_report,
    value_and_gradient,
)
from hardwon.losses.targets import NothingToCompare, parts_of


@dataclass(frozen=True)
class LearnedTemperature:
    """Let the temperature be learned, starting from the loss's own and kept within bounds.

    All parts of a sum share one factor, so their ratios stay. A judge's own distribution keeps the temperature it started with.

    Attributes:
        low: smallest temperature; unbounded, a small batch drives it to where gradients vanish.
        high: largest temperature.
        learning_rate: of its logarithm.
    """

    low: float = 0.01
    high: float = 0.1
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high:
            raise RecipeError(f"a learned temperature needs 0 < low < high, got {self.low} and {self.high}")
        if not self.learning_rate > 0:
            raise RecipeError(f"learning_rate must be above 0, got {self.learning_rate}")


class Slope(NamedTuple):
    """Value of the objective and its gradient on all vectors of the batch, summed over the processes."""

    value: Float[Tensor, ""]
    vectors: Float[Tensor, "n d"]


class Objective:
    """A loss with false-negative rules, Matryoshka widths and perhaps a learned temperature.

    Args:
        loss: any objective.
        rules: candidates to take out of the comparison.
        widths: the loss is also computed on the first so many components of each vector, made unit vectors again
            (Matryoshka, arXiv:2205.13147); all widths count equally.
        temperature: learn it.
        device: of the vectors.

    Attributes:
        log_temperature: the learned parameter, of the first part of the loss; None if it is not learned.

    Raises:
        RecipeError: a temperature is to be learned of a loss that has none, or starts out of bounds.
    """

    def __init__(
        self,
        loss: Loss,
        *,
        rules: FalseNegatives | None = None,
        widths: Sequence[int] = (),
        temperature: LearnedTemperature | None = None,
        device: torch.device | str = "cpu",
    ):
        if any(width < 1 for width in widths):
            raise RecipeError(f"widths must be above 0, got {tuple(widths)}")
        self.loss, self.rules, self.widths, self.bounds = loss, rules, tuple(sorted(set(widths))), temperature
        self.log_temperature: nn.Parameter | None = None
        if temperature is not None:
            start = _temperature(loss)
            if not temperature.low <= start <= temperature.high:
                bounds = f"{temperature.low} and {temperature.high}"
                raise RecipeError(f"the loss's temperature {start} is not between {bounds}, within which it is learned")
            self.log_temperature = nn.Parameter(torch.tensor(math.log(start), device=device))

    @property
    def temperature(self) -> float | None:
        """What the learned temperature is now, None if it is not learned."""
        if self.log_temperature is None or self.bounds is None:
            return None
        return min(max(math.exp(float(self.log_temperature.detach())), self.bounds.low), self.bounds.high)

    def current(self) -> Loss:
        """The loss at its present temperature."""
        now = self.temperature
        return self.loss if now is None else at_temperature(self.loss, now / _temperature(self.loss))

    def slope(
        self,
        vectors: Float[Tensor, "n d"],
        asked: Sequence[int],
        offered: Sequence[int],
        targets: Targets | KnownPairs,
        world: World | None = None,
    ) -> Slope:
        """The objective of queries `vectors[asked]` against candidates `vectors[offered]`, differentiated.

        A learned temperature gets its gradient added. On several processes each takes a share of the queries.

        Raises:
            UnusableRows: see `value_and_gradient`.
            RecipeError: a width that the vectors do not have.
        """
        world = world or World()
        if self.widths and self.widths[-1] >= vectors.shape[1]:
            raise RecipeError(f"widths must be below the model's {vectors.shape[1]} (which always counts), got {self.widths}")
        if self.log_temperature is not None and self.bounds is not None:
            with torch.no_grad():
                self.log_temperature.clamp_(math.log(self.bounds.low), math.log(self.bounds.high))
        levels = (*self.widths, vectors.shape[1])
        total, gradient = vectors.new_zeros(()), torch.zeros_like(vectors)
        for width in levels:
            value, slope = self._level(vectors, width, (asked, offered), targets, world)
            total = total + value / len(levels)
            gradient += slope / len(levels)
        return Slope(total, world.sum(gradient))

    def report(
        self, vectors: Float[Tensor, "n d"], asked: Sequence[int], offered: Sequence[int], targets: KnownPairs, most: int = 256
    ) -> GradientReport | None:
        """Where the gradient of the first `most` queries goes, at full width; None if none of these has anything to compare."""
        some = targets.some(slice(0, most))[:]
        candidates = vectors[list(offered)]
        scores = vectors[list(asked[:most])] @ candidates.T
        if self.rules:
            golds = [candidates[row] @ candidates.T for row in some.gold]
            similar = torch.stack([cosines.amax(dim=0) for cosines in golds])
            some = self.rules(scores, some, similar)
        try:
            return gradient_report(self.current(), scores, some)
        except NothingToCompare:
            return None  # the rest of the batch has: a step does not end because of a line in the log

    def _level(
        self, vectors: Tensor, width: int, sides: tuple[Sequence[int], Sequence[int]], targets: Any, world: World
    ) -> tuple[Tensor, Tensor]:
        """Value, and this process's share of the gradient, at one width."""
        asked, offered = sides
        mine = world.rows(len(asked))
        targets = targets.some(mine) if isinstance(targets, KnownPairs) else targets[mine]
        with torch.enable_grad():
            free = vectors.detach().requires_grad_()
            short = free if width == vectors.shape[1] else F.normalize(free[:, :width], dim=1)
        here = torch.tensor(asked, device=vectors.device)[mine]
        there = torch.tensor(offered, device=vectors.device)
        queries, candidates = short.detach()[here], short.detach()[there]
        try:
            made = value_and_gradient(self.current(), queries, candidates, targets, rules=self.rules, ranks=world)
        except NothingToCompare as error:
            raise NothingToCompare([mine.start + row for row in error.rows]) from error
        except UnusableRows as error:
            raise UnusableRows(error.what, [mine.start + row for row in error.rows]) from error
        if self.log_temperature is not None:
            # Scores enter a loss only as score / temperature, so with respect to log(temperature) the gradient is
            # minus the sum of score x its gradient, which is that of query . its gradient.
            slope = -(queries * made.queries).sum() / (len(self.widths) + 1)
            grad = self.log_temperature.grad
            self.log_temperature.grad = slope if grad is None else grad + slope
        into = torch.zeros_like(short).index_add_(0, here, made.queries).index_add_(0, there, made.candidates)
        if short is free:
            return made.value, into
        return made.value, torch.autograd.grad(short, free, into)[0]


def _temperature(loss: Loss) -> float:
    """The temperature of the first part. Raises RecipeError if any part has none."""
    for _, part in parts_of(loss):
        if not hasattr(part, "temperature"):
            raise RecipeError(f"the temperature cannot be learned: {part!r} has none")
    return parts_of(loss)[0][1].temperature  # type: ignore[attr-defined]


def at_temperature(loss: Loss, factor: float) -> Loss:
    """The loss with every temperature of the model's scores times a factor; a judge's temperature stays what it was."""
    parts = []
    for weight, part in parts_of(loss):
        own: Any = part
        kept = {"judge_temperature": own.judge_temperature or own.temperature} if isinstance(own, JudgeAlignment) else {}
        parts.append((weight, replace(own, temperature=own.temperature * factor, **kept)))
    return Weighted(tuple(parts))
