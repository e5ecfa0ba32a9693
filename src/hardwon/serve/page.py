"""The page at `/`: type words, drop a picture, look at what comes, at the map of the index, and at mined negatives.

The page and its files hold nothing of the index, so they are open to who has no key; what they show is asked for with it. A
browser that has shown the key gets a cookie instead, which no script can read and no other site can send.
"""

import io
import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import anyio
from anyio import to_thread
from fastapi import FastAPI, Response
from PIL import Image

from hardwon.errors import BadMedia, DataError
from hardwon.items import Picture
from hardwon.pictures import open_picture
from hardwon.randomness import generator
from hardwon.search import Row, StoredIndex
from hardwon.serve.limits import COOKIE, PAGE, Refused
from hardwon.serve.plane import MOST, Plane
from hardwon.serve.replies import absent, as_json
from hardwon.serve.report import TEMPLATES

log = logging.getLogger(__name__)
KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
SIDE, KEPT = 256, 32_000_000  # pixels of a thumbnail, bytes of thumbnails in memory
AT_ONCE = 100  # rows of one request
REDRAWN_S = 15.0  # a map stays at least so long, however often the index changes
COLOURS = 10  # sources that have one of their own on the map
ENDPOINTS = (
    ("/v1/embeddings", "vectors of texts and pictures, as OpenAI's clients ask for them"),
    ("/v1/rerank", "documents in the order in which they answer a query, as Cohere's and Jina's do"),
    ("/v1/models", "what is served"),
    ("/openapi.json", "all of it"),
)
SAFE = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
}


def shown(row: Row) -> dict[str, Any]:
    """A row of an index, as answers hold it: of its pictures the names, never where they lie on this machine."""
    images = ["" if isinstance(picture, bytes) else picture.name for picture in row.item.pictures]
    told = {"id": row.id, "text": row.item.text, "images": images, "source": row.source, "place": row.place}
    return {**told, "content": row.content}


class Page:
    """Answers what the page asks for.

    Args:
        index: what is shown; None: nothing.
        about: what the page has to know beside it.
        inspection: makes the page of mined negatives; None: there is none.
    """

    def __init__(self, index: StoredIndex | None, about: Mapping[str, Any], inspection: Callable[[], str] | None):
        self._index, self._inspection, self._inspected = index, inspection, ""
        self._about = {**about, "negatives": inspection is not None, "endpoints": ENDPOINTS}
        self._thumbnails = Thumbnails()
        self._drawn: _Drawn | None = None
        # Apart from searches, which should not wait for pictures.
        self._threads, self._one = anyio.CapacityLimiter(2), anyio.Lock()

    def mount(self, app: FastAPI, cookie: str) -> None:
        """Add its addresses to an application.

        Args:
            app: the application.
            cookie: what a browser gets that has shown the key; "" without a key.
        """
        for path in PAGE:
            app.get(path, include_in_schema=False)(_file("search.html" if path == "/" else path.rpartition("/")[2]))

        async def key() -> Response:
            value = f"{COOKIE}={cookie}; Path=/; HttpOnly; SameSite=Strict"
            return Response(b"{}", media_type="application/json", headers={"set-cookie": value} if cookie else None)

        routes: dict[str, Callable[..., Any]] = {
            "/page/key": key,
            "/page/about": self.about,
            "/page/items": self.items,
            "/page/sample": self.sample,
            "/page/thumbnails/{row}": self.thumbnail,
            "/page/map": self.map,
            "/inspect": self.inspect,
        }
        for path, answer in routes.items():
            app.get(path, include_in_schema=False, response_class=Response)(answer)

    def close(self) -> None:
        """Stop what is being computed."""
        if self._drawn is not None:
            self._drawn.plane.close()

    async def about(self) -> Response:
        """What is served."""
        index = self._index
        held = 0 if index is None else await self._run(lambda: len(index))
        return as_json({**self._about, "items": held})

    async def items(self, rows: str) -> Response:
        """Rows of the index by their ids, with commas between."""
        ids = rows[: 65 * AT_ONCE].split(",")[:AT_ONCE]
        return as_json({"items": [shown(row) for row in await self._run(lambda: self._rows(ids))]})

    async def sample(self, k: int = 24, seed: int = 0) -> Response:
        """Some rows of the index, drawn at random."""
        rows = (await self._draw()).rows
        chosen = generator(seed, "page").sample(rows, max(1, min(k, AT_ONCE, len(rows))))
        return as_json({"items": [shown(row) for row in chosen]})

    async def thumbnail(self, row: str, of: str = "") -> Response:
        """The first picture of a row, small; `of` is the content of the row, so that another one has another address."""

        def made() -> tuple[bytes, str]:
            found = self._rows([row])[0]
            if found.picture is None:
                raise Refused(404, f"item {row[:40]!r} has no picture", code="not_found")
            return self._thumbnails(found.content, found.picture), found.content

        try:
            thumbnail, content = await self._run(made)
        except BadMedia as error:
            log.warning("an item of the index has no thumbnail: %s", error)
            said = "the picture of this item cannot be read; the server's log says why"
            raise Refused(422, said, code="unusable_item") from None
        kept = "private, max-age=86400" if of == content else "no-store"
        told = {"cache-control": kept, "cross-origin-resource-policy": "same-origin"}
        return Response(thumbnail, media_type="image/webp", headers=told)

    async def map(self) -> Response:
        """Where every item lies on the map, or that it is being computed."""
        drawn = await self._draw()
        try:
            points = await self._run(drawn.plane.points)
        except RuntimeError as error:
            raise Refused(500, str(error), code="internal_error") from None
        if points is None:
            return as_json({"state": "computing", "seconds": drawn.plane.seconds})
        return as_json({"state": "ready", "total": drawn.held, **_coloured(drawn.rows), **_columns(points)})

    async def inspect(self) -> Response:
        """The page of mined negatives, which brings its own policy."""
        make = self._inspection
        if make is None:
            raise Refused(404, "this server has no mined negatives: start it with --negatives", code="not_found")
        async with self._one:
            self._inspected = self._inspected or await self._run(make)
        told = {name: value for name, value in SAFE.items() if name != "content-security-policy"}
        return Response(self._inspected.encode("utf-8", "replace"), media_type="text/html", headers=told)

    async def _draw(self) -> "_Drawn":
        """What the map shows; drawn again when the index has changed, but not while it is being computed, nor all the time."""
        index = self._there()
        async with self._one:
            drawn = self._drawn
            if drawn is not None and not await self._run(lambda: drawn.outdated(index)):
                return drawn
            self.close()
            made = self._drawn = await self._run(lambda: _drawn(index))
            return made

    def _there(self) -> StoredIndex:
        if self._index is None:
            raise Refused(404, "this server has no index: start it with one", code="not_found")
        return self._index

    def _rows(self, ids: list[str]) -> list[Row]:
        try:
            return self._there().rows(ids)
        except DataError as error:
            raise Refused(404, absent(error), code="not_found") from None

    async def _run(self, work: Callable[[], Any]) -> Any:
        return await to_thread.run_sync(work, limiter=self._threads)


