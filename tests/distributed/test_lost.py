"""Nobody waits for ever: uneven work is done, long work of the first is waited for, and a lost process ends the others."""

import faulting
import pytest

FINISHING = [name for name, said in faulting.SCENARIOS.items() if set(said) == {"finished"}]
FAILING = [name for name in faulting.SCENARIOS if name not in FINISHING]


@pytest.fixture(scope="module")
def models(tiny_text, tiny_vlm, pictures):
    return str(tiny_text), str(tiny_vlm), pictures


def test_uneven_and_long_work_is_done(models, tmp_path):
    ended = faulting.Team(2, tmp_path / "team", faulting.scenarios, FINISHING, *models, str(tmp_path / "run")).ended(150)
    assert [(end.code, end.said) for end in ended] == [(0, "finished")] * 2


@pytest.mark.parametrize("name", FAILING)
def test_a_lost_process_ends_the_others(name, models, tmp_path):
    assert faulting.played(name, tmp_path, models) == []
