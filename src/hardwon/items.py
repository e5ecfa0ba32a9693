"""The records that travel through the whole system: Item, Candidate, Example.

They are frozen; a stage returns new ones. Relevance is a value on a candidate, never a position in a list, and
gold is said by `origin`, never guessed from a number.
"""

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from hardwon.errors import BadMedia, DataError, unknown

Picture = Path | bytes  # a file, or an encoded picture (PNG, JPEG ...)
Origin = Literal["gold", "given", "mined"]
_LABEL = 80  # characters of an item in a message


@functools.lru_cache(maxsize=1_000_000)
def _file_digest(path: str, _size: int, _mtime_ns: int) -> str:
    """Digest of a file's bytes; size and time are part of the cache key, so a changed file is read again."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def picture_key(picture: Picture) -> str:
    """Content hash of a picture's encoded bytes, 32 hexadecimal digits; the name of the file plays no part.

    Raises:
        BadMedia: a file that is not there or cannot be read.
    """
    if isinstance(picture, bytes):
        return hashlib.blake2b(picture, digest_size=16).hexdigest()
    try:
        status = os.stat(picture)
        return _file_digest(str(picture), status.st_size, status.st_mtime_ns)
    except FileNotFoundError:
        raise BadMedia(f"{picture} does not exist: check its name and the data root") from None
    except (OSError, ValueError) as error:
        raise BadMedia(f"{picture} cannot be read ({error}): check its name and permissions") from error


@dataclass(frozen=True, slots=True)
class Item:
    """The only thing one can embed: text, pictures, a video, or several of these, with an optional instruction.

    Attributes:
        text: content that a person wrote. Always treated as text: never fetched, opened or parsed.
        images: pictures in order; paths or encoded bytes.
        instruction: what the model is asked to do with the content; part of the key, since it changes the vector.
        video: frames of one video in order of time; paths or encoded bytes. Video files are not decoded here: extract the
            frames beforehand, e.g. with ffmpeg. Every frame counts; none is left out later.
    """

    text: str = ""
    images: tuple[Picture, ...] = ()
    instruction: str = ""
    video: tuple[Picture, ...] = ()

    def __post_init__(self) -> None:
        if not self.text and not self.images and not self.video:
            raise DataError("an item needs text, a picture or a video")

    @property
    def key(self) -> str:
        """Content hash, 32 hexadecimal digits: equal content and instruction give equal keys on every machine.

        Raises:
            BadMedia: a picture that is not there or cannot be read.
        """
        try:
            parts = [_plain(self.instruction), _plain(self.text), *(picture_key(picture) for picture in self.images)]
            if self.video:  # never taken for pictures: no hash says "video"
                parts += ["video", *(picture_key(frame) for frame in self.video)]
        except BadMedia as error:
            raise BadMedia(f"{error} (in {self.label})") from error
        return hashlib.blake2b("\x00".join(parts).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()

    @property
    def content(self) -> str:
        """Content hash without the instruction: two items that show the same thing have the same content."""
        return replace(self, instruction="").key

    @property
    def label(self) -> str:
        """What it is in a message: pictures by their file's name, then the beginning of its words."""
        pictures = [f"<{picture.name if isinstance(picture, Path) else 'picture'}>" for picture in self.pictures]
        said = " ".join([*pictures, *(part for part in (self.instruction, self.text) if part)])
        return repr(said if len(said) <= _LABEL else f"{said[:_LABEL]} ...")

    @property
    def modality(self) -> str:
        """What it is made of, in the order image, video, text: "text", "image+text" ... (an instruction does not make text)."""
        parts = {"image": self.images, "video": self.video, "text": self.text}
        return "+".join(name for name, part in parts.items() if part)

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All pictures there are: `images`, then the frames of `video`."""
        return (*self.images, *self.video)

    @property
    def wordless(self) -> "Item | None":
        """What it shows without its words, such as the picture that a composed query starts from; None for plain text."""
        return Item(images=self.images, video=self.video) if self.pictures else None

    def to_json(self, root: Path) -> dict[str, Any]:
        """JSON form; pictures as paths relative to `root`."""
        row: dict[str, Any] = {}
        if self.text:
            row["text"] = self.text
        if self.images:
            row["images"] = [_relative(picture, root) for picture in self.images]
        if self.video:
            row["video"] = [_relative(frame, root) for frame in self.video]
        if self.instruction:
            row["instruction"] = self.instruction
        return row


def _plain(text: str) -> str:
    """Text without the character that stands between the parts of a key: no text can be written that has a picture's."""
    return text.replace("\x01", "\x01\x01").replace("\x00", "\x01\x02")


