"""The API: embeddings as OpenAI's clients ask for them, reranking as Cohere's and Jina's do, search, and numbers."""

import asyncio
import base64
import logging
import math
import os
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio
import numpy as np
from anyio import from_thread, to_thread
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from jaxtyping import Float32
from pydantic_core import to_json
from starlette.exceptions import HTTPException

from hardwon.errors import BadMedia, HardwonError, unknown
from hardwon.items import Item
from hardwon.models import Embedder, Pair, Reranker
from hardwon.pictures import check_picture
from hardwon.search import Fused, Index
from hardwon.serve import schemas
from hardwon.serve.batching import Done, Unusable, Work, Worker
from hardwon.serve.limits import BODY, Guard, Limits, Refused
from hardwon.serve.metrics import TYPE, Metrics

log = logging.getLogger(__name__)
THREADS = 32  # searches at a time, which mostly wait for the worker
RERANK_PATHS = ("/v1/rerank", "/v2/rerank", "/rerank")
POSTS = frozenset(("/v1/embeddings", "/v1/search", *RERANK_PATHS))
GETS = ("/v1/models", "/healthz", "/metrics", "/openapi.json")
REASONS = {
    400: "A request of another form.",
    401: "No key, or a wrong one.",
    403: "Without a key, a request under another name than this machine's.",
    404: "No such model, or nothing that could answer this.",
    405: "Another method.",
    408: "The body came too slowly.",
    413: "The body is too large.",
    415: "The body is not JSON, or is compressed.",
    422: "A picture that is damaged or too large, or something that the model does not read.",
    429: "Too many requests: try again after the seconds in Retry-After.",
    500: "A fault of the server.",
    503: "The server does not compute any more.",
    504: "No answer in time.",
}


@dataclass(frozen=True)
class Served:
    """What is served.

    Attributes:
        embedder: the model.
        name: what clients call it.
        index: searched by `/v1/search`; None: there is none.
        reranker: of `/v1/rerank` and of searches that ask for it; None: there is none.
        reranker_name: what clients call it.
    """

    embedder: Embedder
    name: str
    index: Index | None = None
    reranker: Reranker | None = None
    reranker_name: str = ""


class _Request(Request):
    async def json(self) -> Any:
        """The body as `Guard` has read it."""
        return self.scope[BODY]