class Thumbnails:
    """Small pictures by the content of what they show; those asked for last are kept. May be called from several threads."""

    def __init__(self, most: int = KEPT):
        self._most, self._held, self._lock = most, 0, threading.Lock()
        self._kept: OrderedDict[str, bytes] = OrderedDict()

    def __call__(self, content: str, picture: Picture) -> bytes:
        """As WebP; errors as `open_picture`."""
        with self._lock:
            if content in self._kept:
                self._kept.move_to_end(content)
                return self._kept[content]
        image = open_picture(picture)
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        image.save(file, "WEBP", quality=82, method=4)
        made = file.getvalue()
        with self._lock:
            if content not in self._kept:  # another thread may have made it as well
                self._kept[content] = made
                self._held += len(made)
            while self._held > self._most and self._kept:
                self._held -= len(self._kept.popitem(last=False)[1])
        return made


@dataclass(frozen=True)
class _Drawn:
    held: int  # rows of the index when it was drawn from
    changes: int  # of the index by then
    rows: list[Row]
    plane: Plane
    at: float = field(default_factory=time.monotonic)

    def outdated(self, index: StoredIndex) -> bool:
        if self.plane.computing or time.monotonic() - self.at < REDRAWN_S:
            return False
        return self.held != len(index) or self.changes != index.changes


def _drawn(index: StoredIndex) -> _Drawn:
    held, changes = len(index), index.changes
    rows, vectors = index.sample(MOST)
    return _Drawn(held, changes, rows, Plane([row.id for row in rows], vectors, index.folder))


def _coloured(rows: list[Row]) -> dict[str, Any]:
    """Ids and the number of each one's source; sources beyond the number of colours become one."""
    counts = Counter(row.source for row in rows)
    most = COLOURS if len(counts) <= COLOURS else COLOURS - 1
    named = [(name or "no source", count) for name, count in counts.most_common(most)]
    number = {name: n for n, (name, _) in enumerate(counts.most_common(most))}
    if rest := len(rows) - sum(count for _, count in named):
        named.append((f"{len(counts) - most} others", rest))
    kinds = [number.get(row.source, most) for row in rows]
    pictured = [int(row.picture is not None) for row in rows]
    named_by = {"rows": [row.id for row in rows], "contents": [row.content for row in rows]}
    return {**named_by, "kinds": kinds, "pictured": pictured, "sources": named}


def _columns(points: Any) -> dict[str, list[float]]:
    return {name: [round(value, 4) for value in points[:, n].tolist()] for n, name in enumerate("xy")}


def _file(name: str) -> Callable[[], Any]:
    content = (TEMPLATES / name).read_bytes()
    # A browser asks again after a restart: these files change with the version, and they are small.
    told = {**SAFE, "cache-control": "no-cache"}

    async def answer() -> Response:
        return Response(content, media_type=KINDS[name.rpartition(".")[2]], headers=told)

    return answer