def _relative(picture: Picture, root: Path) -> str:
    if isinstance(picture, bytes):
        raise DataError("a picture held as bytes has no path: write it to a file first")
    return os.path.relpath(picture, root)


@dataclass(frozen=True, slots=True)
class Candidate:
    """An item offered for a query.

    Attributes:
        item: what is offered.
        relevance: in [0, 1] as a judge graded it, or None when nobody has.
        origin: "gold" (known to belong), "given" (the data set's own negative) or "mined".
    """

    item: Item
    relevance: float | None = None
    origin: Origin = "given"

    def __post_init__(self) -> None:
        if self.origin not in get_args(Origin):
            raise DataError(unknown("origin", self.origin, get_args(Origin)))
        if self.relevance is not None and not 0 <= self.relevance <= 1:
            raise DataError(f"relevance must lie in [0, 1], got {self.relevance}")


@dataclass(frozen=True, slots=True)
class Example:
    """A query and what is known about its candidates: the row of every data set.

    Attributes:
        query: the query.
        candidates: at least one of them gold.
        source: name of the data set; batches can be drawn from one source at a time.
        related: keys of items (`Item.content`) that may belong to the query as well and must never be pushed away from it
            (other positives of the same query, likely false negatives found by a judge).
    """

    query: Item
    candidates: tuple[Candidate, ...]
    source: str = ""
    related: frozenset[str] = field(default=frozenset())

    @property
    def gold(self) -> tuple[Item, ...]:
        """The items known to belong to the query."""
        return tuple(c.item for c in self.candidates if c.origin == "gold")

    @property
    def negatives(self) -> tuple[Candidate, ...]:
        """Every candidate that is not gold."""
        return tuple(c for c in self.candidates if c.origin != "gold")

    def adding(self, candidates: Iterable[Candidate], related: Iterable[str] = ()) -> "Example":
        """The same example with more candidates: never replaces gold, never reorders."""
        return replace(self, candidates=(*self.candidates, *candidates), related=self.related | frozenset(related))

    def to_json(self, root: Path) -> dict[str, Any]:
        """JSON form that `from_json` reads back to an equal example."""
        rows = [
            {"item": c.item.to_json(root), "origin": c.origin} | ({} if c.relevance is None else {"relevance": c.relevance})
            for c in self.candidates
        ]
        row: dict[str, Any] = {"query": self.query.to_json(root), "candidates": rows}
        if self.source:
            row["source"] = self.source
        if self.related:
            row["related"] = sorted(self.related)
        return row

    @classmethod
    def from_json(cls, row: Mapping[str, Any], root: Path) -> "Example":
        """The example that `to_json` wrote. Raises DataError for rows of another form."""
        for name, kind in (("candidates", list), ("related", list), ("source", str)):
            if not isinstance(row.get(name, kind()), kind):
                raise DataError(f"{name} must be a {kind.__name__}, got {type(row[name]).__name__}")
        if "query" not in row or not row.get("candidates"):
            raise DataError("an example needs a query and candidates")
        candidates = tuple(_candidate_from_json(value, root) for value in row["candidates"])
        return cls(item_from_json(row["query"], root), candidates, row.get("source", ""), frozenset(row.get("related", ())))


