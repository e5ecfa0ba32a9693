"""The API: embeddings as OpenAI's clients ask for them, reranking as Cohere's and Jina's do, search, and numbers."""

import asyncio
import base64
import logging
import math
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import numpy as np
from anyio import from_thread, to_thread
from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel

from hardwon.errors import BadMedia, DataError, unknown
from hardwon.items import Item
from hardwon.models import Embedder, ListwiseReranker
from hardwon.models.twins import twins
from hardwon.pictures import check_picture
from hardwon.search import Fused, StoredIndex
from hardwon.search.retrieve import shortened
from hardwon.serve import inputs, schemas
from hardwon.serve.batching import Done, Unusable, Work, Worker, lanes_on
from hardwon.serve.limits import Guard, Limits, Refused
from hardwon.serve.metrics import TYPE, Metrics
from hardwon.serve.page import Page, shown
from hardwon.serve.replies import ANSWERS, absent, as_json, documented, explained
from hardwon.serve.reranking import cut, cutting, queued, scored, scoring

log = logging.getLogger(__name__)
THREADS = 32  # searches at a time, which mostly wait for the worker
RERANK_PATHS = ("/v1/rerank", "/rerank")
GETS = ("/v1/models", "/healthz", "/metrics", "/openapi.json")


@dataclass(frozen=True)
class Served:
    """What is served.

    Attributes:
        embedder: the model.
        name: what clients call it.
        index: searched by `/v1/search` and shown by the page; None: there is none.
        rerank: how searches that ask for it use the reranker, which is that of `/v1/rerank` too; None: there is none.
        reranker_name: what clients call it.
        instructions: that the page offers for queries, the first of them chosen.
        inspection: makes the page of mined negatives; None: there is none.
    """

    embedder: Embedder
    name: str
    index: StoredIndex | None = None
    rerank: Fused | None = None
    reranker_name: str = ""
    instructions: tuple[str, ...] = ()
    inspection: Callable[[], str] | None = None


