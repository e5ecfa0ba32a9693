"""What requests and answers look like, in the words of the APIs that clients speak already, and the items in them."""

import base64
import binascii
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hardwon.errors import DataError
from hardwon.items import Item
from hardwon.serve.limits import Limits, Refused

Text = Annotated[str, Field(min_length=1)]
# The pattern is for readers of the schema: what does not fit is answered by a message that says what to do.
URL = Annotated[
    str,
    Field(
        description="A picture as data:image/png;base64,...; other addresses are refused.",
        json_schema_extra={"pattern": "^data:.*;base64,"},
    ),
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Loose(BaseModel):
    model_config = ConfigDict(extra="allow")


class Thing(_Strict):
    """A text, a picture, or both."""

    text: Text | None = None
    image: URL | None = None
    instruction: Text | None = Field(None, description="What the model is asked to do with it.")


class TextPart(_Strict):
    """Words of a message."""

    type: Literal["text"]
    text: Text


class ImageURL(_Strict):
    """Where a picture is."""

    url: URL
    detail: Literal["auto"] | None = None


class ImagePart(_Strict):
    """A picture of a message."""

    type: Literal["image_url"]
    image_url: ImageURL


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Chat(_Strict):
    """A message."""

    role: Literal["system", "user"]
    content: Text | Annotated[list[Part], Field(fail_fast=True, min_length=1)]


Chats = Annotated[list[Chat], Field(fail_fast=True, min_length=1, max_length=2)]


class EmbeddingsRequest(_Strict):
    """OpenAI's, with `messages` as vLLM takes them: an optional system message (the instruction), then one of the user."""

    model: str
    input: Text | Annotated[list[Text | Thing], Field(fail_fast=True, min_length=1)] | None = None
    messages: Chats | Annotated[list[Chats], Field(fail_fast=True, min_length=1)] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = Field(
        None, description="How many numbers of a vector are kept, from the first; the rest is scaled to unit length again."
    )
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = Field(None, description="Has no effect.")

    @model_validator(mode="before")
    @classmethod
    def _one_of(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        given = value.get("input")
        if isinstance(given, list) and given and isinstance(given[0], (int, list)):
            raise ValueError(
                "input holds numbers: tokens of another model mean nothing to this one, send text "
                "(LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False))"
            )
        if (given is None) == (value.get("messages") is None):
            raise ValueError("give either input or messages")
        return value


class RerankRequest(_Strict):
    """Cohere's and Jina's, with pictures as well."""

    model: str | None = None
    query: Text | Thing
    documents: Annotated[list[Text | Thing], Field(fail_fast=True, min_length=1)]
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool = False


class SearchRequest(_Strict):
    """Words, a picture, both, or something that is in the index."""

    text: Text | None = None
    image: URL | None = None
    instruction: Text | None = Field(None, description="That the model saw on such queries in training.")
    like: Annotated[str, Field(min_length=1, max_length=64)] | None = Field(
        None, description="id of an item of the index, instead of text and image."
    )
    k: Annotated[int, Field(ge=1, le=1000)] = 10
    rerank: bool = Field(False, description="Have the reranker look at the best hits.")
    exclude_self: bool = Field(False, description="Leave out hits that show the same as the query.")


class ErrorDetail(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    """An error as OpenAI writes it."""

    error: ErrorDetail


class Usage(_Loose):
    """Tokens, about: what batches are filled by."""

    prompt_tokens: int
    total_tokens: int


class Embedding(BaseModel):
    """A vector of unit length."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str = Field(description="Numbers, or base64 of float32 with the lowest byte first.")


class EmbeddingsReply(BaseModel):
    """Vectors in the order of the input."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


class Ranked(BaseModel):
    """A document."""

    index: int
    relevance_score: float = Field(
        description="Sigmoid of the log-odds; of a reranker of lists, of how far the document is above the mean of those sent."
    )
    document: dict[str, Any] | None = None


class RerankReply(BaseModel):
    """Documents, best first."""

    id: str
    model: str
    results: list[Ranked]
    usage: Usage


class HitReply(BaseModel):
    """An item that was found."""

    rank: int
    id: str = Field(description="That `like` takes.")
    score: float
    text: str
    images: list[str] = Field(description="Names of its pictures, or of the frames of its video.")
    source: str = Field(description="What it came from: a folder or a file.")
    place: str = Field(description="Where it is, below the folder that was indexed.")
    content: str = Field(description="Hash of what it shows: another when it has changed, and equal for copies.")


class SearchReply(BaseModel):
    """Hits, best first."""

    model: str
    reranked: bool
    pairs: int = Field(description="Candidates that the reranker read; 0 where its gate or its budget lets it read nothing.")
    hits: list[HitReply]


class ModelCard(BaseModel):
    """A model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    kind: Literal["embedder", "reranker"]
    fingerprint: str


class ModelsReply(BaseModel):
    """The models of this server."""

    object: Literal["list"]
    data: list[ModelCard]


class Health(BaseModel):
    """Whether the server answers."""

    status: Literal["ok"]


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


def _talk(chats: Sequence[Chat], field: str) -> Item:
    roles = [chat.role for chat in chats]
    if roles not in (["user"], ["system", "user"]):
        raise Refused(400, "a conversation is one message of the user, with a system message before it or none", field)
    texts, urls, instruction = [], [], ""
    for chat in chats:
        parts = [TextPart(type="text", text=chat.content)] if isinstance(chat.content, str) else chat.content
        words = [part.text for part in parts if isinstance(part, TextPart)]
        if chat.role == "system":
            if len(words) < len(parts):
                raise Refused(400, "a system message is the instruction: it holds text only", field)
            instruction = "\n".join(words)
        else:
            texts = words
            urls = [part.image_url.url for part in parts if isinstance(part, ImagePart)]
    return _item("\n".join(texts), urls, instruction, field)


def _item(text: str, urls: Sequence[str], instruction: str, field: str) -> Item:
    try:
        return Item(text=text, images=tuple(picture(url, field) for url in urls), instruction=instruction)
    except DataError as error:
        raise Refused(400, str(error), field) from None


def picture(url: str, field: str) -> bytes:
    """The encoded picture of a data: URL. Nothing else is ever fetched or opened.

    Raises:
        Refused: another URL, a path, or what is no base64.
    """
    if url[:5].lower() != "data:":
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
