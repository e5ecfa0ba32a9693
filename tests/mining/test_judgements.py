"""The store of judgements: what it keeps, what it gives back, and what damage does to it."""

import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from hardwon import artifacts
from hardwon.mining import JudgementStore, judgements
from hardwon.models import Judgements


def key(n):
    return f"{n:032x}", f"{n + 10**6:032x}"


def said(yes, no=None, problems=None):
    yes = np.array(yes, dtype=np.float32)
    return Judgements(yes, np.zeros_like(yes) if no is None else np.array(no, dtype=np.float32), problems or {})


def test_raw_logits_are_kept_to_the_last_bit(tmp_path):
    yes, no = np.random.default_rng(0).normal(size=(2, 50)).astype(np.float32) * 30
    JudgementStore(tmp_path, "a").add([key(n) for n in range(50)], Judgements(yes, no))
    back = JudgementStore(tmp_path, "a")
    assert len(back) == 50
    found = [back.answer(key(n)) for n in range(50)]
    assert [a.yes for a in found] == yes.tolist()
    assert [a.no for a in found] == no.tolist()
    assert all(key(n) in back and not a.problem for n, a in enumerate(found))
    assert key(50) not in back
    assert back.answer(key(50)) is None
    assert (key(0)[1], key(0)[0]) not in back  # a pair has a direction


def test_another_judge_has_answers_of_its_own(tmp_path):
    JudgementStore(tmp_path, "a").add([key(1)], said([1.0]))
    assert key(1) not in JudgementStore(tmp_path, "b")
    JudgementStore(tmp_path, "b").add([key(1)], said([2.0]))
    assert [JudgementStore(tmp_path, judge).answer(key(1)).yes for judge in "ab"] == [1.0, 2.0]


def test_a_problem_is_kept_with_its_reason_and_is_no_answer(tmp_path):
    store = JudgementStore(tmp_path, "a")
    store.add([key(n) for n in range(4)], said([1, math.nan, math.inf, 2], [0, math.nan, 0, 0], {1: "HTTP 429", 3: "no Yes"}))
    for known in (store, JudgementStore(tmp_path, "a")):
        assert [key(n) in known for n in range(4)] == [True, False, False, False]
        assert [known.answer(key(n)).problem for n in range(4)] == ["", "HTTP 429", "logits inf and 0", "no Yes"]
        assert all(math.isnan(known.answer(key(n)).yes) for n in (1, 2, 3))  # never a number that was made up


@pytest.mark.parametrize("order", [1, -1])
def test_an_answer_beats_a_problem_whichever_is_read_first(tmp_path, order):
    def ask(judgement):
        JudgementStore(tmp_path, "a").add([key(1)], judgement)

    for judgement in [said([math.nan], problems={0: "time-out"}), said([3.0])][::order]:
        ask(judgement)
    store = JudgementStore(tmp_path, "a")
    assert store.answer(key(1)) == (3.0, 0.0, "")
    store.add([key(1)], said([math.nan], problems={0: "again"}))
    assert store.answer(key(1)) == (3.0, 0.0, "")


def test_many_shards_are_packed_and_none_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(judgements, "PACK", 10)
    store, other = JudgementStore(tmp_path, "a"), JudgementStore(tmp_path, "a")
    for n in range(12):
        store.add([key(n)], said([n]))
    other.add([key(99)], said([99]))  # another run beside this one
    other.add([key(98)], said([math.nan], problems={0: "why"}))
    store.pack()
    assert len(list(store.folder.glob("*.parquet"))) == 3
    back = JudgementStore(tmp_path, "a")
    assert [back.answer(key(n)).yes for n in (*range(12), 99)] == [*range(12), 99]
    assert back.answer(key(98)).problem == "why"
    store.pack()
    assert len(list(store.folder.glob("*.parquet"))) == 3


def test_the_same_answers_make_the_same_file(tmp_path):
    for folder in ("one", "two"):
        JudgementStore(tmp_path / folder, "a").add([key(1), key(2)], said([1, math.nan], problems={1: "why"}))
    one, two = (next((tmp_path / folder).rglob("*.parquet")) for folder in ("one", "two"))
    assert one.name == two.name
    assert one.read_bytes() == two.read_bytes()
    assert pq.read_table(one).column_names == ["query", "candidate", "yes", "no", "problem"]


def test_a_damaged_shard_costs_its_own_pairs_only_and_is_named(tmp_path, capsys):
    store = JudgementStore(tmp_path, "a")
    store.add([key(1)], said([1.0]))
    store.add([key(2)], said([2.0]))
    broken = sorted(store.folder.glob("*.parquet"))[0]
    broken.write_bytes(broken.read_bytes()[:-9])
    (store.folder / ".x.parquet.0123.tmp").write_bytes(b"torn")  # what a killed writer leaves
    back = JudgementStore(tmp_path, "a")
    assert len(back) == 1
    assert broken.name in "".join(capsys.readouterr().err.split())
    assert not broken.exists()
    assert broken.with_name(f"{broken.name}.damaged").exists()  # where nobody reads it, and nobody deletes it


@pytest.mark.parametrize("reader", ["whole", "read_bytes"])
def test_a_shard_that_could_not_be_read_for_a_moment_is_not_lost(tmp_path, monkeypatch, capsys, reader):
    store = JudgementStore(tmp_path, "a")
    for n in range(12):
        store.add([key(n)], said([n]))
    unlucky = sorted(store.folder.glob("*.parquet"))[3]
    monkeypatch.setattr(judgements, "PACK", 10)
    kind = artifacts.Growing if reader == "whole" else Path
    real = getattr(kind, reader)

    def flaky(self, *args):
        if unlucky.name in (self.name if isinstance(self, Path) else args):
            raise OSError(5, "Input/output error")
        return real(self, *args)

    monkeypatch.setattr(kind, reader, flaky)
    back = JudgementStore(tmp_path, "a")  # packs the others
    assert len(back) == 11
    assert "cannot be read now" in " ".join(capsys.readouterr().err.split())
    back.finish()
    monkeypatch.undo()
    whole = JudgementStore(tmp_path, "a")
    assert [whole.answer(key(n)).yes for n in range(12)] == list(range(12))


def test_in_memory_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = JudgementStore(None, "a")
    store.add([key(1)], said([1.0]))
    store.pack()
    assert key(1) in store
    assert list(tmp_path.iterdir()) == []
