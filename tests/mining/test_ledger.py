import dataclasses

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hardwon.errors import ArtifactError
from hardwon.mining import Entry, ledger, read_ledger
from hardwon.mining.ledger import Said

KEYS = (3, "s", "q" * 32, "c" * 32, "d" * 32, 7, 0.5, 0.75)
JUDGED = Entry(*KEYS, -1.25, 0.5, 0.25, "", 2.5, 0.5, 0.75, "", "kept", "cyclic")
PLAIN = dataclasses.replace(
    JUDGED, yes=None, no=None, grade=None, problem="HTTP 500", gold_yes=None, gold_no=None, gold_grade=None,
    gold_problem="no answer", verdict="spare", rule="not selected", bar=0.625,
    other_golds=(Said(0.5, -0.5, 0.75, ""), Said(None, None, None, "HTTP 500")),
)  # fmt: skip


def test_what_was_written_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "_AT_ONCE", 2)
    ledger.write(tmp_path / "l.parquet", [JUDGED, PLAIN, JUDGED], {"judge": "é"})  # floats that float32 holds exactly
    assert read_ledger(tmp_path / "l.parquet") == [JUDGED, PLAIN, JUDGED]
    assert ledger.about(tmp_path / "l.parquet") == {"judge": "é"}


def test_an_empty_ledger_keeps_its_columns(tmp_path):
    ledger.write(tmp_path / "l.parquet", [])
    assert read_ledger(tmp_path / "l.parquet") == []
    assert pq.read_schema(tmp_path / "l.parquet").names == [f.name for f in dataclasses.fields(Entry)]
    assert ledger.about(tmp_path / "l.parquet") == {}


def test_a_ledger_of_another_version_is_refused(tmp_path):
    pq.write_table(pa.table({"row": [1], "judge": [0.5]}), tmp_path / "l.parquet")
    with pytest.raises(ArtifactError, match=r"has no column .*yes.*: another version of hardwon wrote it"):
        read_ledger(tmp_path / "l.parquet")
    assert ledger.about(tmp_path / "l.parquet") == {}


def test_summary_counts_verdicts_and_rules_the_most_frequent_first():
    found = ledger.summary([JUDGED, PLAIN, PLAIN])
    assert list(found.items()) == [("spare: not selected", 2), ("kept: cyclic", 1)]
    assert ledger.summary([]) == {}


def test_pairs_without_a_usable_answer_are_counted_once():
    other = dataclasses.replace(PLAIN, candidate="e" * 32, yes=1.0, problem="")
    unasked = dataclasses.replace(PLAIN, candidate="f" * 32, problem="")
    found = ledger.judged([PLAIN, PLAIN, other, unasked, dataclasses.replace(JUDGED, row=4, query="r" * 32)])
    # Of two queries one has a positive and one has three, and there are three candidates.
    assert found == {"pairs": 7, "without a usable answer": 3, "share without": 3 / 7}
    none = dataclasses.replace(unasked, gold_problem="", other_golds=())
    assert ledger.judged([none]) == {"pairs": 0, "without a usable answer": 0, "share without": 0.0}


def test_disagreement_is_the_distance_of_two_gaps():
    """The judge puts the candidate 0.5 below the positive, the embedder 0.25."""
    assert JUDGED.disagreement == 0.25
    assert dataclasses.replace(JUDGED, similarity=1.0).disagreement == 0.75
    assert PLAIN.disagreement is None
