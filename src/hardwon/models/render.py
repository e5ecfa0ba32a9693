"""From items to what sentence-transformers takes: always explicit, so that text stays text.

`SentenceTransformer.encode("http://x/y.png")` would fetch and `encode("/a/b.png")` would open a file; an object with the key
"text" is never interpreted. Strings that a tokenizer treats as special ("<image>", "[SEP]") are made inert.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from hardwon.errors import BadMedia, ModelError
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
    text = inert(" ".join(part for part in (item.instruction, item.text) if part), special)
    return text.encode("utf-8", "replace").decode()  # half of a surrogate pair is no character to any tokenizer


def refuse_parts(item: Item, modalities: Sequence[str], fused: bool = True) -> None:
    """Raise ModelError for an item of a kind that the model does not read; arguments as `payload`."""
    if not fused and item.images and (len(item.images) > 1 or item.text or item.instruction):
        what = "several pictures" if len(item.images) > 1 else "a picture with a text or an instruction"
        raise ModelError(
            f"item {item.key[:12]} holds {what}, but this model has one encoder for text and one for pictures and cannot "
            "read them together: give each its own item, or take a model that fuses them"
        )
    for kind, there in (("image", bool(item.images)), ("text", bool(item.text))):
        if there and kind not in modalities:
            what = {"image": "a picture", "text": "text"}[kind]
            raise ModelError(f"this model reads {', '.join(modalities)} only, but item {item.key[:12]} holds {what}")


def payload(
    item: Item,
    special: Iterable[str],
    modalities: Sequence[str],
    fused: bool = True,
    cut: Callable[[Item, str], str] = lambda item, text: text,
) -> dict[str, Any]:
    """An item in the form that `encode` takes: {"text": ...}, {"image": ...} or both; several pictures as a list.

    Args:
        item: what is shown to the model.
        special: see `inert`.
        modalities: what the model reads.
        fused: whether it reads text and pictures, or several pictures, together.
        cut: shortens a text that leaves no room.

    Raises:
        ModelError: a picture for a model that reads text only, or together what a dual encoder reads one by one.
        BadMedia: a picture that cannot be decoded; names the item too.
    """
    refuse_parts(item, modalities, fused)
    made: dict[str, Any] = {}
    if item.images:
        try:
            pictures = [open_picture(picture) for picture in item.images]
        except BadMedia as error:
            raise BadMedia(f"{error} (in {item.label})") from error
        made["image"] = pictures[0] if len(pictures) == 1 else pictures
    text = words(item, special)
    shown = cut(item, text) if text else ""
    if shown or not item.images:
        made["text"] = shown
    return made
