"""D2: workers, and who collects what they do, are killed at random moments; nothing is lost, and nothing is there twice."""

import pytest
import sharding
from trials import trials


def check(found, kills):
    assert found.kills.total() == kills
    assert (found.lost, found.doubled, found.same) == (0, 0, True)
    assert found.redone <= found.allowed  # a shard of 1,000 rows for each worker that died in the middle of one


def test_processes(tmp_path):
    check(sharding.killed(tmp_path, trials(6), 3, "local", count=max(20, trials(6))), trials(6))


@pytest.mark.slow  # Ray takes 10 s to start and stop
def test_ray(tmp_path):
    check(sharding.killed(tmp_path, trials(4), 3, "ray", drivers=0.1, count=max(20, trials(4)), pause=0.2), trials(4))
