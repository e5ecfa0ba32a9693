"""What a benchmark asks and the training data holds already: the same items, near copies of pictures, near copies of texts."""

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from hardwon.errors import BadMedia
from hardwon.evaluation.crops import cuts
from hardwon.evaluation.fingers import Pictures, Texts, alike, look, normal
from hardwon.evaluation.task import Benchmark
from hardwon.items import Example, Item, Picture, picture_key
from hardwon.progress import bar

WORDS = 4  # a text of fewer words is a label unless it is a query: that training knows it is no leak
ROWS = 5  # training rows that are named
TEXTS = 5  # so many different texts that begin alike begin with an instruction
_LETTER = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]")  # Chinese, Japanese

Kind = Literal["exact", "picture", "crop", "text"]


@dataclass(frozen=True)
class Leak:
    """An item of the benchmark that the training data holds.

    Attributes:
        task: name of the data set.
        part: "query" or "corpus".
        row: number of the query or of the corpus entry.
        item: what it is, in a few words.
        kind: "exact": the same content, or the same few words asked; "picture": a picture of it, perhaps encoded or resized
            again; "crop": a picture that one of it is cut from, or that is cut from it; "text": nearly the same words.
        training: numbers of training examples that hold it, the first few.
    """

    task: str
    part: str
    row: int
    item: str
    kind: Kind
    training: tuple[int, ...]


@dataclass(frozen=True)
class Leaks:
    """What was found.

    Attributes:
        found: every leak, by task, part and row.
        looked: items of the benchmark that were looked for, by task and part.
        unreadable: pictures, of training data and benchmark, that could not be looked at.
    """

    found: tuple[Leak, ...]
    looked: dict[str, int]
    unreadable: int

    def counts(self) -> dict[str, Any]:
        """How many were found, by task, part and kind, and how many were looked for."""
        found = Counter(f"{leak.task}, {leak.part}, {leak.kind}" for leak in self.found)
        return {"found": dict(sorted(found.items())), "looked for": self.looked, "unreadable pictures": self.unreadable}

    def to_json(self) -> dict[str, Any]:
        """All leaks and the counts."""
        return {**self.counts(), "leaks": [asdict(leak) for leak in self.found]}

    def __str__(self) -> str:
        if not self.found:
            return f"no leak: none of {sum(self.looked.values()):,} items is in the training data"
        lines = [f"{len(self.found):,} of {sum(self.looked.values()):,} items are in the training data:"]
        lines += [f"   {name}: {count:,}" for name, count in self.counts()["found"].items()]
        return "\n".join(lines)


def leakage(examples: Sequence[Example], benchmark: Benchmark, *, progress: bool = True) -> Leaks:
    """Find what a benchmark asks that the training data holds.

    An item with pictures leaks when one of its pictures does, whatever its words: the same question about another picture is
    no leak. A picture that is cut from one of training leaks as well, or that one of training is cut from, where the cut-out
    holds at least half of each side. A text alone leaks when training holds nearly the same text alone; of fewer than `WORDS`
    words (two letters of Chinese or Japanese being one) only a query that is a query of training word by word, for others are
    labels. Instructions are left out, also those that stand in the text: the words that all texts of a data set begin with.

    Args:
        examples: training data; queries and all candidates are looked at.
        benchmark: queries and corpora are looked at.
        progress: whether to show a bar.
    """
    known = _Training(examples, progress)
    asked = [
        (task.name, part, row, item)
        for task in benchmark.tasks
        for part, items in (("query", task.queries), ("corpus", task.corpus))
        for row, item in enumerate(items)
        if item.pictures or part == "query" or _words(item) >= WORDS
    ]
    looks = _looks((picture for *_, item in asked for picture in item.pictures), "looking at the benchmark", progress)
    copies = known.copies(looks.seen)
    crops = known.crops(looks, copies, progress)
    openings = _openings(asked)
    found = []
    with bar("looking for leaks", len(asked), "items", shown=progress) as advance:
        for task, part, row, item in asked:
            kind, rows = known.find(item, part == "query", _Seen(copies, crops), openings.get((task, part), ""))
            if kind is not None:
                found.append(Leak(task, part, row, item.label, kind, tuple(sorted(rows)[:ROWS])))
            advance()
    looked = Counter(f"{task}, {part}" for task, part, *_ in asked)
    return Leaks(tuple(found), dict(sorted(looked.items())), looks.unreadable + known.unreadable)


def _words(item: Item) -> int:
    text = normal(item.text)
    return len(_LETTER.sub(" ", text).split()) + len(_LETTER.findall(text)) // 2


def _openings(asked: Iterable[tuple[str, str, int, Item]]) -> dict[tuple[str, str], str]:
    """The words that all texts of a task's queries, or of its corpus, begin with."""
    texts: dict[tuple[str, str], set[str]] = defaultdict(set)
    for task, part, _, item in asked:
        if not item.pictures:
            texts[task, part].add(normal(item.text))
    return {of: _opening(some) for of, some in texts.items() if len(some) >= TEXTS}


