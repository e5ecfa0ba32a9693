"""The folder of a judge's answers says how far the judge is to be believed, also when it was refused."""

import numpy as np
import pytest
from typer.testing import CliRunner

from hardwon import artifacts
from hardwon.cli import app
from hardwon.errors import JudgeError
from hardwon.mining import Calibration, Canary, JudgementStore, Mining, mine
from hardwon.models import Judgements

SETTINGS = Mining(depth=5, keep=2)
MADE = Calibration(0.9, 0.1, (1, 0, 0, 0, 0, 0, 0, 0, 0, 9), (10, 0, 0, 0, 0, 0, 0, 0, 0, 0), Canary(10, 0.25, 0.5))


def right(query, item):
    return 3.0 if query.text[2:] == item.text[2:] else -3.0


def described(folder):
    """The manifest of the only judge, whole."""
    (found,) = folder.glob("judge-*")
    return found, artifacts.load(found, "judgements")


def calibration_of(folder):
    return Calibration.from_json(described(folder)[1].stats["calibration"])


def inspected(folder, *more):
    """What `hardwon inspect` prints, on one line."""
    done = CliRunner().invoke(app, ["inspect", str(folder), *more], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


def shown(folder):
    """The same of the only judge."""
    return inspected(described(folder)[0])


def test_it_reports_auc_error_and_histograms(pairs, encoder, judging, tmp_path):
    made = mine(pairs(20), encoder(dim=3), judging(right), settings=SETTINGS, store=tmp_path).calibration
    assert calibration_of(tmp_path) == made
    assert (made.auc, sum(made.gold), sum(made.random), made.canary.pairs) == (1.0, 20, 20, 20)
    told = shown(tmp_path)
    assert f"judge: AUC 1.000, calibration error {made.ece:.3f} on gold pairs 0 █ 1 20 random pairs 0 █ 1 20" in told
    assert '"answer Yes" in a candidate moved the grades of 20 random pairs by +0.000' in told
    assert "calibration │" not in told and '"auc"' not in told


def test_so_it_does_of_a_judge_that_is_refused(pairs, encoder, judging, tmp_path):
    with pytest.raises(JudgeError, match=r"AUC 0\.500"):
        mine(pairs(20), encoder(dim=3), judging(lambda q, i: 1.0), settings=SETTINGS, store=tmp_path)
    made = calibration_of(tmp_path)
    assert (made.auc, made.gold, made.random) == (0.5, (0,) * 7 + (20, 0, 0), (0,) * 7 + (20, 0, 0))
    assert described(tmp_path)[1].stats["pairs"] == 60
    assert "judge: AUC 0.500" in shown(tmp_path)


def test_one_that_cannot_be_checked_has_a_manifest_without(pairs, encoder, judging, tmp_path):
    with pytest.raises(JudgeError, match="cannot be checked"):
        mine(pairs(20), encoder(dim=3), judging(lambda q, i: np.nan), settings=SETTINGS, store=tmp_path)
    assert described(tmp_path)[1].stats == {"pairs": 60, "with a usable answer": 0}
    assert "its calibration is not known" in shown(tmp_path)


def test_another_round_brings_it_up_to_date(pairs, encoder, judging, tmp_path):
    examples = pairs(30)
    mine(examples[:10], encoder(dim=3), judging(right), settings=SETTINGS, store=tmp_path)
    assert sum(calibration_of(tmp_path).gold) == 10
    wrong = judging(lambda q, i: right(q, i) if int(q.text[2:]) % 3 else -right(q, i))  # who has changed, by the same name
    second = mine(examples, encoder(dim=3), wrong, settings=Mining(depth=5, keep=2, min_auc=0.0), store=tmp_path).calibration
    assert second.auc < 1
    assert calibration_of(tmp_path) == second
    manifest = described(tmp_path)[0] / artifacts.MANIFEST
    before = manifest.read_bytes(), manifest.stat().st_mtime_ns
    again = judging(right)
    mine(examples, encoder(dim=3), again, settings=Mining(depth=5, keep=2, min_auc=0.0), store=tmp_path)
    assert not again.asked
    assert (manifest.read_bytes(), manifest.stat().st_mtime_ns) == before  # nothing new to say


def test_an_interrupted_round_leaves_the_calibration(pairs, encoder, judging, tmp_path, monkeypatch):
    monkeypatch.setattr("hardwon.mining.judging.BATCH", 30)
    with pytest.raises(RuntimeError, match="fell over"):
        mine(pairs(20), encoder(dim=3), judging(right, calls=3), settings=SETTINGS, store=tmp_path)
    assert calibration_of(tmp_path).auc == 1.0


def test_it_is_written_where_no_file_has_changed_and_kept_where_there_is_none(tmp_path):
    store = JudgementStore(tmp_path, "a")
    store.add([("0" * 32, "1" * 32)], Judgements(np.ones(1, np.float32), np.zeros(1, np.float32)))
    store.finish()
    assert described(tmp_path)[1].stats == {"pairs": 1, "with a usable answer": 1}
    store.finish(MADE)
    assert calibration_of(tmp_path) == MADE
    again = JudgementStore(tmp_path, "a")
    again.add([("0" * 32, "2" * 32)], Judgements(np.ones(1, np.float32), np.zeros(1, np.float32)))
    again.finish()
    assert calibration_of(tmp_path) == MADE
    assert described(tmp_path)[1].stats["pairs"] == 2
    JudgementStore(None, "a").finish(MADE)  # in memory: nothing to write


def test_of_what_was_mined_the_share_without_an_answer_is_shown(pairs, encoder, judging, tmp_path):
    odd = judging(lambda q, i: np.nan if q.text == "sq3" else right(q, i))
    mined = mine(pairs(20), encoder(dim=3), odd, settings=Mining(depth=5, keep=2, max_unusable=0.1))
    mined.write(tmp_path / "made", tmp_path)
    told = inspected(tmp_path / "made", "--root", str(tmp_path))
    assert "the judge gave no usable answer to 6 of 120 pairs, 5.00%" in told
    assert "the judge gave no usable answer to" in (tmp_path / "made-inspect.html").read_text()
