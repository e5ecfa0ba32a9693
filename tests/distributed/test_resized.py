"""A run goes on with another number of processes, whole weights or divided: 2, then 1, then 2."""

import faulting
import pytest
from trials import TIMES


@pytest.mark.parametrize("shard", [True, False] if TIMES > 1 else [True])
def test_the_losses_are_those_of_one_process(shard, tiny_text, tmp_path):
    truth = tmp_path / "truth"
    faulting.learn(str(tiny_text), str(truth), dropout=False)
    wrong, losses = faulting.resized(tmp_path, str(tiny_text), (2, 1, 2), shard)
    assert wrong == []
    assert [step for step, *_ in losses] == list(range(1, faulting.STEPS + 1))
    for found, expected in zip(losses, faulting.losses(truth), strict=True):
        assert found[1] == pytest.approx(expected[1], abs=1e-5)