def _opening(texts: Iterable[str]) -> str:
    first, *_, last = sorted(text.split() for text in texts)  # what these two begin with, all between them do as well
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return "".join(f"{word} " for word, _ in same)


def _picture(picture: Picture) -> str:
    """Content hash of a picture; "" of one that is not there."""
    try:
        return picture_key(picture)
    except BadMedia:
        return ""


@dataclass(frozen=True)
class _Looks:
    """Distinct pictures by content hash, thumbnails of those that could be read, and how many could not."""

    pictures: dict[str, Picture]
    seen: dict[str, np.ndarray]
    unreadable: int


def _looks(pictures: Iterable[Picture], what: str, progress: bool) -> _Looks:
    distinct: dict[str, Picture] = {}
    missing = 0
    for picture in pictures:
        key = _picture(picture)
        missing += not key
        if key:
            distinct.setdefault(key, picture)
    seen = {}
    with bar(what, len(distinct), "pictures", shown=progress and bool(distinct)) as advance:
        for key, picture in distinct.items():
            try:
                seen[key] = look(picture)
            except BadMedia:
                missing += 1
            advance()
    return _Looks(distinct, seen, missing)


@dataclass(frozen=True)
class _Seen:
    """For each picture of the benchmark the training pictures that show the same, and those that show a part or more of it."""

    same: Mapping[str, Sequence[str]]
    cut: Mapping[str, Sequence[str]]

    def copies(self, keys: Sequence[str]) -> list[str]:
        """What shows the same as one of these."""
        return [copy for key in keys for copy in self.same.get(key, ())]

    def crops(self, keys: Sequence[str]) -> list[str]:
        """What shows a part of one of these, or more of it."""
        return [copy for key in keys for copy in self.cut.get(key, ())]


class _Training:
    """Everything that training examples hold, ready to be searched."""

    def __init__(self, examples: Sequence[Example], progress: bool):
        self.contents: dict[str, set[int]] = defaultdict(set)
        self.pictures: dict[str, set[int]] = defaultdict(set)
        self.texts: dict[str, set[int]] = defaultdict(set)
        self.short: dict[str, set[int]] = defaultdict(set)
        some: list[Picture] = []
        for row, example in enumerate(examples):
            for item in (example.query, *(candidate.item for candidate in example.candidates)):
                keys = [_picture(picture) for picture in item.pictures]
                some += item.pictures
                for key in keys:
                    self.pictures[key].add(row)
                if all(keys):
                    self.contents[item.content].add(row)
                if not keys and _words(item) >= WORDS:
                    self.texts[normal(item.text)].add(row)
            if not example.query.pictures and _words(example.query) < WORDS:
                self.short[normal(example.query.text)].add(row)
        looks = _looks(some, "looking at the training data", progress)
        self.looks, self.seen, self.unreadable = looks, list(looks.seen), looks.unreadable
        self.near = Pictures(np.stack(list(looks.seen.values()))) if looks.seen else None
        self.words = list(self.texts)
        self.similar = Texts(self.words)

    def copies(self, looks: dict[str, np.ndarray]) -> dict[str, tuple[str, ...]]:
        """For each picture that was looked at the training pictures that show the same."""
        if self.near is None or not looks:
            return {}
        found = self.near.find(np.stack(list(looks.values())))
        return {key: tuple(self.seen[n] for n in rows) for key, rows in zip(looks, found, strict=True)}

    def crops(self, looks: _Looks, copies: Mapping[str, Sequence[str]], progress: bool) -> dict[str, tuple[str, ...]]:
        """For each picture that training does not hold as it is the training pictures that show a part or more of it."""
        asked = {key: look for key, look in looks.seen.items() if not copies.get(key) and key not in self.pictures}
        with bar("looking for cut-outs", len(asked), "pictures", shown=progress and bool(asked)) as advance:
            return cuts(asked, self.looks.seen, self.looks.pictures | looks.pictures, advance)

    def find(self, item: Item, asked: bool, seen: _Seen, opening: str) -> tuple[Kind | None, set[int]]:
        """How training holds an item, and in which rows; None if it does not. Texts are compared behind the `opening`."""
        keys = [_picture(picture) for picture in item.pictures]
        if not keys and _words(item) < WORDS:
            rows = self.short.get(normal(item.text), set()) if asked else set()
            return ("exact" if rows else None), rows
        if all(keys) and (rows := self.contents.get(item.content)):
            return "exact", rows
        looked: tuple[tuple[Kind, list[str]], ...] = (("picture", [*keys, *seen.copies(keys)]), ("crop", seen.crops(keys)))
        for kind, more in looked:
            if shown := [key for key in more if key in self.pictures and key]:
                return kind, {row for key in shown for row in self.pictures[key]}
        if keys or not self.words:
            return None, set()
        text = normal(item.text)
        near = [n for n in self.similar.find(text) if alike(text.removeprefix(opening), self.words[n].removeprefix(opening))]
        return ("text", {row for n in near for row in self.texts[self.words[n]]}) if near else (None, set())
