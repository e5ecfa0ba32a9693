"""A sample of what `benchmarks.reliability` tries in full: planted false negatives, and captions that talk to the judge."""

import planted
import pytest


def test_planted_copies_of_positives_do_not_survive_a_judge_that_knows():
    data = planted.made(30, seed=0)
    assert len(data.examples) == len(data.planted) == 30
    candidates = [c.item for e in data.examples for c in e.candidates]
    assert len(set(candidates)) == len(candidates) == 20 * 30  # one in twenty is planted
    found = planted.survivors(data)
    assert len(found.kept) > 27  # nearly all are retrieved
    assert sum(found.bare) > 0.9 * len(found.bare)
    # Without the judge the rule about copies leaves what was said in other words.
    assert {kind for kind, kept in zip(found.kinds, found.filtered, strict=True) if kept} <= {"texts", "cropped"}
    assert sum(found.kept) <= 1
    assert found.auc > 0.99


def test_the_interval_of_a_share_has_a_width_where_nothing_was_seen():
    assert planted.share([False] * 100) == (0.0, 0.0, pytest.approx(0.037, abs=1e-3))


def test_captions_that_talk_to_the_judge_move_no_neighbour(tmp_path):
    found = planted.injected(tmp_path, 20)
    assert (found.moved, found.unusable) == (0, 0)
    assert abs(found.shift) < 0.5  # untrained: it does not obey
