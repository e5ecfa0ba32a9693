"""Answers of a judge in a file: written while it judges, and read in its place.

The first line says whose answers they are: {"judge": fingerprint, "name": name, "question": words}. Older files have no such
line; they are read all the same, and nobody knows whose they are.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hardwon.artifacts import checksum, fingerprint
from hardwon.errors import JudgeError
from hardwon.models.question import Question
from hardwon.models.scorer import Judgements, Pair, Scorer, YesNo, judgements, name_of


class Recorded(NamedTuple):
    """Whose answers a file holds.

    Attributes:
        judge: its fingerprint; "" where the file does not say.
        name: its name, or of what kind it is.
        question: what it was asked; "" for a judge that is not asked in words.
    """

    judge: str = ""
    name: str = ""
    question: str = ""


class RecordedJudge:
    """Answers from a file of JSON lines: {"query": key, "candidate": key, "yes": logit, "no": logit, "reason": ""}.

    Where there was no usable answer, yes and no are null and `reason` says why. Of several lines about a pair the last counts.

    Attributes:
        path: the file.
        recorded: whose answers they are.
    """

    def __init__(self, path: str | Path):
        """Read the file. Raises JudgeError if it is not there, for a line of another form, or if two judges wrote it."""
        self.path = Path(path)
        if not self.path.is_file():
            raise JudgeError(f"{self.path} does not exist: hardwon.models.record(judge, path) writes such a file")
        self.recorded = Recorded()
        self._said: dict[tuple[str, str], tuple[float, float, str]] = {}
        for n, line in enumerate(self.path.read_bytes().splitlines(), 1):
            if (whose := _whose(line)) is not None:  # again where files of one judge were joined
                if self._said and whose.judge != self.recorded.judge:
                    raise JudgeError(
                        f"{self.path}:{n} begins the answers of {_told(whose)}, those before are of "
                        f"{_told(self.recorded)}: keep them in two files"
                    )
                self.recorded = whose
                continue
            pair, answer = _read(line, f"{self.path}:{n}")
            self._said[pair] = answer
        self._fingerprint = fingerprint(["recorded judge", checksum(self.path)])

    @property
    def fingerprint(self) -> str:
        """Identity of the file's content: whose answers they are, and what was answered."""
        return self._fingerprint

    @property
    def name(self) -> str:
        """That of the judge whose answers they are; "" where the file does not say."""
        return self.recorded.name

    def judge(self, pairs: Sequence[Pair], *, progress: str = "") -> Judgements:
        """What was said of the pairs. Raises JudgeError that names the first pair of which nothing was."""
        said = []
        for query, item in pairs:
            if (answer := self._said.get((query.key, item.key))) is None:
                raise JudgeError(
                    f"{self.path} has no answer for the pair of {query.label} ({query.key}) and {item.label} ({item.key}): "
                    "record it with the judge that wrote the file"
                )
            said.append(answer)
        yes, no = (np.array([answer[n] for answer in said], dtype=np.float32) for n in (0, 1))
        return Judgements(yes, no, {n: reason for n, (_, _, reason) in enumerate(said) if reason})


class _Recording:
    """A judge whose answers are written down as they come."""

    def __init__(self, judge: YesNo | Scorer, path: Path):
        self.judged_by, self.path = judge, path

    @property
    def fingerprint(self) -> str:
        """That of the judge."""
        return self.judged_by.fingerprint

    @property
    def name(self) -> str:
        """That of the judge."""
        return name_of(self.judged_by)

    def judge(self, pairs: Sequence[Pair], *, progress: str = "") -> Judgements:
        """What the judge says, which is then at the end of the file, too."""
        made = judgements(self.judged_by, pairs, progress=progress)
        lines = []
        for n, (query, item) in enumerate(pairs):
            yes, no = (None if n in made.problems else float(values[n]) for values in (made.yes, made.no))
            row = {"query": query.key, "candidate": item.key, "yes": yes, "no": no, "reason": made.problems.get(n, "")}
            lines.append(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
        with open(self.path, "a", encoding="utf-8") as file:
            file.write("".join(lines))
        return made


def record(judge: YesNo | Scorer, path: str | Path) -> YesNo:
    """The same judge; what it says is appended to a file that `RecordedJudge` reads.

    Raises:
        JudgeError: the file holds the answers of another judge.
    """
    path = Path(path)
    asked = getattr(judge, "question", None)
    question = asked.text if isinstance(asked, Question) else ""
    whose = Recorded(judge.fingerprint, name_of(judge) or type(judge).__name__, question)
    with open(path, "ab+") as file:  # made if it is not there
        file.seek(0)
        first = file.readline()
        if not first:
            file.write((json.dumps(whose._asdict(), ensure_ascii=False) + "\n").encode())
    found = _whose(first)
    if found is not None and found.judge != whose.judge:
        raise JudgeError(f"{path} holds the answers of {_told(found)}: record those of {_told(whose)} in another file")
    return _Recording(judge, path)


def _whose(line: bytes) -> Recorded | None:
    """What a line says of the judge; None if it is another line."""
    try:
        row = json.loads(line)
        whose = Recorded(row["judge"], row["name"], row["question"])
    except (ValueError, TypeError, KeyError):
        return None
    return whose if all(isinstance(text, str) for text in whose) else None


def _told(whose: Recorded) -> str:
    return f"{whose.name} ({whose.judge})" if whose.judge else "a judge that the file does not name"


def _read(line: bytes, place: str) -> tuple[tuple[str, str], tuple[float, float, str]]:
    try:
        row = json.loads(line)
        pair, reason = (row["query"], row["candidate"]), row["reason"]
        said: list[Any] = [row["yes"], row["no"]]
        if not all(isinstance(text, str) for text in (*pair, reason)):
            raise TypeError("keys and reason are texts")
        if reason and said == [None, None]:
            return pair, (math.nan, math.nan, reason)
        if reason or not all(type(value) in (int, float) and math.isfinite(value) for value in said):
            raise ValueError("yes and no are numbers without a reason, or null with one")
        return pair, (float(said[0]), float(said[1]), "")
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise JudgeError(f"{place} is no recorded answer ({error}): remove the line") from None