class _Route(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except Exception as error:
                return explained(error, request.scope["path"])

        return answer


class _Queued:
    """An index's encoder that waits for the worker: it is called from a thread of `to_thread`."""

    def __init__(self, desk: "_Desk", embedder: Embedder):
        self._desk, self.dim, self.fingerprint = desk, embedder.dim, embedder.fingerprint

    def encode(self, items: Sequence[Item], *, progress: str = "") -> np.ndarray:
        """As `Encoder.encode`."""
        return from_thread.run(self._desk.encode, items).values


class _Desk:
    """Hands what requests ask for to the worker."""

    def __init__(self, served: Served, worker: Worker, lanes: int):
        self._worker = worker
        self._encoding = Work.encoding(*twins(served.embedder, lanes))
        self._scoring = self._cutting = None
        if served.rerank is not None:
            models = twins(served.rerank.reranker, lanes)
            self._scoring, self._cutting = scoring(*models), cutting(*models)

    async def encode(self, items: Sequence[Item]) -> Done:
        return await asyncio.wrap_future(self._worker.submit(self._encoding, items))

    async def score(self, rows: Sequence[Any]) -> Done:
        return await self._reranking(self._scoring, rows)

    async def cut(self, rows: Sequence[Any]) -> Done:
        return await self._reranking(self._cutting, rows)

    async def _reranking(self, work: Work | None, rows: Sequence[Any]) -> Done:
        if work is None:
            raise Refused(404, "this server has no reranker: start it with --rerank", code="not_found")
        return await asyncio.wrap_future(self._worker.submit(work, rows))


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
        lanes = lanes_on(served.embedder.body.model.device.type)
        self._worker = Worker(limits.batch_tokens, self.metrics.computed, lanes)
        self._desk, self._began = _Desk(served, self._worker, lanes), int(time.time())
        self._queued = _Queued(self._desk, served.embedder)
        self._rerank = None if served.rerank is None else queued(served.rerank, self._desk.score)
        self._index = None if served.index is None else served.index.with_encoder(self._queued)
        self._threads = anyio.CapacityLimiter(THREADS)
        self.page = Page(served.index, self._about(), served.inspection)
        self._posts: dict[str, tuple[type[BaseModel], Callable[[Any], Coroutine[Any, Any, Response]], type[BaseModel]]] = {
            "/v1/embeddings": (schemas.EmbeddingsRequest, self.embeddings, schemas.EmbeddingsReply),
            "/v1/search": (schemas.SearchRequest, self.search, schemas.SearchReply),
            **dict.fromkeys(RERANK_PATHS, (schemas.RerankRequest, self.rerank, schemas.RerankReply)),
            "/v2/rerank": (schemas.RerankRequest, self.rerank_v2, schemas.RerankReply),
        }
        self.app = self._made()
        self.guard = Guard(self.app, self._post, frozenset(self._posts), limits, key, self._worker.pace, self.metrics.answered)
        self.page.mount(self.app, self.guard.cookie)
        self.metrics.watch(frozenset((*self._posts, *GETS)), pending=lambda: self.guard.pending, held=lambda: self.guard.held)

    def close(self) -> None:
        """Finish what has been accepted."""
        self._worker.close()
        self.page.close()

    def _about(self) -> dict[str, Any]:
        """What the page has to know."""
        served = self.served
        return {
            "name": served.name,
            "reranker": served.reranker_name if served.rerank is not None else "",
            "depth": 0 if served.rerank is None else served.rerank.depth,
            "pictures": "image" in served.embedder.body.modalities,
            "instructions": list(served.instructions),
            "body_bytes": self.limits.body_bytes,
        }

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
        for path, (_, answer, reply) in self._posts.items():  # for the schema: `_post` answers them
            codes = documented(reply, 400, 401, 403, 404, 405, 408, 413, 415, 422, 429, 500, 503, 504)
            app.post(path, responses=codes, response_class=Response, operation_id=path.strip("/").replace("/", "_"))(answer)
        app.get("/v1/models", responses=documented(schemas.ModelsReply, 401, 403), response_class=Response)(self.models)
        # FastAPI would add an answer of 422 for a parameter that it reads itself.
        app.get(
            "/v1/models/{model:path}",
            responses=documented(schemas.ModelCard, 401, 403, 404),
            response_class=Response,
            openapi_extra={"parameters": [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}]},
        )(self.model)
        app.get("/healthz", responses=documented(schemas.Health, 403, 503), response_class=Response)(self.health)
        plain = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Prometheus' text format."}}
        app.get("/metrics", responses={**documented(None, 401, 403), **plain}, response_class=Response)(self.numbers)
        return app

    async def _post(self, path: str, value: Any) -> Response:
        """Answer a request whose body has been read. FastAPI would do the same in five times the time."""
        form, answer, _ = self._posts[path]
        try:
            return await answer(form.model_validate(value))
        except Exception as error:
            return explained(error, path)

    async def embeddings(self, asked: schemas.EmbeddingsRequest) -> Response:
        """Unit vectors of texts and pictures."""
        self._check_model(asked.model, self.served.name)
        width = asked.dimensions or self.served.embedder.dim
        if width > self.served.embedder.dim:
            raise Refused(400, f"dimensions is {width}, but the vectors hold {self.served.embedder.dim} numbers", "dimensions")
        self._check_task(asked.task)
        items, field = inputs.embedded(asked, self.limits)
        await self._look(items, field)
        done = await self._blaming(self._desk.encode(items), field)
        vectors = shortened(done.values, width)
        data = [
            {"object": "embedding", "index": n, "embedding": written} for n, written in enumerate(_written(vectors, asked.form))
        ]
        return as_json({"object": "list", "data": data, "model": self.served.name, "usage": _usage(done)})

    async def rerank(self, asked: schemas.RerankRequest) -> Response:
        """Documents in the order in which they answer a query."""
        return as_json(await self._ranked(asked, "1"))

    async def rerank_v2(self, asked: schemas.RerankRequest) -> Response:
        """The same, said to be Cohere's second version."""
        return as_json(await self._ranked(asked, "2"))

    async def _ranked(self, asked: schemas.RerankRequest, version: str) -> dict[str, Any]:
        if self.served.rerank is None:
            raise Refused(404, "this server has no reranker: start it with --rerank", code="not_found")
        if asked.model is not None:
            self._check_model(asked.model, self.served.reranker_name)
        query = inputs.things([asked.query], "query", self.limits)
        documents = inputs.documents(asked, self.limits)
        model = self.served.rerank.reranker
        if isinstance(model, ListwiseReranker) and len(documents) > (most := self.limits.listed):
            said = f"documents has {len(documents):,} entries, and this reranker reads them together, {most:,} at most"
            raise Refused(400, f"{said}: send fewer, or start the server with a larger --limit listed", "documents", "too_many")
        await self._look(query, "query")
        await self._look(documents, "documents")
        if asked.max_tokens_per_doc is not None:
            documents = await cut(self._desk.cut, model, documents, asked.max_tokens_per_doc)
        done = await self._blaming(scored(self._desk.score, model, query[0], documents), "documents")
        order = np.argsort(-done.values, kind="stable")[: asked.top_n].tolist()
        results: list[dict[str, Any]] = [{"index": n, "relevance_score": _sigmoid(float(done.values[n]))} for n in order]
        if asked.return_documents:
            for result in results:
                given = asked.documents[result["index"]]
                result["document"] = {"text": given} if isinstance(given, str) else given.model_dump(exclude_unset=True)
        meta = {"api_version": {"version": version}, "tokens": {"input_tokens": done.tokens}}
        name, usage = self.served.reranker_name, _usage(done)
        return {"id": uuid.uuid4().hex, "model": name, "results": results, "usage": usage, "meta": meta}

    async def search(self, asked: schemas.SearchRequest) -> Response:
        """What the index holds that is nearest to words, a picture, or both."""
        index = self._index
        if index is None:
            raise Refused(404, "this server has no index: start it with one", code="not_found")
        if asked.rerank and self._rerank is None:
            raise Refused(400, "this server has no reranker: start it with --rerank", "rerank")
        query = await self._query(asked, index)
        liked = asked.like is not None
        await self._look([query], "like" if liked else "image")
        rerank = self._rerank if asked.rerank else None

        def find() -> dict[str, Any]:
            hits = index.search(query, asked.k, rerank, exclude_self=asked.exclude_self)
            rows = [{"rank": hit.rank, "score": float(hit.score), **shown(row)} for hit in hits if (row := hit.row)]
            return {"pairs": hits.pairs or 0, "hits": rows}

        found = await self._blaming(to_thread.run_sync(find, limiter=self._threads), "like" if liked else "query")
        return as_json({"model": self.served.name, "reranked": asked.rerank, **found})

    async def models(self) -> Response:
        """The models of this server."""
        return as_json({"object": "list", "data": self._cards()})

    async def model(self, request: Request) -> Response:
        """One of them."""
        model, cards = request.path_params["model"], {card["id"]: card for card in self._cards()}
        if model not in cards:
            raise Refused(404, unknown("model", model[:80], cards), "model", "model_not_found")
        return as_json(cards[model])

    def _cards(self) -> list[dict[str, Any]]:
        served = self.served
        kinds = [(served.name, "embedder", self._queued.fingerprint)]
        if self._rerank is not None:
            kinds.append((served.reranker_name, "reranker", self._rerank.reranker.fingerprint))
        about = {"object": "model", "created": self._began, "owned_by": "hardwon"}
        return [{"id": name, "kind": kind, "fingerprint": fingerprint, **about} for name, kind, fingerprint in kinds]

    async def health(self) -> Response:
        """Whether the server can answer."""
        if not self._worker.healthy:
            raise Refused(503, "the models do not answer any more: start the server again", code="stuck")
        return as_json({"status": "ok"})

    async def numbers(self) -> Response:
        """Numbers for Prometheus."""
        return Response(self.metrics.text(), headers={"content-type": TYPE})

    def _check_model(self, asked: str, name: str) -> None:
        if asked != name:
            raise Refused(404, unknown("model", asked[:80], [name]), "model", "model_not_found")

    def _check_task(self, task: str | None) -> None:
        """Refuse a task for which the model has a prompt: items are not given it."""
        if task is not None:
            body, last = self.served.embedder.body, task.rpartition(".")[2]
            names = {task, last, "document" if last == "passage" else last}
            given = ("", body.prompt(Item("a")))  # which is put before items anyway
            found = next((name for name, said in body.model.prompts.items() if said not in given and name in names), None)
            if found is not None:
                said = f"this model has a prompt {found!r} of its own, which is not put before items by a task"
                raise Refused(400, f"task: {said}: leave task out, and send the prompt as the instruction of each", "task")

    async def _query(self, asked: schemas.SearchRequest, index: StoredIndex) -> Item:
        if (like := asked.like) is not None:
            if asked.text or asked.image or asked.instruction:
                raise Refused(400, "like is a whole query: leave out text, image and instruction", "like")
            try:
                row = await to_thread.run_sync(lambda: index.row(like), limiter=self._threads)
            except DataError as error:
                raise Refused(404, absent(error), "like", "not_found") from None
            return row.item
        if not (asked.text or asked.image):
            raise Refused(400, "give text, image, or both", "text")
        return inputs.thing(schemas.Thing(text=asked.text, image=asked.image, instruction=asked.instruction), "image")

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
            if field == "like":  # the error names a file of this machine
                log.warning("an item of the index cannot be read", exc_info=error)
                said = "like: this item of the index cannot be read; the server's log says why"
                raise Refused(422, said, "like", "unusable_item") from None
            where = field if error.position is None or field in ("query", "image") else f"{field}[{error.position}]"
            raise Refused(422, f"{where}: {error}", where, "unusable_item") from error


def _written(vectors: np.ndarray, form: str) -> list[Any]:
    if form == "float":
        return vectors.tolist()
    return [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in vectors]


def _sigmoid(odds: float) -> float:
    return 1 / (1 + math.exp(-odds)) if odds >= 0 else math.exp(odds) / (1 + math.exp(odds))


def _usage(done: Done) -> dict[str, int]:
    return {"prompt_tokens": done.tokens, "total_tokens": done.tokens}
