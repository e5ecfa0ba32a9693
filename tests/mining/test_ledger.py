import dataclasses

import pyarrow.parquet as pq

from hardwon.mining import Entry, ledger, read_ledger

JUDGED = Entry(3, "s", "q" * 32, "c" * 32, "d" * 32, 7, 0.5, -1.25, 0.25, 0.75, "kept", "cyclic")
PLAIN = dataclasses.replace(JUDGED, judge=None, grade=None, gold_grade=None, verdict="spare", rule="not selected")


def test_what_was_written_is_read(tmp_path):
    ledger.write(tmp_path / "l.parquet", [JUDGED, PLAIN])  # floats that float32 holds exactly
    assert read_ledger(tmp_path / "l.parquet") == [JUDGED, PLAIN]


def test_an_empty_ledger_keeps_its_columns(tmp_path):
    ledger.write(tmp_path / "l.parquet", [])
    assert read_ledger(tmp_path / "l.parquet") == []
    assert pq.read_schema(tmp_path / "l.parquet").names == [f.name for f in dataclasses.fields(Entry)]


def test_summary_counts_verdicts_and_rules_the_most_frequent_first():
    found = ledger.summary([JUDGED, PLAIN, PLAIN])
    assert list(found.items()) == [("spare: not selected", 2), ("kept: cyclic", 1)]
    assert ledger.summary([]) == {}
