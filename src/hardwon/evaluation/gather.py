"""What all readers of published data sets share: rows become tasks, and whatever is wrong is named with set and row."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from hardwon.data.read_files import Record
from hardwon.data.read_rows import Rows
from hardwon.errors import BadRow, BadRows, DataError, OnError
from hardwon.evaluation.task import Benchmark, Missing, Positions, Task
from hardwon.items import Item, resolve
from hardwon.progress import bar


class Shown(NamedTuple):
    """A query or a candidate as a row states it; equal ones are made into one item.

    Attributes:
        text: its words, "" for none.
        images: paths of its pictures, relative to the pictures' folder.
        instruction: what the model is asked to do with it.
        video: paths of its frames, in order of time.
    """

    text: str = ""
    images: tuple[str, ...] = ()
    instruction: str = ""
    video: tuple[str, ...] = ()


class Pool:
    """The items of one data set while its rows are read: each is made, and each picture looked at, once.

    Args:
        pictures: folder that paths are relative to and may not leave.
    """

    def __init__(self, pictures: Path):
        self._root, self._rows = pictures, Rows(pictures)
        self._items: dict[Shown, Item] = {}
        self._places: dict[Shown, int] = {}
        self._corpus: dict[Item, int] = {}

    def item(self, shown: Shown) -> Item:
        """The item. Raises DataError when it is empty or a picture cannot be used."""
        if shown not in self._items:
            pictures = [tuple(resolve(self._root, path) for path in paths) for paths in (shown.images, shown.video)]
            for picture in (*pictures[0], *pictures[1]):
                self._rows.picture(picture)
            self._items[shown] = Item(shown.text, pictures[0], shown.instruction, pictures[1])
        return self._items[shown]

    def place(self, shown: Shown) -> int:
        """Its position in the corpus, of which it is a part from now on."""
        if shown not in self._places:
            self._places[shown] = self._corpus.setdefault(self.item(shown), len(self._corpus))
        return self._places[shown]

    @property
    def corpus(self) -> tuple[Item, ...]:
        """Everything that was given a place."""
        return tuple(self._corpus)


class Asked(NamedTuple):
    """A query, what belongs to it (with grades, if they are not all alike) and what it searches (None: the whole corpus)."""

    query: Item
    gold: Positions
    candidates: Positions | None = None
    grades: tuple[float, ...] | None = None


def asked_of(records: Iterable[Record], read: Callable[[Record], Iterable[Asked]]) -> Iterator[Asked]:
    """The queries of all rows.

    Raises:
        BadRows: rows that `read` raises a DataError for, or that could not be read, each with file, row and reason.
    """
    bad: list[BadRow] = []
    count = 0
    for record in records:
        count += 1
        try:
            if record.reason:
                raise DataError(record.reason)
            made = list(read(record))
        except DataError as error:
            bad.append(BadRow(str(record.file), record.line, str(error)))
        else:
            yield from made
    if bad:
        raise BadRows(bad, count)


def task_of(name: str, groups: tuple[str, str], asked: Iterable[Asked], pool: Pool, metric: str = "hit@1") -> Task:
    """The task of queries that search what is in the pool.

    Args:
        name: of the data set.
        groups: meta-task and distribution.
        asked: its queries.
        pool: holds the corpus.
        metric: as in `Task`.

    Raises:
        DataError: no queries.
    """
    rows = list(asked)
    if not rows:
        raise DataError("it has no rows")
    shared: dict[Positions, Positions] = {}  # equal tuples of positions are kept once: there may be a thousand of a thousand
    whole = tuple(range(len(pool.corpus)))
    candidates = None
    if any(row.candidates is not None for row in rows):
        listed = [whole if row.candidates is None else tuple(sorted(set(row.candidates))) for row in rows]
        candidates = tuple(shared.setdefault(positions, positions) for positions in listed)
    grades = tuple(row.grades or (1.0,) * len(row.gold) for row in rows) if any(row.grades for row in rows) else None
    queries, gold = tuple(row.query for row in rows), tuple(row.gold for row in rows)
    meta_task, distribution = groups
    return Task(name, meta_task, distribution, queries, pool.corpus, gold, candidates, metric, grades)  # pyright: ignore[reportArgumentType]


def gather(name: str, sets: Sequence[str], read: Callable[[str], Task], on_error: OnError) -> Benchmark:
    """The benchmark of these data sets.

    Args:
        name: of the benchmark.
        sets: names of its data sets.
        read: reads one of them; raises DataError for one that is not there or cannot be used.
        on_error: as in `load_benchmark`.

    Raises:
        DataError: data sets that cannot be used, when they are not to be skipped or none is left.
    """
    tasks, missing = [], []
    with bar(f"reading {name}", len(sets), "data sets") as advance:
        for one in sets:
            try:
                tasks.append(read(one))
            except DataError as error:
                missing.append(Missing(one, str(error)))
            advance()
    if missing and (on_error == "raise" or not tasks):
        told = "\n".join(f"{gone.name}: {gone.why}" for gone in missing)
        advice = "" if not tasks else '\nGo on without them with on_error="skip"; means over all of it are then refused.'
        raise DataError(f"{len(missing)} of {len(sets)} data sets of {name} cannot be used.\n{told}{advice}")
    return Benchmark(name, tuple(tasks), tuple(missing))


def first_folder(folders: Sequence[Path], path: str) -> Path:
    """The first folder that holds `path`; the first of all if none does."""
    return next((folder for folder in folders if path and (folder / path).exists()), folders[0])


class Wording(NamedTuple):
    """Instructions of a data set that holds none: for its queries, and for its candidates."""

    query: str = ""
    candidate: str = ""


def wording(root: Path, name: str, usual: Wording) -> Wording:
    """The instructions of a data set: those of `instructions.json` in the root if it has any for it, else the usual ones.

    The file holds {NAME: {"query": ..., "candidate": ...}, ...}: a model is asked in the words that it was trained with.

    Raises:
        DataError: the file says something else.
    """
    path = root / "instructions.json"
    if not path.is_file():
        return usual
    try:
        told = json.loads(path.read_text(encoding="utf-8")).get(name, {})
        made = Wording(**(usual._asdict() | told))
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f'{path} must hold {{"{name}": {{"query": ..., "candidate": ...}}}} ({error})') from error
    if not all(isinstance(part, str) for part in made):
        raise DataError(f"{path}: the instructions of {name} must be strings")
    return made
