"""Benchmarks as folders: `benchmark.json`, and for each task `queries.jsonl` and `corpus.jsonl`.

    benchmark.json   {"name": ..., "root": "..", "tasks": [TASK, ...]}
    TASK             {"name", "meta_task", "distribution", "queries", "corpus", "metric"}
    queries.jsonl    {"query": ITEM, "gold": [corpus positions], "candidates": [corpus positions] or left out, "grades": [...]}
    corpus.jsonl     ITEM

`metric` ("hit@1" or "ndcg@5") may be left out, and so may `grades`, numbers above 0 for each of `gold`.
Positions count lines of `corpus.jsonl` from 0. Pictures are named relative to the root: the folder that holds the
benchmark's folder, or `root`, a path relative to the benchmark's folder that may not lead further up than that.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hardwon.artifacts import write_atomically
from hardwon.errors import ArtifactError, BadMedia, BadRow, BadRows, DataError, unknown
from hardwon.evaluation.own import read_qrels, read_questions
from hardwon.evaluation.task import Benchmark, Positions, Task, wrong_grades, wrong_head, wrong_positions
from hardwon.items import Item, item_from_json, resolve
from hardwon.pictures import check_picture

HEAD = "benchmark.json"
_HEAD_FIELDS = ("name", "root", "tasks")
_TASK_FIELDS = ("name", "meta_task", "distribution", "queries", "corpus")
Grades = tuple[float, ...]
_OPTIONAL_FIELDS = ("metric",)
_ROW_FIELDS = ("query", "gold", "candidates", "grades")


def write_benchmark(benchmark: Benchmark, folder: Path) -> None:
    """Write a benchmark that `read_benchmark` reads back with the same revision.

    Args:
        benchmark: its pictures must be files below the folder that will hold `folder`.
        folder: new or empty.

    Raises:
        ArtifactError: the folder is not empty.
        DataError: a picture that is held as bytes or lies elsewhere; tasks that are missing, which a file cannot say.
    """
    if benchmark.missing:
        names = ", ".join(gone.name for gone in benchmark.missing[:5])
        raise DataError(
            f"{benchmark.name} lacks {len(benchmark.missing)} tasks ({names}): read from files it would look complete"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ArtifactError(f"{folder} is not empty; choose another folder or empty it")
    root = folder.resolve().parent
    # Everything is turned into text before anything is written: a picture that cannot be named leaves no half benchmark.
    texts = {task.name: _texts(task, root) for task in benchmark.tasks}
    listed = []
    for task in benchmark.tasks:
        (folder / task.name).mkdir(parents=True)
        row: dict[str, str] = {"name": task.name, "meta_task": task.meta_task, "distribution": task.distribution}
        if task.metric != "hit@1":
            row["metric"] = task.metric
        for what, text in zip(("queries", "corpus"), texts[task.name], strict=True):
            row[what] = f"{task.name}/{what}.jsonl"
            write_atomically(folder / row[what], text)
        listed.append(row)
    head = {"name": benchmark.name, "root": "..", "tasks": listed}
    write_atomically(folder / HEAD, json.dumps(head, indent=1, ensure_ascii=False) + "\n")


def _texts(task: Task, root: Path) -> tuple[str, str]:
    def named(item: Item) -> dict[str, Any]:
        for picture in item.pictures:
            if isinstance(picture, Path) and not picture.resolve().is_relative_to(root):
                raise DataError(
                    f"task {task.name}: {picture} does not lie below {root}; write the benchmark beside its pictures"
                )
        return item.to_json(root)

    rows = []
    for number, (query, gold) in enumerate(zip(task.queries, task.gold, strict=True)):
        row: dict[str, Any] = {"query": named(query), "gold": list(gold)}
        if task.candidates is not None and len(task.candidates[number]) < len(task.corpus):
            row["candidates"] = list(task.candidates[number])
        if task.grades is not None:
            row["grades"] = list(task.grades[number])
        rows.append(row)
    return _lines(rows), _lines(named(item) for item in task.corpus)


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_benchmark(folder: Path) -> Benchmark:
    """Read a benchmark and check every row and every picture of it.

    Args:
        folder: a folder with a `benchmark.json`; or own data, see `hardwon.evaluation.own`: a file of JSON lines, or a folder
            with queries.jsonl, corpus.jsonl and qrels.

    Raises:
        BadRows: rows that cannot be used, with file, line and reason: no gold, gold that is not among the candidates,
            a picture that is missing or broken ...
        DataError: `benchmark.json` cannot be used.
    """
    if folder.is_file():
        return read_questions(folder)
    if not (folder / HEAD).exists() and (folder / "queries.jsonl").is_file() and (folder / "corpus.jsonl").is_file():
        return read_qrels(folder)
    head = _head(folder)
    up = folder.resolve().parent
    root = (folder / head.get("root", "..")).resolve()
    if not root.is_relative_to(up):
        raise DataError(
            f"{folder / HEAD}: root {head['root']!r} leads further up than {up}; move the benchmark beside its pictures"
        )
    reader = _Reader(folder, root)
    tasks = [reader.task(number, row) for number, row in enumerate(head["tasks"])]
    if reader.bad:
        raise BadRows(reader.bad, reader.rows, f"Mend these rows of {folder}; a benchmark is read whole or not at all.")
    return Benchmark(head["name"], tuple(task for task in tasks if task is not None))


def _head(folder: Path) -> dict[str, Any]:
    path = folder / HEAD
    try:
        head = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{path} does not exist: a benchmark is a folder with a {HEAD}, a folder with "
            "queries.jsonl, corpus.jsonl and qrels/test.tsv, or a file of JSON lines"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read ({error})") from error
    _expect(isinstance(head, dict), f"{path} must hold an object")
    _known(head, _HEAD_FIELDS, f"{path}: ")
    _expect(isinstance(head.get("name"), str) and bool(head["name"]), f"{path}: name must be a string")
    _expect(isinstance(head.get("root", ".."), str), f"{path}: root must be a string")
    _expect(isinstance(head.get("tasks"), list) and bool(head["tasks"]), f"{path}: tasks must be a list of at least one task")
    return head


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise DataError(otherwise)


def _known(row: Mapping[str, Any], fields: Sequence[str], where: str = "") -> None:
    for name in row:
        if name not in fields:
            raise DataError(where + unknown("field", name, fields))


class _Reader:
    """Reads the tasks of one benchmark; collects every bad row, and looks at each picture once."""

    def __init__(self, folder: Path, root: Path):
        self.folder, self.root = folder, root
        self.bad: list[BadRow] = []
        self.rows = 0
        self._pictures: dict[Path, str] = {}

    def task(self, number: int, row: Any) -> Task | None:
        """The task of one entry of `benchmark.json`, or None when some of its rows are bad."""
        where = f"{self.folder / HEAD}: task {number}"
        _expect(isinstance(row, dict), f"{where} must be an object")
        _known(row, (*_TASK_FIELDS, *_OPTIONAL_FIELDS), f"{where}: ")
        metric = row.get("metric", "hit@1")
        for name, value in [*((name, row.get(name)) for name in _TASK_FIELDS), ("metric", metric)]:
            _expect(isinstance(value, str), f"{where}: {name} must be a string")
        reason = wrong_head(row["name"], row["meta_task"], row["distribution"], metric)
        _expect(not reason, f"{where}: {reason}")
        before = len(self.bad)
        corpus = [self._used(*line, self._item) for line in self._lines(row["corpus"])]
        asked = [self._used(*line, lambda value: self._query(value, len(corpus))) for line in self._lines(row["queries"])]
        for name, found in (("queries", asked), ("corpus", corpus)):
            _expect(bool(found), f"{where}: {row[name]} is empty")
        if len(self.bad) > before:
            return None
        queries, gold, searched, graded = zip(*(query for query in asked if query is not None), strict=True)
        items = tuple(item for item in corpus if item is not None)
        whole = tuple(range(len(items)))  # one object for all queries that name no candidates
        candidates = None if all(s is None for s in searched) else tuple(whole if s is None else s for s in searched)
        grades = None
        if any(g is not None for g in graded):
            grades = tuple((1.0,) * len(own) if g is None else g for own, g in zip(gold, graded, strict=True))
        return Task(row["name"], row["meta_task"], row["distribution"], queries, items, gold, candidates, metric, grades)

    def _lines(self, name: str) -> list[tuple[str, int, bytes]]:
        path = resolve(self.folder, name)
        try:
            lines = path.read_bytes().split(b"\n")
        except OSError as error:
            raise DataError(f"{self.folder / HEAD}: {name} cannot be read ({error.strerror or error})") from error
        if lines[-1] == b"":  # what follows the last line's end is not a line
            lines.pop()
        self.rows += len(lines)
        return [(name, number, line) for number, line in enumerate(lines, start=1)]

    def _used(self, file: str, number: int, line: bytes, make: Any) -> Any:
        """What `make` makes of a line; None, and a bad row, when it cannot."""
        try:
            return make(_parsed(line))
        except DataError as error:
            self.bad.append(BadRow(file, number, str(error)))
        except (OSError, RuntimeError, ValueError) as error:  # names that no file system takes; loops of links
            self.bad.append(BadRow(file, number, f"names a path that cannot be followed ({error})"))
        return None

    def _item(self, value: Any) -> Item:
        item = item_from_json(value, self.root)
        for picture in item.pictures:
            if isinstance(picture, Path):
                self._check(picture)
        return item

    def _check(self, picture: Path) -> None:
        if picture not in self._pictures:
            try:
                check_picture(picture)
                self._pictures[picture] = ""
            except BadMedia as error:
                self._pictures[picture] = str(error)
        if self._pictures[picture]:
            raise BadMedia(self._pictures[picture])

    def _query(self, row: Any, corpus: int) -> tuple[Item, Positions, Positions | None, Grades | None]:
        _expect(isinstance(row, dict), f"a row of queries is an object with query and gold, got {type(row).__name__}")
        _known(row, _ROW_FIELDS)
        _expect(row.get("query") is not None, "no query")
        gold, candidates = _positions(row, "gold") or (), _positions(row, "candidates")
        reason = wrong_positions(gold, candidates, corpus)
        _expect(not reason, reason)
        grades = row.get("grades")
        if grades is not None:
            numbers = isinstance(grades, list) and all(isinstance(g, int | float) and not isinstance(g, bool) for g in grades)
            _expect(numbers, "grades must be a list of numbers")
            reason = wrong_grades(grades, len(gold))
            _expect(not reason, reason)
            grades = tuple(float(grade) for grade in grades)
        return self._item(row["query"]), gold, candidates, grades


def _parsed(line: bytes) -> Any:
    if not line.strip():
        raise DataError("a blank line")
    try:
        value = json.loads(line)
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeError:
        raise DataError("holds text that is not Unicode: export it as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"is not JSON ({error})") from None
    return value


def _positions(row: Mapping[str, Any], name: str) -> Positions | None:
    value = row.get(name)
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(p, int) and not isinstance(p, bool) for p in value):
        raise DataError(f"{name} must be a list of positions (integers)")
    return tuple(value)
