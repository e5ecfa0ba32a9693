"""Answers of a judge in a file are given again as they were, to the last bit."""

import json
import re

import numpy as np
import pytest

from hardwon.errors import JudgeError
from hardwon.items import Item
from hardwon.models import Judgements, Question, RecordedJudge, Scorer, YesNo, record
from hardwon.models.scorer import name_of

PAIRS = [(Item(text=query), Item(text=f"thing {n}")) for query in ("a", "b") for n in range(3)]
REASON = "it said \u201cI\u201d"


class Fixed:
    """Answers by position; nothing for the second pair."""

    fingerprint = "fixed"

    def judge(self, pairs, *, progress=""):
        yes = np.linspace(-3, 0, len(pairs), dtype=np.float32)
        no = np.log1p(-np.exp(yes - 0.01)).astype(np.float32)
        yes[1] = no[1] = np.nan
        return Judgements(yes, no, {1: REASON})


class Odds:
    def __init__(self, fingerprint="odds"):
        self.fingerprint = fingerprint

    def score_pairs(self, pairs, *, progress=""):
        return np.arange(len(pairs), dtype=np.float32)


def same(made, truth):
    np.testing.assert_array_equal(made.yes, truth.yes)
    np.testing.assert_array_equal(made.no, truth.no)
    assert made.yes.dtype == made.no.dtype == np.float32
    assert dict(made.problems) == dict(truth.problems)


def test_what_was_recorded_is_said_again(tmp_path):
    path = tmp_path / "said.jsonl"
    judge = record(Fixed(), path)
    assert isinstance(judge, YesNo)
    assert judge.fingerprint == "fixed"
    same(judge.judge(PAIRS), Fixed().judge(PAIRS))
    again = RecordedJudge(path)
    assert isinstance(again, YesNo)
    same(again.judge(PAIRS), Fixed().judge(PAIRS))
    back = again.judge(PAIRS[::-1])
    np.testing.assert_array_equal(back.yes[::-1], Fixed().judge(PAIRS).yes)
    assert back.problems == {4: REASON}


def test_more_is_added_and_the_last_word_counts(tmp_path):
    path = tmp_path / "said.jsonl"
    record(Fixed(), path).judge(PAIRS)
    first = RecordedJudge(path).fingerprint
    assert RecordedJudge(path).fingerprint == first
    scorer = Odds("fixed")
    assert isinstance(scorer, Scorer)
    record(scorer, path).judge(PAIRS[:2])
    assert path.read_text().count('"question"') == 1
    made = RecordedJudge(path).judge(PAIRS)
    assert (made.yes[:2].tolist(), made.no[:2].tolist(), dict(made.problems)) == ([0, 1], [0, 0], {})
    np.testing.assert_array_equal(made.yes[2:], Fixed().judge(PAIRS).yes[2:])
    assert RecordedJudge(path).fingerprint != first


class Asked(Fixed):
    """As a judge behind a server: with a name and a question."""

    name, question = "qwen3-vl-8b", Question("Does it fit? {yes} or {no}.", "Ja", "Nein")


def test_the_first_line_says_whose_answers_they_are(tmp_path):
    whose = {}
    for n, judge in enumerate((Fixed(), Asked())):
        path = tmp_path / f"{n}.jsonl"
        wrapped = record(judge, path)
        wrapped.judge(PAIRS)
        assert name_of(wrapped) == name_of(judge)
        whose[n] = RecordedJudge(path)
        same(whose[n].judge(PAIRS), Fixed().judge(PAIRS))
    assert whose[0].recorded == ("fixed", "Fixed", "")
    assert whose[1].recorded == ("fixed", "qwen3-vl-8b", "Does it fit? Ja or Nein.")
    assert (name_of(whose[1]), name_of(Fixed())) == ("qwen3-vl-8b", "")
    # The same answers of another judge are another judge's.
    other = (tmp_path / "0.jsonl").read_text().replace('"fixed"', '"other"')
    (tmp_path / "other.jsonl").write_text(other)
    assert RecordedJudge(tmp_path / "other.jsonl").fingerprint != whose[0].fingerprint


def test_two_judges_do_not_share_a_file(tmp_path):
    path = tmp_path / "said.jsonl"
    record(Fixed(), path).judge(PAIRS)
    before = path.read_bytes()
    told = r"said\.jsonl holds the answers of Fixed \(fixed\): record those of Odds \(odds\) in another file"
    with pytest.raises(JudgeError, match=told):
        record(Odds(), path)
    assert path.read_bytes() == before
    record(Odds(), tmp_path / "other.jsonl").judge(PAIRS)
    path.write_bytes(before + before)  # joined
    same(RecordedJudge(path).judge(PAIRS), Fixed().judge(PAIRS))
    path.write_bytes(before + (tmp_path / "other.jsonl").read_bytes())
    with pytest.raises(JudgeError, match=r"said\.jsonl:8 begins the answers of Odds \(odds\), those before are of Fixed"):
        RecordedJudge(path)


def test_a_file_without_the_line_is_read_and_added_to(tmp_path):
    path = tmp_path / "said.jsonl"
    record(Fixed(), path).judge(PAIRS)
    _, *lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3]))
    assert RecordedJudge(path).recorded == ("", "", "")
    record(Fixed(), path).judge(PAIRS)
    same(RecordedJudge(path).judge(PAIRS), Fixed().judge(PAIRS))
    assert path.read_text().splitlines(keepends=True) == lines[:3] + lines


def test_the_first_pair_that_is_missing_is_named(tmp_path):
    path = tmp_path / "said.jsonl"
    record(Fixed(), path).judge(PAIRS[:4])
    query, item = PAIRS[4]
    said = f"no answer for the pair of 'b' ({query.key}) and 'thing 1' ({item.key})"
    with pytest.raises(JudgeError, match=re.escape(said)):
        RecordedJudge(path).judge(PAIRS)


@pytest.mark.parametrize(
    "change",
    [
        {"yes": None},
        {"reason": "because"},
        {"yes": None, "no": None},
        {"yes": "-0.1"},
        {"yes": True},
        {"yes": float("nan")},
        {"yes": 10**400},
        {"query": 7},
        {"reason": None},
    ],
)
def test_a_line_of_another_form_is_named(tmp_path, change):
    path = tmp_path / "said.jsonl"
    good = {"query": "q", "candidate": "c", "yes": -0.1, "no": -3.0, "reason": ""}
    path.write_text(json.dumps(good) + "\n" + json.dumps(good | change) + "\n")
    with pytest.raises(JudgeError, match=r"said\.jsonl:2 is no recorded answer .*: remove the line"):
        RecordedJudge(path)


@pytest.mark.parametrize("line", ['{"query": "q"', "[]", "7", '{"query": "q", "candidate": "c"}'])
def test_a_line_that_was_cut_off_is_named(tmp_path, line):
    path = tmp_path / "said.jsonl"
    path.write_text(line)
    with pytest.raises(JudgeError, match=r"said\.jsonl:1 is no recorded answer"):
        RecordedJudge(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(JudgeError, match=r"missing\.jsonl does not exist: hardwon\.models\.record"):
        RecordedJudge(tmp_path / "missing.jsonl")
