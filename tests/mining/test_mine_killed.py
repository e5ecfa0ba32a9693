"""A real process that mines is killed again and again: no work is done twice, none is lost, and the end is the same."""

import collections

import killing

from hardwon import artifacts

KILLS = 10


def test_killed_at_ten_random_points(tmp_path):
    found = killing.killed(tmp_path, KILLS, seed=7, queries=60)
    kinds = collections.Counter(line.split()[0] for line in found.work[0])
    assert kinds["embed"] == 8 and kinds["search"] == 4 and kinds["judge"] > 20  # each in pieces
    assert 0 < len(found.repeated) <= KILLS
    assert set(found.repeated) > {"judge"}  # it was killed in more than one stage
    assert found.late == []  # only what was in flight is done again
    assert found.lost == []  # and then the very same pieces, in order
    assert found.differ == []
    artifact = tmp_path / "killed/artifact"
    assert set(artifacts.load(artifact, "negatives").files) == {"examples.jsonl", "ledger.parquet", "summary.json"}
    judged = [next((tmp_path / run / "store").glob("judge-*")) for run in ("calm", "killed")]
    calm, killed = (artifacts.load(folder, "judgements").stats for folder in judged)
    assert killed == calm and set(calm["calibration"]) == {"auc", "ece", "gold", "random", "canary"}
    for folder in (tmp_path / "killed/store").iterdir():
        assert artifacts.load(folder).kind in ("vectors", "retrieval", "judgements")  # with checksums that hold
