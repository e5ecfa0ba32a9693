"""Own data as a benchmark: one JSON-lines file of queries with their candidates, or a folder with queries, corpus and qrels.

    questions.jsonl   {"query": ITEM, "gold": ITEM or [ITEM ...], "candidates": [ITEM ...] or left out}

A query whose candidates are left out searches the gold and candidates of all rows. "gold" counts as a candidate.

    queries.jsonl     {"_id": "q1", "text": ..., "image": ..., ...}      an ITEM with an id
    corpus.jsonl      {"_id": "d1", "title": ..., "text": ..., ...}      likewise; a title goes before the text
    qrels/test.tsv    query-id <tab> corpus-id <tab> score               (or qrels.tsv); a score above 0 is gold

That is the layout of BEIR. Queries without gold are not asked.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hardwon.errors import BadMedia, BadRow, BadRows, DataError, unknown
from hardwon.evaluation.task import Benchmark, Task
from hardwon.items import Item, item_from_json
from hardwon.pictures import check_picture

_FIELDS = ("query", "gold", "candidates")
_ADVICE = "Mend these rows; a benchmark is read whole or not at all."


class Lines:
    """Reads files line by line and collects what cannot be used, with file and line; each picture is looked at once."""

    def __init__(self, root: Path):
        self.root = root
        self.bad: list[BadRow] = []
        self.read = 0
        self._pictures: dict[Path, str] = {}

    def each(self, path: Path, make: Callable[[Any], Any], parse: Callable[[str], Any] = json.loads) -> list[Any]:
        """What `make` makes of every line; lines that it cannot use are left out and kept in `bad`."""
        try:
            lines = path.read_bytes().decode("utf-8").replace("\r\n", "\n").split("\n")  # nothing else ends a line
        except (OSError, UnicodeError) as error:
            raise DataError(f"{path} cannot be read ({error}): it must be a file of text in UTF-8") from error
        made = []
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            self.read += 1
            try:
                made.append(make(parse(line)))
            except DataError as error:
                self.bad.append(BadRow(str(path), number, str(error)))
            except (ValueError, RecursionError) as error:
                self.bad.append(BadRow(str(path), number, f"is not JSON ({error})"))
        return made

    def item(self, value: Any) -> Item:
        """An item whose pictures are there and can be read."""
        item = item_from_json(value, self.root)
        for picture in item.pictures:
            if isinstance(picture, Path):
                if picture not in self._pictures:
                    self._pictures[picture] = _fault(picture)
                if self._pictures[picture]:
                    raise BadMedia(self._pictures[picture])
        return item

    def check(self, path: Path, rows: list[Any]) -> None:
        """Raise what was collected, or that there was nothing."""
        if self.bad:
            raise BadRows(self.bad, self.read, _ADVICE)
        if not rows:
            raise DataError(f"{path} holds no rows")


def _fault(picture: Path) -> str:
    try:
        check_picture(picture)
    except BadMedia as error:
        return str(error)
    return ""


def read_questions(path: Path, root: Path | None = None) -> Benchmark:
    """A benchmark of one task: a file of queries with their candidates.

    Args:
        path: the file.
        root: folder that pictures are relative to; the file's if None.

    Raises:
        BadRows: rows that cannot be used, with file, line and reason.
        DataError: a file that cannot be read or is empty.
    """
    lines = Lines(root or path.parent)
    rows = lines.each(path, lambda row: _question(row, lines))
    lines.check(path, rows)
    corpus: dict[str, int] = {}
    items: list[Item] = []

    def place(item: Item) -> int:
        if item.key not in corpus:
            corpus[item.key] = len(items)
            items.append(item)
        return corpus[item.key]

    queries, gold, offered = [], [], []
    for query, right, others in rows:
        queries.append(query)
        gold.append(tuple(dict.fromkeys(place(item) for item in right)))
        offered.append(None if others is None else tuple(dict.fromkeys([*gold[-1], *map(place, others)])))
    everything = tuple(range(len(items)))
    searched = None if all(row is None for row in offered) else tuple(everything if row is None else row for row in offered)
    return _benchmark(path.stem, tuple(queries), tuple(items), tuple(gold), searched)


def _question(row: Any, lines: Lines) -> tuple[Item, list[Item], list[Item] | None]:
    if not isinstance(row, dict):
        raise DataError(f"a row is an object with {', '.join(_FIELDS)}, got {type(row).__name__}")
    for name in row:
        if name not in _FIELDS:
            raise DataError(unknown("field", name, _FIELDS))
    if row.get("query") is None:
        raise DataError("no query")
    gold, others = row.get("gold"), row.get("candidates")
    if not gold:
        raise DataError("no gold: the item, or a list of items, that belongs to the query")
    if others is not None and not isinstance(others, list):
        raise DataError(f"candidates must be a list of items, got {type(others).__name__}")
    if others == []:
        raise DataError("candidates is empty: name items, or leave it out to search those of all rows")
    right = [lines.item(item) for item in (gold if isinstance(gold, list) else [gold])]
    offered = None if others is None else [lines.item(item) for item in others]
    if offered is not None and {item.key for item in offered} <= {item.key for item in right}:
        raise DataError("every candidate is gold, so that any answer is right: name others, or leave candidates out")
    return lines.item(row["query"]), right, offered


def read_qrels(folder: Path) -> Benchmark:
    """A benchmark of one task: a folder with queries, corpus and qrels, as BEIR lays them out.

    Args:
        folder: pictures are relative to it.

    Raises:
        BadRows: rows that cannot be used, with file, line and reason.
        DataError: a file that is missing or empty, no query with gold.
    """
    lines, qrels = Lines(folder), qrels_of(folder)
    if qrels is None:
        raise DataError(
            f"{folder} has queries and a corpus but neither qrels/test.tsv nor qrels.tsv, which say what belongs to what"
        )
    queries: dict[str, Item] = {}
    corpus: dict[str, Item] = {}
    for known, name in ((queries, "queries.jsonl"), (corpus, "corpus.jsonl")):
        rows = lines.each(folder / name, lambda row, known=known: known.setdefault(*_with_id(row, lines, known)))
        lines.check(folder / name, rows)
    gold: dict[str, list[str]] = {}

    def judged(cells: list[str]) -> None:
        query, entry, score = _judged(cells)
        for what, name, those in (("query", query, queries), ("corpus", entry, corpus)):
            if name not in those:
                raise DataError(f"{what} id {name!r} is not in {'queries' if what == 'query' else 'corpus'}.jsonl")
        if score > 0 and entry not in gold.setdefault(query, []):
            gold[query].append(entry)

    head = True

    def parse(line: str) -> list[str]:
        return line.split("\t")

    def row(cells: list[str]) -> bool:
        nonlocal head
        first, head = head, False
        if not (first and not _number(cells[-1])):  # the first line may name the columns
            judged(cells)
        return True

    lines.check(qrels, lines.each(qrels, row, parse))
    asked = [name for name in queries if gold.get(name)]
    if not asked:
        raise DataError(f"{qrels} gives no query a score above 0: nothing could be asked")
    place = {name: n for n, name in enumerate(corpus)}
    right = tuple(tuple(place[entry] for entry in gold[name]) for name in asked)
    return _benchmark(folder.resolve().name, tuple(queries[name] for name in asked), tuple(corpus.values()), right, None)


def qrels_of(folder: Path) -> Path | None:
    """The file that says what belongs to what; None if there is none."""
    return next((path for path in (folder / "qrels" / "test.tsv", folder / "qrels.tsv") if path.is_file()), None)


def _with_id(row: Any, lines: Lines, known: dict[str, Item]) -> tuple[str, Item]:
    if not isinstance(row, dict) or not isinstance(row.get("_id"), str):
        raise DataError("a row is an object with the text or picture of an item and its id as _id (a string)")
    content = {name: value for name, value in row.items() if name not in ("_id", "title", "metadata")}
    if row.get("title"):
        content["text"] = f"{row['title']} {content.get('text') or ''}".strip()
    if row["_id"] in known:
        raise DataError(f"_id {row['_id']!r} is there twice")
    return row["_id"], lines.item(content)


def _judged(cells: list[str]) -> tuple[str, str, float]:
    if len(cells) == 4:  # TREC: query, iteration, document, score
        cells = [cells[0], *cells[2:]]
    if len(cells) != 3 or not _number(cells[2]):
        raise DataError(f"a row is query-id, corpus-id and a number, with tabs between them, got {len(cells)} cells")
    return cells[0], cells[1], float(cells[2])


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _benchmark(
    name: str, queries: tuple[Item, ...], corpus: tuple[Item, ...], gold: tuple[tuple[int, ...], ...], searched: Any
) -> Benchmark:
    kept = "".join(letter if letter.isalnum() or letter in "_.-" else "_" for letter in name).lstrip("_.-") or "own"
    return Benchmark(kept, (Task(kept, "retrieval", "ood", queries, corpus, gold, searched),))
