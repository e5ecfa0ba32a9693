"""What requests and answers look like, in the words of the APIs that clients speak already.

What other servers know and what plays no part here is accepted. What would change the answer there and cannot here is
accepted only with the value that says what is done anyway; any other is refused with the reason.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

Text = Annotated[str, Field(min_length=1)]
# The pattern is for readers of the schema: what does not fit is answered by a message that says what to do.
URL = Annotated[
    str,
    Field(
        description="A picture as data:image/png;base64,... or its base64 alone; other addresses are refused.",
        json_schema_extra={"pattern": "^(data:.*;base64,|[A-Za-z0-9+/]+=*$)"},
    ),
]


def _only(*values: Any, why: str) -> BeforeValidator:
    """Accepts nothing but these values, and no value."""

    def check(given: Any) -> Any:
        if given is not None and not any(type(given) is type(value) and given == value for value in values):
            said = " or ".join(map(repr, values)).replace("True", "true").replace("False", "false")
            raise ValueError(f"{why}: leave it out" + (f", or send {said}" if values else ""))
        return given

    return BeforeValidator(check)


def _silent(what: str = "") -> Any:
    return Field(None, description=f"Has no effect{what}.")


_CUT = "a text that is too long is cut to what the model reads"
_UNIT = "vectors have unit length"
_FORM = "items are always put into the model's own form"
_Nothing = Annotated[dict[str, Any], Field(max_length=0)]
Kept = Annotated[Literal[True] | None, _only(True, why=_UNIT)]
Cut = Annotated[Literal[True] | None, _only(True, why=_CUT)]
Formed = Annotated[_Nothing | None, _only({}, why=_FORM)]


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
    text: str


class ImageURL(_Strict):
    """Where a picture is."""

    url: URL
    detail: Literal["auto", "low", "high"] | None = _silent(": how large pictures are read is the model's")


class ImagePart(_Strict):
    """A picture of a message."""

    type: Literal["image_url"]
    image_url: ImageURL | URL
    uuid: str | None = _silent()


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Chat(_Strict):
    """A message."""

    role: Literal["system", "user", "assistant"]
    content: str | Annotated[list[Part], Field(fail_fast=True)] | None = None


Chats = Annotated[list[Chat], Field(fail_fast=True, min_length=1, max_length=3)]


def _shape(value: Any) -> str:
    return "many" if isinstance(value, list) and value and isinstance(value[0], list) else "one"


Talks = Annotated[
    Annotated[Chats, Tag("one")] | Annotated[list[Chats], Field(fail_fast=True, min_length=1), Tag("many")],
    Discriminator(_shape),
]


class _Poolings(_Strict):
    """What vLLM's requests for vectors may say beside OpenAI's."""

    add_generation_prompt: bool | None = _silent(f": {_FORM}")
    continue_final_message: bool | None = _silent(f": {_FORM}")
    add_special_tokens: bool | None = _silent(f": {_FORM}")
    request_id: str | None = _silent()
    priority: int | None = _silent()
    cache_salt: str | None = _silent()
    truncate_prompt_tokens: Annotated[Literal[-1] | None, _only(-1, why=_CUT)] = None
    padding: Annotated[Literal["do_not_pad"] | None, _only("do_not_pad", why="padding plays no part")] = None
    chat_template: Annotated[None, _only(why=_FORM)] = None
    chat_template_kwargs: Formed = None
    mm_processor_kwargs: Formed = None
    media_io_kwargs: Formed = None
    normalize: Kept = None
    use_activation: Kept = None
    embed_dtype: Annotated[Literal["float32"] | None, _only("float32", why="numbers are float32")] = None
    endianness: Annotated[
        Literal["native", "little"] | None, _only("native", "little", why="base64 holds the lowest byte first")
    ] = None


class _Jinas(_Strict):
    """What Jina's may say."""

    task: str | None = Field(
        None,
        description="Has no effect: an item's `instruction` says what it is for. Refused where the model has a prompt of its "
        "own for this task.",
    )
    normalized: Kept = None
    embedding_type: Annotated[
        Literal["float", "base64"] | None, _only("float", "base64", why="vectors are sent as numbers or as base64 of them")
    ] = Field(None, description="As encoding_format.")
    truncate: Cut = None
    late_chunking: Annotated[Literal[False] | None, _only(False, why="each input has a vector of its own")] = None
    return_multivector: Annotated[Literal[False] | None, _only(False, why="each input has one vector")] = None


class EmbeddingsRequest(_Poolings, _Jinas):
    """OpenAI's, with `messages` as vLLM takes them: an optional system message (the instruction), then one of the user.

    An empty one of the assistant may follow, as vLLM's clients send it.
    """

    model: str
    input: Text | Annotated[list[Text | Thing], Field(fail_fast=True, min_length=1)] | None = None
    messages: Talks | None = None
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
        form, kind = value.get("encoding_format"), value.get("embedding_type")
        if form is not None and kind in ("float", "base64") and form != kind:
            raise ValueError("encoding_format and embedding_type say different things: leave one of them out")
        return value

    @property
    def form(self) -> str:
        """How vectors are written."""
        return self.embedding_type or self.encoding_format


class Document(BaseModel):
    """A document with whatever else belongs to it, of which nothing is read unless rank_fields names it."""

    model_config = ConfigDict(extra="allow", strict=True)

    text: str | None = None
    image: URL | None = None
    instruction: str | None = Field(None, description="What the model is asked to do with it.")


class RerankRequest(_Strict):
    """Cohere's and Jina's, with pictures as well."""

    model: str | None = None
    query: Text | Thing
    documents: Annotated[list[Text | Document], Field(fail_fast=True, min_length=1)]
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool | None = False
    rank_fields: Annotated[list[Text], Field(fail_fast=True, min_length=1)] | None = Field(
        None, description="Fields of the documents that are read, in this order; text and image if left out."
    )
    max_tokens_per_doc: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Tokens of a document's text; the rest is cut off."
    )
    max_chunks_per_doc: Annotated[Literal[1] | None, _only(1, why=f"documents are not read in chunks, and {_CUT}")] = None
    priority: int | None = _silent()
    truncation: Cut = None


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
    meta: dict[str, Any] = Field(description="As of Cohere: api_version, tokens.")


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
