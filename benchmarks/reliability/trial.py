"""`Trial`: one failure mode, tried many times."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """What came of a trial.

    Attributes:
        tried: faults injected or inputs given.
        failed: how many of them broke the goal.
        found: what was measured, in words and numbers.
    """

    tried: int
    failed: int
    found: str


@dataclass(frozen=True)
class Trial:
    """One failure mode.

    Attributes:
        name: as A6 or D2.
        what: what is done, in a few words.
        goal: the number to reach, in words.
        full: how many times it is tried.
        run: does it, given (times, seed).
    """

    name: str
    what: str
    goal: str
    full: int
    run: Callable[[int, int], Outcome]