def _candidate_from_json(value: Any, root: Path) -> Candidate:
    if not isinstance(value, Mapping) or "item" not in value:
        raise DataError(f"a candidate is an object with an item, got {str(value)[:60]!r}")
    grade = value.get("relevance")
    if grade is not None and (isinstance(grade, bool) or not isinstance(grade, (int, float))):
        raise DataError(f"relevance must be a number, got {type(grade).__name__}")
    return Candidate(item_from_json(value["item"], root), None if grade is None else float(grade), value.get("origin", "given"))


ITEM_FIELDS = ("text", "image", "images", "video", "instruction")


def item_from_json(value: Any, root: Path) -> Item:
    """An item from a plain string (text) or an object with text, image, images, video, instruction.

    Picture paths resolve under `root`, which they may not leave, be it by `..`, an absolute path or a link.
    """
    if isinstance(value, str):
        return Item(text=value)
    if not isinstance(value, Mapping):
        raise DataError(f"an item is a string or an object, got {type(value).__name__}")
    for name in value:
        if name not in ITEM_FIELDS:
            raise DataError(unknown("item field", name, ITEM_FIELDS))
    for name in ("text", "instruction", "image"):
        if value.get(name) is not None and not isinstance(value[name], str):
            raise DataError(f"{name} must be a string, got {type(value[name]).__name__}")
    image = [value["image"]] if value.get("image") else []
    images = [*image, *listed_paths(value.get("images") or (), "images")]
    video = listed_paths(value.get("video") or (), "video")
    seen, frames = (tuple(resolve(root, path) for path in paths) for paths in (images, video))
    return Item(value.get("text") or "", seen, value.get("instruction") or "", frames)


def listed_paths(value: Any, name: str) -> Sequence[str]:
    """`value`, which must be a list of paths. Raises DataError with `name` if it is something else."""
    if not isinstance(value, (list, tuple)) or not all(isinstance(path, str) for path in value):
        frames = ", one for each frame (extract them beforehand, e.g. with ffmpeg)" if name.endswith("video") else ""
        raise DataError(f"{name} must be a list of paths{frames}")
    return value


@functools.lru_cache(maxsize=16)
def _resolved(root: Path) -> Path:
    """A root is the same for every row of a file; finding out where it leads costs as much as the row."""
    return root.resolve()


def resolve(root: Path, path: str) -> Path:
    """`path` under `root`. Raises DataError when it is a URL or leads out of the root."""
    if "://" in path or path.startswith("data:"):
        raise DataError(f"{path[:80]!r} is a URL; pictures are read from files under {root}")
    if "\x00" in path:
        raise DataError("a path cannot hold a NUL character")
    base = _resolved(root)
    try:
        full = (base / path).resolve()
    except (RuntimeError, UnicodeError, OSError) as error:  # a circle of links, characters no file system takes
        raise DataError(f"{path[:80]!r} cannot be a path: {type(error).__name__}") from None
    if not full.is_relative_to(base):
        raise DataError(f"{path!r} leads out of the data root {base}")
    return full


def write_examples(path: Path, examples: Iterable[Example], root: Path | None = None) -> int:
    """Write JSON lines; returns how many. Pictures are named relative to `root` (the file's folder by default)."""
    count = 0
    with open(path, "w", encoding="utf-8", errors="surrogatepass") as file:
        for example in examples:
            file.write(json.dumps(example.to_json(root or path.parent), ensure_ascii=False, sort_keys=True) + "\n")
            count += 1
    return count


def read_examples(path: Path, root: Path | None = None) -> Iterator[Example]:
    """Read what `write_examples` wrote. For files from elsewhere use `hardwon.data.read`, which reports bad rows."""
    with open(path, encoding="utf-8", errors="surrogatepass") as file:
        for line in file:
            yield Example.from_json(json.loads(line), root or path.parent)
