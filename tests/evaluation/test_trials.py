"""A sample of the trials of benchmarks.reliability."""

import sys
from pathlib import Path

import pytest
from trials import trials

sys.path.append(str(Path(__file__).parents[2]))

from benchmarks.reliability import trust


@pytest.mark.parametrize(("name", "times"), [("E2", 30), ("E4", 100), ("E5", 5), ("E8", 60)])
def test_a_sample_reaches_its_goal(name, times):
    (trial,) = (trial for trial in trust.TRIALS if trial.name == name)
    outcome = trial.run(trials(times), 1 if name != "E8" else 0)
    assert outcome.tried >= times
    assert outcome.failed == 0, outcome.found
