"""Trials that are tests with more tries: the same code, HARDWON_TRIALS times as often as at every commit."""

import math
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

from benchmarks.reliability.trial import Outcome, Trial

ROOT = Path(__file__).parents[2]


def by_tests(name: str, what: str, goal: str, tests: str, *, each: int, full: int) -> Trial:
    """A trial that runs tests.

    Args:
        name: see `Trial`.
        what: see `Trial`.
        goal: see `Trial`.
        tests: file, and words that choose among its tests if there are any (as pytest's -k takes them).
        each: tries of these tests at every commit, all parameters together.
        full: see `Trial`; rounded up to a multiple of `each`.
    """
    return Trial(name, what, goal, full, _runner(tests, each))


def _runner(tests: str, each: int) -> Callable[[int, int], Outcome]:
    def run(tries: int, seed: int) -> Outcome:  # the tests have seeds of their own
        times = math.ceil(tries / each)
        passed, failed = _pytest(tests, times)
        return Outcome(each * times, failed, f"{passed} of {passed + failed} tests pass ({tests})")

    return run


def _pytest(tests: str, times: int) -> tuple[int, int]:
    """Tests that passed, and that did not."""
    file, _, words = tests.partition(" ")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", file, "-p", "no:cacheprovider", f"--junitxml={report}"]
        command += ["-k", words] if words else []
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | {"HARDWON_TRIALS": str(times)}, capture_output=True, text=True, check=False
        )
        if not report.exists():
            raise RuntimeError(f"pytest did not run: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        cases = ET.parse(report).getroot().findall(".//testcase")
    bad = sum(any(case.find(kind) is not None for kind in ("failure", "error", "skipped")) for case in cases)
    if not cases:
        raise RuntimeError(f"{tests} chooses no test")
    return len(cases) - bad, bad
