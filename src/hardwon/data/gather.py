"""What a folder holds that can be found: pictures with their captions, texts, pages, videos, rows of JSON lines.

Files are listed first and read one by one, so that those that have not changed need not be read at all.
"""

import contextlib
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hardwon.data.frames import FRAMES, VIDEO_SUFFIXES, extract
from hardwon.data.pages import DPI, render
from hardwon.data.read_files import (
    CAPTION_FILES,
    PICTURE_SUFFIXES,
    Record,
    files_below,
    missing_path,
    not_unicode,
    read_table,
)
from hardwon.data.read_rows import Rows
from hardwon.errors import BadRow, DataError
from hardwon.items import Item, item_from_json, picture_key
from hardwon.pictures import check_picture

TEXT_SUFFIXES = frozenset((".txt", ".md"))
PASSAGE = 1000  # characters, about: what a text is cut into
_PAIRS = frozenset(("query", "qry", "positive"))
_BREAK = re.compile(r"\n\s*\n")


@dataclass(frozen=True)
class Reading:
    """How files are read.

    Attributes:
        captions: a text beside a picture (name.txt, or a list of captions) belongs to it, and is no text of its own.
        passage: characters, about, of the passages that a text is cut into, at the ends of paragraphs where that can be; 0:
            whole.
        frames: of a video, evenly spaced.
        apart: each frame of a video is a picture of its own, for models that read no videos.
        dpi: of the pages of a PDF.
    """

    captions: bool = True
    passage: int = PASSAGE
    frames: int = FRAMES
    apart: bool = False
    dpi: int = DPI


@dataclass(frozen=True)
class File:
    """A file that can be indexed.

    Attributes:
        path: where it is.
        name: its path below the root, with slashes.
        kind: "picture", "text", "pages", "video" or "rows".
        mark: size and time, and the same of its caption: changes when the file does.
        caption: text that belongs to the picture.
    """

    path: Path
    name: str
    kind: str
    mark: str
    caption: str = ""


@dataclass(frozen=True)
class Thing:
    """Something to be found: a row of an index to be.

    Attributes:
        place: its file's name, and where in it.
        item: what is encoded.
        made: its pictures were made here (pages, frames) and lie in the folder for that.
    """

    place: str
    item: Item
    made: bool = False


@dataclass(frozen=True)
class Listing:
    """What lies below a root.

    Attributes:
        root: folder that names are relative to.
        files: those that can be indexed, sorted by name.
        others: how many files of each other suffix were passed over.
    """

    root: Path
    files: tuple[File, ...]
    others: Mapping[str, int]


