"""A real process that mines is killed again and again: no pair is judged twice, none is lost, and the end is the same."""

import multiprocessing
import signal
import time

import numpy as np
import processes

KILLS = 10


def start(out, pause):
    out.mkdir(exist_ok=True)
    multiprocessing.set_forkserver_preload(["hardwon.training.run", "sentence_transformers"])  # as `together`
    process = multiprocessing.get_context("forkserver").Process(target=processes.mining, args=(out, pause))
    process.start()
    return process


def finish(out):
    process = start(out, 0.0)
    process.join(120)
    assert process.exitcode == 0


def calls(out, what):
    """Keys that the judge or the encoder was asked about, call by call."""
    lines = (out / "log").read_text().splitlines() if (out / "log").exists() else []
    return [line.split()[1:] for line in lines if line.startswith(what)]


def test_killed_at_ten_random_points(tmp_path):
    calm, out = tmp_path / "calm", tmp_path / "killed"
    finish(calm)
    calmly = calls(calm, "judge")
    assert len(calmly) > 20
    rng = np.random.default_rng(7)
    for _ in range(KILLS):
        # When it has asked once or twice more than the one before, at any moment of that batch or the next.
        goal = len(calls(out, "judge")) + int(rng.integers(1, 3))
        process, deadline = start(out, 0.05), time.monotonic() + 60
        while len(calls(out, "judge")) < goal and process.is_alive():
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(float(rng.uniform(0, 0.07)))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "it ended by itself"
    finish(out)

    asked = calls(out, "judge")
    again = [n for n, batch in enumerate(asked) if batch in asked[:n]]
    assert 0 < len(again) <= KILLS
    assert all(asked[n] == asked[n - 1] for n in again)  # only what was in flight is asked again
    assert [batch for n, batch in enumerate(asked) if n not in again] == calmly  # and then the very same batches, in order
    assert len({pair for batch in asked for pair in batch}) == sum(map(len, calmly))
    embedded = [key for batch in calls(out, "embed") for key in batch]
    assert len(embedded) <= len(set(embedded)) + 16 * KILLS
    names = sorted(path.name for path in (calm / "artifact").iterdir())
    assert names == ["examples.jsonl", "ledger.parquet", "summary.json"]
    for name in names:
        assert (out / "artifact" / name).read_bytes() == (calm / "artifact" / name).read_bytes(), name
