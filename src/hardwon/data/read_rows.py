"""Rows as Examples: what the columns of a row mean, and every reason why a row cannot be used."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

from hardwon.data import mmeb_rows, unime
from hardwon.data.read_files import json_kind, not_unicode
from hardwon.errors import BadMedia, DataError, unknown
from hardwon.fetch import Fetched, is_url
from hardwon.items import Candidate, Example, Item, Origin, item_from_json, listed_paths
from hardwon.pictures import check_picture, open_picture

_SEEN = ("image", "images", "video")
_CANDIDATE_FIELDS = ("item", "relevance", "origin")


class Rows:
    """Turns the rows of one file into Examples; remembers the ids and pictures it has seen.

    Args:
        root: folder that every picture must lie in.
        decode: decode every picture instead of looking at its header and its end.
        fetched: where pictures named by addresses come from; None refuses addresses.
    """

    def __init__(self, root: Path, decode: bool = False, fetched: Fetched | None = None):
        self._root, self._decode, self._fetched = root, decode, fetched
        self._ids: set[str] = set()
        self._pictures: dict[Path, str] = {}

    def example(self, row: Mapping[str, Any]) -> Example:
        """The example that a row states.

        Raises:
            DataError: the row cannot be used; the message is the reason.
        """
        try:
            if not_unicode(row):
                raise DataError("holds text that is not Unicode (half of a surrogate pair, or not UTF-8): export it as UTF-8")
            example = self._read(row)
        except RecursionError as error:
            raise DataError("is nested too deeply") from error
        except (OSError, ValueError, RuntimeError) as error:  # names that no file system takes; loops of links
            raise DataError(f"names a path that cannot be followed ({error})") from error
        # Last, so that a row that is refused does not take its id with it.
        self._claim(row.get("id"))
        return example

    def picture(self, path: Path) -> None:
        """Check a picture; one that many rows share is looked at once. Raises BadMedia."""
        if path not in self._pictures:
            try:
                (open_picture if self._decode else check_picture)(path)
                self._pictures[path] = ""
            except BadMedia as error:
                self._pictures[path] = str(error)
        if self._pictures[path]:
            raise BadMedia(self._pictures[path])

    def _claim(self, value: Any) -> None:
        if value is None:
            return
        if not isinstance(value, (str, int)) or isinstance(value, bool):
            raise DataError(f"id must be a string or an integer, got {json_kind(value)}")
        if str(value) in self._ids:
            raise DataError(f"id {str(value)!r} was used by an earlier row: ids must be unique")
        self._ids.add(str(value))

    def _read(self, row: Mapping[str, Any]) -> Example:
        if "hard_negatives" in row:
            return unime.example(row, self._item)
        if "qry" in row:
            return mmeb_rows.example(row, self._item)
        return self._stated(row) if "candidates" in row else self._pair(row)

    def _pair(self, row: Mapping[str, Any]) -> Example:
        image, instruction, video = _beside(row, "query")
        query = self._item(row.get("query"), "query", image, instruction, video)
        image, instruction, video = _beside(row, "positive")
        positives = _listed(row.get("positive"))
        _only_one("positive", positives, {"an image": image, "a video": video})
        gold = [self._item(value, "positive", image, instruction, video) for value in positives or [None]]
        negatives = self._negatives(row, instruction)
        shown = {(item.text, item.images, item.video) for item in gold}
        for item in negatives:
            if (item.text, item.images, item.video) in shown:
                what = item.text or ", ".join(str(picture) for picture in item.pictures)
                raise DataError(f"{what[:80]!r} is a positive and a negative of the same row: remove one")
        candidates = [*(Candidate(item, origin="gold") for item in gold), *(Candidate(item) for item in negatives)]
        return Example(query, tuple(candidates), _string(row, "source"))

    def _negatives(self, row: Mapping[str, Any], instruction: str) -> list[Item]:
        video = _frames(row, "negative_video")
        single = _listed(row.get("negative"))
        _only_one("negative", single, {"a video": video})
        made = []
        for name, values in (("negative", single or [None] * bool(video)), ("negatives", _listed(row.get("negatives")))):
            for value in values:
                # The same instruction on both, or a model could tell positives from negatives by it.
                own = isinstance(value, Mapping) and value.get("instruction")
                frames = video if name == "negative" else ()
                made.append(self._item(value, name, instruction="" if own else instruction, video=frames))
        return made

    def _stated(self, row: Mapping[str, Any]) -> Example:
        """A row as `items.write_examples` wrote it."""
        if not isinstance(row["candidates"], list):
            raise DataError(f"candidates must be a list, got {json_kind(row['candidates'])}")
        related = row.get("related") or []
        if not isinstance(related, list) or not all(isinstance(key, str) for key in related):
            raise DataError("related must be a list of strings")
        query = self._item(row.get("query"), "query")
        candidates = tuple(self._candidate(value) for value in row["candidates"])
        if not any(candidate.origin == "gold" for candidate in candidates):
            raise DataError("no candidate has origin 'gold': say which one belongs to the query")
        return Example(query, candidates, _string(row, "source"), frozenset(related))

    def _candidate(self, value: Any) -> Candidate:
        if not isinstance(value, Mapping):
            raise DataError(f"a candidate is an object, got {json_kind(value)}")
        for name in value:
            if name not in _CANDIDATE_FIELDS:
                raise DataError(unknown("candidate field", name, _CANDIDATE_FIELDS))
        relevance, origin = value.get("relevance"), value.get("origin") or "given"
        if origin not in get_args(Origin):
            raise DataError(unknown("origin", origin, get_args(Origin)))
        if relevance is not None:
            if isinstance(relevance, bool) or not isinstance(relevance, (int, float)):
                raise DataError(f"relevance must be a number, got {json_kind(relevance)}")
            if not 0 <= relevance <= 1:
                raise DataError(f"relevance must lie in [0, 1], got {relevance}")
            relevance = float(relevance)
        return Candidate(self._item(value.get("item"), "item"), relevance, cast(Origin, origin))

    def _item(self, value: Any, name: str, image: str = "", instruction: str = "", video: Sequence[str] = ()) -> Item:
        """An item from the value of column `name` and the columns beside it."""
        if not isinstance(value, (str, Mapping)) and value is not None:
            raise DataError(f"{name} must be a string or an object, got {json_kind(value)}")
        parts: dict[str, Any] = dict(value) if isinstance(value, Mapping) else {"text": value}
        if image and (parts.get("image") or parts.get("images")):
            raise DataError(f"{name} has an image of its own and one in {name}_image: keep one")
        if video and parts.get("video"):
            raise DataError(f"{name} has a video of its own and one in {name}_video: keep one")
        if instruction and parts.get("instruction"):
            raise DataError(f"{name} has an instruction of its own and one in {name}_instruction: keep one")
        beside = {"image": image, "instruction": instruction, "video": video}
        parts |= {field: given for field, given in beside.items() if given}
        for field in ("images", "video"):
            if parts.get(field) is not None:
                listed_paths(parts[field], f"{name}: {field}")
        # An empty name would resolve to the root itself, blank text would train on nothing.
        text = parts.get("text")
        blank = not text or (isinstance(text, str) and not text.strip())
        if blank and not any(parts.get(field) for field in _SEEN) and set(parts) <= {"text", *_SEEN, "instruction"}:
            raise DataError(f"has no {name}: give it text, an image or a video")
        try:
            item = item_from_json(self._brought(parts), self._root)
        except DataError as error:
            raise DataError(f"{name}: {error}") from error
        for picture in item.pictures:
            if isinstance(picture, Path):
                self.picture(picture)
        return item

    def _brought(self, parts: Mapping[str, Any]) -> Mapping[str, Any]:
        """The parts of an item with the pictures' paths where their addresses stood."""
        fetched = self._fetched
        if fetched is None:
            return parts

        def here(value: Any) -> Any:
            if isinstance(value, (list, tuple)):
                return [here(part) for part in value]
            return fetched.path(value) if isinstance(value, str) and is_url(value) else value

        return dict(parts) | {name: here(parts[name]) for name in _SEEN if name in parts}


