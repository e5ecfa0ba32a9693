"""The items in requests."""

import base64
import binascii
from collections.abc import Sequence
from typing import Any

from hardwon.errors import DataError
from hardwon.items import Item
from hardwon.pictures import begins_as_picture
from hardwon.serve.limits import Limits, Refused
from hardwon.serve.schemas import Chat, Document, EmbeddingsRequest, ImagePart, ImageURL, RerankRequest, TextPart, Thing


def embedded(asked: EmbeddingsRequest, limits: Limits) -> tuple[list[Item], str]:
    """Items of a request for embeddings, and the field that holds them."""
    if asked.messages is None:
        given = [asked.input] if isinstance(asked.input, str) else asked.input or []
        return things(given, "input", limits), "input"
    several: Any = [asked.messages] if isinstance(asked.messages[0], Chat) else asked.messages
    _few(several, "messages", limits)
    return [_talk(chats, f"messages[{n}]") for n, chats in enumerate(several)], "messages"


def things(given: Sequence[str | Thing], field: str, limits: Limits) -> list[Item]:
    """Items of a list of texts and things.

    Raises:
        Refused: too many, or one that is empty or whose picture is not in it.
    """
    _few(given, field, limits)
    return [thing(each, f"{field}[{n}]") for n, each in enumerate(given)]


def thing(given: str | Thing, field: str) -> Item:
    """An item of a text or thing; errors as `things`."""
    if isinstance(given, str):
        return Item(text=given)
    return _item(given.text or "", [] if given.image is None else [given.image], given.instruction or "", field)


def _few(given: Sequence[Any], field: str, limits: Limits) -> None:
    if len(given) > limits.inputs:
        raise Refused(400, f"{field} has {len(given):,} entries, more than the {limits.inputs:,} allowed", field, "too_many")


def documents(asked: RerankRequest, limits: Limits) -> list[Item]:
    """Items of the documents of a request; errors as `things`."""
    _few(asked.documents, "documents", limits)
    return [_document(each, asked.rank_fields, f"documents[{n}]") for n, each in enumerate(asked.documents)]


def _document(given: str | Document, names: Sequence[str] | None, field: str) -> Item:
    if isinstance(given, str):
        return Item(text=given)
    read = names or ("text", "image")
    held = {"text": given.text, **(given.model_extra or {})}
    found = [(name, value) for name in read if name != "image" and (value := held.get(name)) is not None]
    for name, value in found:
        if not isinstance(value, str):
            raise Refused(400, f"{field}: its {name[:60]!r} is no string: rank_fields names fields that hold text", field)
    urls = [given.image] if given.image is not None and "image" in read else []
    text = "\n".join(value for _, value in found if value)
    if not text and not urls:
        raise Refused(400, f"{field}: holds nothing to read in {', '.join(name[:60] for name in read[:8])}", field)
    return _item(text, urls, given.instruction or "", field)


def _talk(chats: Sequence[Chat], field: str) -> Item:
    last = chats[-1]
    if last.role == "assistant":
        parts = last.content if isinstance(last.content, list) else []
        if (isinstance(last.content, str) and last.content) or any(not isinstance(p, TextPart) or p.text for p in parts):
            said = "the message of the assistant must be empty: it is not embedded; put what is to be embedded into the user's"
            raise Refused(400, f"{field}: {said}", field)
        chats = chats[:-1]
    if [chat.role for chat in chats] not in (["user"], ["system", "user"]):
        said = "a conversation is one message of the user, with a system message before it or none, and an empty one of the "
        raise Refused(400, f"{field}: {said}assistant after it or none", field)
    texts, urls, instruction = [], [], ""
    for chat in chats:
        parts = [TextPart(type="text", text=chat.content)] if isinstance(chat.content, str) else chat.content or []
        words = [part.text for part in parts if isinstance(part, TextPart) and part.text]
        pictures = [part.image_url for part in parts if isinstance(part, ImagePart)]
        if chat.role == "system":
            if pictures:
                raise Refused(400, f"{field}: a system message is the instruction: it holds text only", field)
            instruction = "\n".join(words)
        else:
            texts, urls = words, [each.url if isinstance(each, ImageURL) else each for each in pictures]
    return _item("\n".join(texts), urls, instruction, field)


def _item(text: str, urls: Sequence[str], instruction: str, field: str) -> Item:
    try:
        return Item(text=text, images=tuple(picture(url, field) for url in urls), instruction=instruction)
    except DataError as error:
        raise Refused(400, f"{field}: {error}", field) from None


def picture(url: str, field: str) -> bytes:
    """The encoded picture of a data: URL, or of base64 alone. Nothing else is ever fetched or opened.

    Raises:
        Refused: another URL, a path, or what is no base64.
    """
    if url[:5].lower() != "data:":
        if (made := _bare(url)) is not None:
            return made
        raise Refused(
            400,
            f"{url[:60]!r} is not opened: this server fetches no addresses and reads no files for its clients; send the "
            "picture itself as data:image/png;base64,...",
            field,
            "picture_not_inline",
        )
    head, comma, content = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise Refused(400, "a picture is sent as data:image/png;base64,... in base64", field, "picture_not_base64")
    try:
        made = base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(400, f"the picture is not base64: {error}", field, "picture_not_base64") from None
    if not made:
        raise Refused(400, "the picture is empty", field, "picture_not_base64")
    return made


def _bare(text: str) -> bytes | None:
    """The picture of which this is the base64; None if it is something else, such as an address that could be base64 too."""
    try:
        if not begins_as_picture(base64.b64decode(text[:16], validate=True)):
            return None
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
