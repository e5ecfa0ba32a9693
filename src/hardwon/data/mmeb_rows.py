"""Rows of MMEB-train as Examples; `hardwon.data.mmeb.train` reads the folder of all of its data sets.

A row has `qry`, `qry_image_path`, `pos_text`, `pos_image_path` and may have `neg_text`, `neg_image_path`: strings, "" or null
for none. The instruction is a part of the text. Text that goes with a picture holds the placeholder `<|image_1|>`, which is
taken out, with spaces at the ends.
"""

from collections.abc import Callable, Mapping
from typing import Any

from hardwon.errors import DataError
from hardwon.items import Candidate, Example, Item

COLUMNS = ("qry", "qry_image_path", "pos_text", "pos_image_path", "neg_text", "neg_image_path")
PLACEHOLDER = "<|image_1|>"


def example(row: Mapping[str, Any], item: Callable[[Mapping[str, Any], str], Item]) -> Example:
    """The example that a row states; a negative that is a copy of the positive is left out.

    Args:
        row: columns by name.
        item: makes an item from an object and the name of what it is, and says what is wrong with it.

    Raises:
        DataError: the row cannot be used; the message is the reason.
    """
    query = item(_parts(row, "qry", "qry_image_path"), "qry")
    positive = item(_parts(row, "pos_text", "pos_image_path"), "pos_text")
    candidates = [Candidate(positive, origin="gold")]
    if row.get("neg_text") or row.get("neg_image_path"):
        negative = item(_parts(row, "neg_text", "neg_image_path"), "neg_text")
        candidates += [Candidate(negative)] if negative != positive else []
    return Example(query, tuple(candidates))


def _parts(row: Mapping[str, Any], text: str, image: str) -> dict[str, str]:
    said, seen = row.get(text) or "", row.get(image) or ""
    if not isinstance(said, str) or not isinstance(seen, str):
        raise DataError(f"{text} and {image} must be strings")
    return {"text": cleaned(said), "image": seen}


def cleaned(text: str) -> str:
    """Text of MMEB without the placeholder for a picture."""
    return text.replace(PLACEHOLDER, "").strip()