def _listed(value: Any) -> list[Any]:
    """The values of a column that takes one or several."""
    if value is None or value == "":
        return []
    return value if isinstance(value, list) else [value]


def _only_one(name: str, values: Sequence[Any], beside: Mapping[str, Any]) -> None:
    """Raise when a column beside the column `name` could belong to any of several values."""
    for what, given in beside.items():
        if given and len(values) > 1:
            column = f"{name}_{what.split()[1]}"
            raise DataError(f"{column} goes with one {name}, there are {len(values)}: put {what} into each of them")


def _beside(row: Mapping[str, Any], name: str) -> tuple[str, str, Sequence[str]]:
    """Image, instruction and video that stand in columns beside the column `name`."""
    return _string(row, f"{name}_image"), _string(row, f"{name}_instruction"), _frames(row, f"{name}_video")


def _frames(row: Mapping[str, Any], name: str) -> Sequence[str]:
    """The frames in a column; a list, which CSV does not have."""
    value = row.get(name)
    if isinstance(value, str):
        raise DataError(f"{name} must be a list of paths, got string: CSV has no lists, so take JSON lines or Parquet")
    return () if value is None else listed_paths(value, name)


def _string(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if value is not None and not isinstance(value, str):
        raise DataError(f"{name} must be a string, got {json_kind(value)}")
    return value or ""