class _Route(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(_Request(request.scope, request.receive))
            except tuple(ANSWERS):
                raise
            except Exception:  # left to the server, it would close the connection under other requests of the client
                log.exception("a request to %s failed", request.scope["path"])
                return await _refused(request, Refused(500, "the server failed; its log says why", code="internal_error"))

        return answer


class _Queued:
    """An index's encoder, and a reranker, that wait for the worker: they are called from a thread of `to_thread`."""

    def __init__(self, desk: "_Desk", embedder: Embedder, reranker: Reranker | None):
        self._desk, self.dim, self.fingerprint = desk, embedder.dim, embedder.fingerprint
        self.reranked_by = "" if reranker is None else reranker.fingerprint

    def encode(self, items: Sequence[Item], *, progress: str = "") -> np.ndarray:
        """As `Encoder.encode`."""
        return from_thread.run(self._desk.encode, items).values

    def score_pairs(self, pairs: Sequence[Pair], *, progress: str = "") -> np.ndarray:
        """As `Scorer.score_pairs`."""
        try:
            return from_thread.run(self._desk.score, pairs).values
        except Unusable as error:  # the query has been read before: this is about an item of the index
            raise RuntimeError(f"an item of the index cannot be reranked: {error}") from error


class _Desk:
    """Hands what requests ask for to the worker."""

    def __init__(self, served: Served, worker: Worker):
        self._worker = worker
        self._encoding = Work.encoding(served.embedder)
        self._scoring = None if served.reranker is None else Work.scoring(served.reranker)

    async def encode(self, items: Sequence[Item]) -> Done:
        return await asyncio.wrap_future(self._worker.submit(self._encoding, items))

    async def score(self, pairs: Sequence[Pair]) -> Done:
        if self._scoring is None:
            raise Refused(404, "this server has no reranker: start it with --rerank", code="not_found")
        return await asyncio.wrap_future(self._worker.submit(self._scoring, pairs))


class Api:
    """The application.

    Args:
        served: what is served.
        limits: of requests.
        key: that requests have to bring; "" for none.

    Attributes:
        served: see above.
        limits: see above.
        app: FastAPI's, where other pages can be added.
        guard: the whole application, as ASGI.
    """

    def __init__(self, served: Served, limits: Limits, key: str = ""):
        self.served, self.limits, self.metrics = served, limits, Metrics()
        self._worker = Worker(limits.batch_tokens, self.metrics.computed)
        self._desk, self._began = _Desk(served, self._worker), int(time.time())
        self._queued = _Queued(self._desk, served.embedder, served.reranker)
        self._index = None if served.index is None else replace(served.index, encoder=self._queued)
        self._root = _root(served.index)
        self._threads = anyio.CapacityLimiter(THREADS)
        self.app = self._made()
        self.guard = Guard(self.app, POSTS, limits, key, self._worker.pace, self.metrics.answered)
        self.metrics.watch(frozenset((*POSTS, *GETS)), pending=lambda: self.guard.pending, held=lambda: self.guard.held)

    def close(self) -> None:
        """Finish what has been accepted."""
        self._worker.close()

    def _made(self) -> FastAPI:
        @asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[None]:
            yield
            await to_thread.run_sync(self.close)

        quiet: Any = dict.fromkeys(("tracing", "metrics", "logs", "operation_spans", "auto_configure"), False)
        app = FastAPI(
            title="hardwon",
            version="1",
            docs_url=None,  # these pages load their scripts from elsewhere
            redoc_url=None,
            lifespan=lifespan,
            telemetry=quiet,
            exception_handlers=ANSWERS,
        )
        app.router.route_class = _Route
        posts: Sequence[tuple[str, Any, Any]] = (
            ("/v1/embeddings", self.embeddings, schemas.EmbeddingsReply),
            ("/v1/search", self.search, schemas.SearchReply),
            *((path, self.rerank, schemas.RerankReply) for path in RERANK_PATHS),
        )
        for path, answer, reply in posts:
            codes = _documented(reply, 400, 401, 403, 404, 405, 408, 413, 415, 422, 429, 500, 504)
            app.post(path, responses=codes, response_class=Response, operation_id=path.strip("/").replace("/", "_"))(answer)
        app.get("/v1/models", responses=_documented(schemas.ModelsReply, 401, 403), response_class=Response)(self.models)
        app.get("/healthz", responses=_documented(schemas.Health, 403, 503), response_class=Response)(self.health)
        plain = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Prometheus' text format."}}
        app.get("/metrics", responses={**_documented(None, 401, 403), **plain}, response_class=Response)(self.numbers)
        return app

    async def embeddings(self, asked: schemas.EmbeddingsRequest) -> Response:
        """Unit vectors of texts and pictures."""
        self._check_model(asked.model, self.served.name)
        width = asked.dimensions or self.served.embedder.dim
        if width > self.served.embedder.dim:
            raise Refused(400, f"dimensions is {width}, but the vectors hold {self.served.embedder.dim} numbers", "dimensions")
        items, field = schemas.embedded(asked, self.limits)
        await self._look(items, field)
        done = await self._blaming(self._desk.encode(items), field)
        vectors = shortened(done.values, width)
        data = [
            {"object": "embedding", "index": n, "embedding": written}
            for n, written in enumerate(_written(vectors, asked.encoding_format))
        ]
        return _reply({"object": "list", "data": data, "model": self.served.name, "usage": _usage(done)})

    async def rerank(self, asked: schemas.RerankRequest) -> Response:
        """Documents in the order in which they answer a query."""
        if self.served.reranker is None:
            raise Refused(404, "this server has no reranker: start it with --rerank", code="not_found")
        if asked.model is not None:
            self._check_model(asked.model, self.served.reranker_name)
        query = schemas.things([asked.query], "query", self.limits)
        documents = schemas.things(asked.documents, "documents", self.limits)
        await self._look(query, "query")
        await self._look(documents, "documents")
        done = await self._blaming(self._desk.score([(query[0], document) for document in documents]), "documents")
        order = np.argsort(-done.values, kind="stable")[: asked.top_n].tolist()
        results: list[dict[str, Any]] = [{"index": n, "relevance_score": _sigmoid(float(done.values[n]))} for n in order]
        if asked.return_documents:
            for result in results:
                given = asked.documents[result["index"]]
                result["document"] = {"text": given} if isinstance(given, str) else given.model_dump(exclude_none=True)
        return _reply({"id": uuid.uuid4().hex, "model": self.served.reranker_name, "results": results, "usage": _usage(done)})

    async def search(self, asked: schemas.SearchRequest) -> Response:
        """What the index holds that is nearest to words, a picture, or both."""
        index = self._index
        if index is None:
            raise Refused(404, "this server has no index: start it with one", code="not_found")
        if asked.rerank and self.served.reranker is None:
            raise Refused(400, "this server has no reranker: start it with --rerank", "rerank")
        query = self._query(asked, index)
        await self._look([query], "image")
        rerank = Fused(self._queued, self.limits.rerank_depth) if asked.rerank else None

        def find() -> list[Any]:
            return index.search(query, asked.k, rerank, exclude_self=asked.exclude_self)

        hits = await self._blaming(to_thread.run_sync(find, limiter=self._threads), "query")
        rows = [
            {
                "rank": hit.rank,
                "id": hit.id,
                "score": float(hit.score),
                "text": hit.item.text,
                "images": [_shown(picture, self._root) for picture in hit.item.pictures],
            }
            for hit in hits
        ]
        return _reply({"model": self.served.name, "reranked": asked.rerank, "hits": rows})

    async def models(self) -> Response:
        """The models of this server."""
        served = self.served
        kinds = [(served.name, "embedder", self._queued.fingerprint)]
        if served.reranker is not None:
            kinds.append((served.reranker_name, "reranker", self._queued.reranked_by))
        about = {"object": "model", "created": self._began, "owned_by": "hardwon"}
        cards = [{"id": name, "kind": kind, "fingerprint": fingerprint, **about} for name, kind, fingerprint in kinds]
        return _reply({"object": "list", "data": cards})

    async def health(self) -> Response:
        """Whether the server can answer."""
        if not self._worker.healthy:
            raise Refused(503, "the models do not answer any more: start the server again", code="stuck")
        return _reply({"status": "ok"})

    async def numbers(self) -> Response:
        """Numbers for Prometheus."""
        return Response(self.metrics.text(), headers={"content-type": TYPE})

    def _check_model(self, asked: str, name: str) -> None:
        if asked != name:
            raise Refused(404, unknown("model", asked[:80], [name]), "model", "model_not_found")

    def _query(self, asked: schemas.SearchRequest, index: Index) -> Item:
        if asked.like is not None:
            if asked.text or asked.image or asked.instruction:
                raise Refused(400, "like is a whole query: leave out text, image and instruction", "like")
            if asked.like >= len(index):
                raise Refused(404, f"there is no item {asked.like}: ids go from 0 to {len(index) - 1}", "like", "not_found")
            return index.items[asked.like]
        if not (asked.text or asked.image):
            raise Refused(400, "give text, image, or both", "text")
        return schemas.thing(schemas.Thing(text=asked.text, image=asked.image, instruction=asked.instruction), "image")

    async def _look(self, items: Sequence[Item], field: str) -> None:
        """Refuse pictures that are damaged or too large, by their headers; in a thread, since that can mean decoding."""
        if not any(item.pictures for item in items):
            return

        def look() -> None:
            for n, item in enumerate(items):
                try:
                    for picture in item.pictures:
                        check_picture(picture, max_pixels=self.limits.pixels)
                except BadMedia as error:
                    raise Unusable(str(error), n) from error

        await self._blaming(to_thread.run_sync(look, limiter=self._threads), field)

    async def _blaming(self, work: Any, field: str) -> Any:
        try:
            return await work
        except Unusable as error:
            where = field if error.position is None or field in ("query", "image") else f"{field}[{error.position}]"
            raise Refused(422, f"{where}: {error}", where, "unusable_item") from error


def shortened(vectors: Float32[np.ndarray, "n d"], width: int) -> Float32[np.ndarray, "n _"]:
    """The first numbers of each vector, scaled to unit length again."""
    if width == vectors.shape[1]:
        return vectors
    left = vectors[:, :width]
    lengths = np.linalg.norm(left, axis=1, keepdims=True)
    return (left / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def _written(vectors: np.ndarray, form: str) -> list[Any]:
    if form == "float":
        return vectors.tolist()
    return [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in vectors]


def _sigmoid(odds: float) -> float:
    return 1 / (1 + math.exp(-odds)) if odds >= 0 else math.exp(odds) / (1 + math.exp(odds))


def _usage(done: Done) -> dict[str, int]:
    return {"prompt_tokens": done.tokens, "total_tokens": done.tokens}


def _root(index: Index | None) -> Path | None:
    """The folder of all pictures of an index."""
    folders = {p.parent for item in index.items for p in item.pictures if isinstance(p, Path)} if index else set()
    return Path(os.path.commonpath(folders)) if folders else None


def _shown(picture: Path | bytes, root: Path | None) -> str:
    return "" if isinstance(picture, bytes) or root is None else picture.relative_to(root).as_posix()


def _reply(value: Any) -> Response:
    return Response(to_json(value), media_type="application/json")


def _documented(reply: Any, *codes: int) -> dict[int | str, dict[str, Any]]:
    """Answers for the OpenAPI schema."""
    errors = {code: {"model": schemas.ErrorReply, "description": REASONS[code]} for code in codes}
    return {**errors, **({} if reply is None else {200: {"model": reply, "description": "The answer."}})}


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return Response(error.body, error.status, error.headers, "application/json")


async def _unusable(request: Request, error: Exception) -> Response:
    return await _refused(request, Refused(422, str(error), code="unusable_item"))


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = max(error.errors(), key=lambda each: len(each["loc"]))  # of several forms it is the one that fits furthest
    # Between the field and the position stand names of types, which say nothing to the client.
    field, *inner = [part for part in first["loc"] if part != "body"] or [""]
    where = str(field) + "".join(f"[{part}]" for part in inner if isinstance(part, int))
    said = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        said = f"there is no field {str(first['loc'][-1])[:60]!r}"
    return await _refused(request, Refused(400, f"{where[:80]}: {said}" if where else said, where[:80] or None, "invalid"))


async def _other(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = {404: "there is nothing at this address", 405: "this address takes another method"}
    message = said.get(error.status_code, str(error.detail))
    made = await _refused(request, Refused(error.status_code, message, code={404: "not_found"}.get(error.status_code)))
    made.headers.update(error.headers or {})
    return made


ANSWERS: dict[Any, Any] = {
    Refused: _refused,
    Unusable: _unusable,
    HardwonError: _unusable,
    RequestValidationError: _invalid,
    HTTPException: _other,
}
