"""The plans."""

import numpy as np

from hardwon.mining.choose import grade
from studies.oracle import SURE
from studies.plan import MiningRound
from studies.suites import SUITES


def test_a_judge_that_knows_rejects_what_is_right_and_nothing_else():
    """Its grades vary; with `beta` 0 every second right answer is graded below the positive and stays among the negatives."""
    low, high = grade(np.array([SURE - 0.5, SURE + 0.5]))
    wrong = grade(np.array([-SURE + 0.5]))[0]
    rounds = [e for make in SUITES.values() for e in make().entries if isinstance(e, MiningRound) and e.judge == "oracle"]
    assert len(rounds) > 5
    for each in rounds:
        assert low > high - each.beta  # the lowest grade of a right answer is above the highest bar
        assert wrong < low - each.beta
