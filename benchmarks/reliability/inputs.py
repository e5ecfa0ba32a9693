"""Group A: bad input."""

from benchmarks.reliability.trial import Trial

TRIALS: tuple[Trial, ...] = ()
