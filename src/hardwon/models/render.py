"""From items to what sentence-transformers takes: always explicit, so that text stays text.

`SentenceTransformer.encode("http://x/y.png")` would fetch and `encode("/a/b.png")` would open a file; an object with the key
"text" is never interpreted. Strings that a tokenizer treats as special ("<image>", "[SEP]") are made inert.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from PIL import Image

from hardwon.errors import BadMedia, ModelError
from hardwon.items import Item, Picture
from hardwon.pictures import open_picture

Show = Callable[[Picture], Image.Image]


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


def as_shown(item: Item, modalities: Sequence[str], fused: bool = True) -> Item:
    """The item as a model is shown it: where it reads no video, the frames are further pictures in the same order.

    Raises:
        ModelError: a video for a model that reads neither video nor several pictures together.
    """
    if not item.video:
        return item
    if not fused:
        raise ModelError(
            f"item {item.key[:12]} holds a video, but this model has one encoder for text and one for pictures and cannot read "
            "frames together: give each frame its own item, or take a model that reads several pictures together"
        )
    if "video" in modalities:
        return item
    if "image" not in modalities:
        raise ModelError(
            f"this model reads {', '.join(modalities)} only, but item {item.key[:12]} holds a video: take a model that reads "
            "video or pictures, or leave the item out"
        )
    return replace(item, images=item.pictures, video=())


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
    least: int = 1,
    show: Show = open_picture,
) -> dict[str, Any]:
    """An item in the form that `encode` takes: any of "image", "video" and "text"; several pictures, and frames, as a list.

    Args:
        item: what is shown to the model.
        special: see `inert`.
        modalities: what the model reads.
        fused: whether it reads text and pictures, or several pictures, together.
        cut: shortens a text that leaves no room.
        least: frames that a video needs; the last one is repeated until there are so many.
        show: what is shown of a picture.

    Raises:
        ModelError: a picture or a video that the model does not read, together what a dual encoder reads one by one, or a
            video whose frames differ in size.
        BadMedia: a picture that cannot be decoded; names the item too.
    """
    whole, item = item, as_shown(item, modalities, fused)
    refuse_parts(item, modalities, fused)
    made: dict[str, Any] = {}
    try:
        pictures = [show(picture) for picture in item.images]
        frames = _frames(item, least) if item.video else []
    except BadMedia as error:
        raise BadMedia(f"{error} (in {whole.label})") from error
    if pictures:
        made["image"] = pictures[0] if len(pictures) == 1 else pictures
    if item.video:
        made["video"] = frames
    text = words(item, special)
    said = cut(whole, text) if text else ""
    if said or not item.pictures:
        made["text"] = said
    return made


def _frames(item: Item, least: int) -> list[Image.Image]:
    frames = [open_picture(frame) for frame in item.video]
    sizes = list(dict.fromkeys(frame.size for frame in frames))
    if len(sizes) > 1:
        (width, height), (other, another) = sizes[:2]
        raise ModelError(
            f"item {item.key[:12]} holds a video with frames of {width} x {height} and of {other} x {another} pixels: "
            "make them all one size"
        )
    return frames + frames[-1:] * (least - len(frames))
