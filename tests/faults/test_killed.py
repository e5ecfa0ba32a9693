"""Runs that are killed at the worst moments, or asked to end, come to the weights and losses of an undisturbed one."""

import random

import faulting
import pytest
from trials import trials

SAVING = faulting.POINTS[:4]


@pytest.fixture(scope="module")
def truth(tiny_text, tmp_path_factory):
    """By number of processes: digest of the weights and losses of an undisturbed run."""
    return {size: faulting.calm(tmp_path_factory.mktemp("calm"), str(tiny_text), size) for size in (1, 2)}


def test_killed_at_every_point_of_a_step(truth, tiny_text, tmp_path):
    """In the middle of a file, before and after the manifest, between two steps, within a line of the log."""
    faults = [(point, n % 2, 0) for n, point in enumerate(faulting.POINTS)]
    for n in range(trials(1)):
        made = faulting.killed(tmp_path / str(n), str(tiny_text), 1, faults, truth[1])
        assert made.wrong == ()
        assert made.kills == len(faults)


def test_killed_at_any_time(truth, tiny_text, tmp_path):
    rng = random.Random(0)
    for n in range(trials(1)):
        made = faulting.killed(tmp_path / str(n), str(tiny_text), 1, [rng.uniform(0, 0.3) for _ in range(2)], truth[1])
        assert made.wrong == ()


def test_one_of_two_is_killed(truth, tiny_text, tmp_path):
    """The other one ends by itself, and together they go on."""
    made = faulting.killed(tmp_path, str(tiny_text), 2, [("before the manifest", 1, 0), ("after the update", 2, 1)], truth[2])
    assert made.wrong == ()
    assert made.kills == 2


def test_asked_to_end(truth, tiny_text, tmp_path):
    rng = random.Random(0)
    for n in range(trials(2)):
        after = rng.uniform(0, 0.6)
        assert faulting.terminated(tmp_path / f"one-{n}", str(tiny_text), 1, after, truth[1]) == []
    assert faulting.terminated(tmp_path / "two", str(tiny_text), 2, 0.25, truth[2]) == []
