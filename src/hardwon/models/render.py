"""From items to what sentence-transformers takes: always explicit, so that text stays text.

`SentenceTransformer.encode("http://x/y.png")` would fetch and `encode("/a/b.png")` would open a file; an object with the key
"text" is never interpreted. Strings that a tokenizer treats as special ("<image>", "[SEP]") are made inert.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from hardwon.errors import ModelError
from hardwon.items import Item
from hardwon.pictures import open_picture


def inert(text: str, special: Iterable[str]) -> str:
    """`text` with every special token spelled so that the tokenizer sees ordinary characters.

    A space after the first character is enough for every tokenizer and is what a careful writer would type.
    """
    for token in special:
        if len(token) > 1 and token in text:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def words(item: Item, special: Iterable[str]) -> str:
    """Instruction and text of an item as one string; either may be empty."""
    return inert(" ".join(part for part in (item.instruction, item.text) if part), special)


def payload(item: Item, special: Iterable[str], modalities: Sequence[str]) -> dict[str, Any]:
    """An item in the form that `encode` takes: {"text": ...}, {"image": ...} or both; several pictures as a list.

    Raises:
        ModelError: a picture for a model that reads text only.
    """
    if item.images and "image" not in modalities:
        raise ModelError(f"this model reads {', '.join(modalities)} only, but item {item.key[:12]} holds a picture")
    made: dict[str, Any] = {}
    if item.images:
        pictures = [open_picture(picture) for picture in item.images]
        made["image"] = pictures[0] if len(pictures) == 1 else pictures
    text = words(item, special)
    if text:
        made["text"] = text
    return made