def listed(path: Path, reading: Reading) -> Listing:
    """The files below a folder, or the one file. Names that begin with a dot are left out.

    Raises:
        DataError: the path does not exist.
        BadRows: a list of captions that cannot be read.
    """
    if not path.exists():
        raise DataError(missing_path(path))
    root = (path if path.is_dir() else path.parent).resolve()
    paths = files_below(root) if path.is_dir() else [path.resolve()]
    captions, taken = _captions(root, paths) if reading.captions else ({}, {})
    files, others = [], dict[str, int]()
    for each in paths:
        kind = _kind(each)
        if each in taken:
            continue
        if not kind:
            others[each.suffix.lower()] = others.get(each.suffix.lower(), 0) + 1
            continue
        said = captions.get(each, "")
        digest = hashlib.blake2b(said.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest() if said else ""
        files.append(File(each, each.relative_to(root).as_posix(), kind, f"{_mark(each)}{digest and ':'}{digest}", said))
    return Listing(root, tuple(files), others)


def things(file: File, root: Path, media: Path, reading: Reading) -> Iterator[Thing | BadRow]:
    """What one file holds; rows of a file that cannot be used come as the reasons why.

    Args:
        file: to be read.
        root: folder that pictures named in rows must lie in.
        media: folder for pages and frames.
        reading: how.

    Raises:
        DataError: the file as a whole cannot be used.
        MissingExtra: a package that is not installed.
    """
    if file.kind == "picture":
        check_picture(file.path)
        yield Thing(file.name, Item(text=file.caption, images=(file.path,)))
    elif file.kind == "text":
        for number, text in enumerate(passages(_text(file.path), reading.passage), start=1):
            yield Thing(f"{file.name}#{number}", Item(text=text))
    elif file.kind == "pages":
        pages = render(file.path, media, f"{picture_key(file.path)}-{reading.dpi}", dpi=reading.dpi)
        for number, page in enumerate(pages, start=1):
            yield Thing(f"{file.name}#page={number}", Item(images=(page,)), made=True)
    elif file.kind == "video":
        frames = _frames(file.path, media, reading.frames)
        if not reading.apart:
            yield Thing(file.name, Item(video=tuple(frames)), made=True)
        for number, frame in enumerate(frames if reading.apart else (), start=1):
            yield Thing(f"{file.name}#frame={number}", Item(images=(frame,)), made=True)
    else:
        yield from _rows(file, root)


def passages(text: str, size: int) -> list[str]:
    """A text in parts of about `size` characters, paragraphs kept together where that can be; whole for 0."""
    text = text.strip()
    if not text:
        return []
    if not size or len(text) <= size:
        return [text]
    made: list[str] = []
    for paragraph in filter(None, map(str.strip, _BREAK.split(text))):
        parts = _cut(paragraph, size)
        if made and len(made[-1]) + len(parts[0]) + 2 <= size:
            made[-1] = f"{made[-1]}\n\n{parts.pop(0)}"
        made += parts
    return made


def _cut(paragraph: str, size: int) -> list[str]:
    """A paragraph in parts that are not longer, cut after a sentence or else between words."""
    made = []
    while len(paragraph) > size:
        at = max(paragraph.rfind(mark, size // 2, size) for mark in (". ", "? ", "! ", "。", "\n"))
        at = at + 1 if at > 0 else paragraph.rfind(" ", size // 2, size)
        at = at if at > 0 else size
        made.append(paragraph[:at].strip())
        paragraph = paragraph[at:].strip()
    return [*made, paragraph]


def _kind(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix in PICTURE_SUFFIXES:
        return "picture"
    if suffix in TEXT_SUFFIXES:
        return "text"
    return {".pdf": "pages", ".jsonl": "rows"}.get(suffix, "video" if suffix in VIDEO_SUFFIXES else "")


def _mark(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size}:{status.st_mtime_ns}"


def _captions(root: Path, paths: list[Path]) -> tuple[dict[Path, str], dict[Path, None]]:
    """Captions by picture, and the files that hold them."""
    made: dict[Path, str] = {}
    taken: dict[Path, None] = {}
    stems = {path.with_suffix(""): path for path in paths if _kind(path) == "picture"}
    for path in paths:
        if path.name in CAPTION_FILES:
            taken[path] = None
            for record in read_table(path):
                name, text = record.row.get("file_name"), record.row.get("text")
                if isinstance(name, str) and isinstance(text, str):
                    made[(path.parent / name).resolve()] = text.strip()
        elif path.suffix.lower() == ".txt" and path.with_suffix("") in stems:
            with contextlib.suppress(DataError):  # then it is told of as a text that cannot be read
                made[stems[path.with_suffix("")]] = _text(path).strip()
                taken[path] = None
    return made, taken


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}): save it as UTF-8") from error


def _frames(path: Path, media: Path, count: int) -> list[Path]:
    folder = media / f"{picture_key(path)}-{count}"
    if not folder.is_dir():
        extract(path, folder, count)
    return sorted(folder.glob("*.jpg"))


def _rows(file: File, root: Path) -> Iterator[Thing | BadRow]:
    """Items, or the candidates of pairs; a row is known by its id if it has one, else by its line."""
    rows, seen = Rows(root), set[str]()
    for record in read_table(file.path):
        try:
            for name, item in _items(record, rows, root):
                if name in seen:
                    raise DataError(f"the id {name!r} was used by an earlier row: ids must be unique")
                seen.add(name)
                yield Thing(f"{file.name}#{name}", item)
        except DataError as error:
            yield BadRow(str(record.file), record.line, str(error))


def _items(record: Record, rows: Rows, root: Path) -> list[tuple[str, Item]]:
    row: dict[str, Any] = dict(record.row)
    if record.reason or not_unicode(row):
        raise DataError(record.reason or "holds text that is not Unicode")
    if _PAIRS & row.keys():
        found = {candidate.item.key: candidate.item for candidate in rows.example(row).candidates}
        return [(f"{record.line}.{number}" if number else f"{record.line}", item) for number, item in enumerate(found.values())]
    name = row.pop("id", None)
    if name is not None and (not isinstance(name, (str, int)) or isinstance(name, bool)):
        raise DataError(f"id must be a string or an integer, got {type(name).__name__}")
    item = item_from_json(row, root)
    for picture in item.pictures:
        if isinstance(picture, Path):
            rows.picture(picture)
    return [(str(record.line if name is None else name), item)]
