"""What a request may be: how large, how deep, from whom, for how long; and `Guard`, which holds every request to it.

A body is refused while it is being read, so what is held of it never exceeds the limit. What is refused is answered in the
form that OpenAI's clients know.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import math
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import anyio
from pydantic_core import from_json, to_json
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hardwon.errors import RecipeError, unknown

BUSY_S = 0.1  # before a client hears that there is no room
DEPTH = 16  # of lists and objects in each other
WIDTH = 32  # fields of an object
STRUCTURES = 100_000  # lists and objects of a body
_STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
PAGE = ("/", "/page/report.css", "/page/search.css", "/page/search.js", "/page/cards.js", "/page/map.js")
OPEN = frozenset(("/healthz", *PAGE))  # answered without a key: the page itself holds nothing but its own words
COOKIE = "hardwon_page"
NAMES = ("localhost", "127.0.0.1", "[::1]")  # of this machine, in a request to it


@dataclass(frozen=True)
class Limits:
    """What is answered.

    Attributes:
        body_bytes: of one request.
        held_bytes: of the bodies of all requests together.
        inputs: texts, pictures, documents in one request.
        pixels: of a picture, width x height.
        waiting: requests that wait for an answer at a time.
        wait_s: seconds that a new request is expected to wait; one that would wait longer is sent away.
        read_s: seconds in which a body has to arrive.
        timeout_s: seconds in which a request has to be answered.
        batch_tokens: tokens, about, of the requests that are computed together.
        listed: documents that a reranker of lists is given in one request: what it has begun is not put off for others.
    """

    body_bytes: int = 8_000_000
    held_bytes: int = 256_000_000
    inputs: int = 2048
    pixels: int = 16_000_000
    waiting: int = 512
    wait_s: float = 10.0
    read_s: float = 10.0
    timeout_s: float = 60.0
    batch_tokens: int = 8192
    listed: int = 100

    def __post_init__(self) -> None:
        for each in fields(self):
            if not getattr(self, each.name) > 0:
                raise RecipeError(f"{each.name} must be above 0, got {getattr(self, each.name)}")

    def changed(self, settings: Mapping[str, str]) -> "Limits":
        """The same limits with some of them set, from text.

        Raises:
            RecipeError: an unknown limit, or a value that is no number above 0.
        """
        kinds: dict[str, Callable[[str], float]] = {each.name: type(each.default) for each in fields(self)}  # type: ignore[misc]
        made: dict[str, Any] = {}
        for name, value in settings.items():
            if name == "rerank_depth":
                raise RecipeError("rerank_depth is no limit: --depth or --fusion says what the reranker reads of a search")
            if name not in kinds:
                raise RecipeError(unknown("limit", name, kinds))
            try:
                made[name] = kinds[name](value)
            except ValueError:
                raise RecipeError(f"{name} must be a number, such as {getattr(self, name):g}, got {value!r}") from None
        return replace(self, **made)


class Refused(Exception):
    """A request that is not answered as it hoped.

    Attributes:
        status: of HTTP.
        message: what is wrong and what to do.
        param: which part of the request.
        code: a word for programs.
        headers: more headers of the answer.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None, **headers: str):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    @property
    def body(self) -> bytes:
        """The error as OpenAI writes it."""
        kinds = {401: "authentication_error", 408: "timeout_error", 429: "rate_limit_error", 504: "timeout_error"}
        kind = kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return to_json({"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}})


def parsed(body: bytes) -> Any:
    """A body as JSON, if it is neither deep nor wide nor made of too many parts.

    Raises:
        Refused: it is, or it is no JSON; with status 400.
    """
    if body.count(b"[") + body.count(b"{") > STRUCTURES:  # an empty list takes two bytes here and sixty once it is read
        bare = _STRINGS.sub(b"", body)
        if bare.count(b"[") + bare.count(b"{") > STRUCTURES:
            raise Refused(400, f"the body holds more than {STRUCTURES:,} lists and objects", code="too_complex")
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise Refused(400, f"the body is not JSON: {error}", code="invalid_json") from None
    layer, depth = [value], 0
    while layer := [part for part in layer if isinstance(part, (dict, list))]:
        depth += 1
        if depth > DEPTH:
            raise Refused(400, f"the body nests more than {DEPTH} lists and objects", code="too_complex")
        if any(len(each) > WIDTH for each in layer if isinstance(each, dict)):
            raise Refused(400, f"an object of the body has more than {WIDTH} fields", code="too_complex")
        layer = [part for each in layer for part in (each.values() if isinstance(each, dict) else each)]
    return value


def is_loopback(host: str) -> bool:
    """Whether a server at this address is reached from its own machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _same(given: bytes, key: bytes) -> bool:
    """Compares digests: that takes the same time whatever was given, however long it is."""
    return hmac.compare_digest(hashlib.sha256(given).digest(), hashlib.sha256(key).digest())


def _cookies(header: bytes) -> list[bytes]:
    """Values of our cookie."""
    pairs = (part.strip().partition(b"=") for part in header.split(b";")[:50])
    return [value for name, _, value in pairs if name == COOKIE.encode()]


@dataclass
class Guard:
    """Wraps an application: who may ask, how much, and for how long.

    Attributes:
        app: answers what is let through, but for what is posted to `paths`.
        post: answers that, given the path and the body as JSON; it raises nothing.
        paths: that are posted to.
        limits: what that is.
        key: that a request has to bring; "" for none, then only requests that name this machine are answered, so that no page
            in a browser here can ask under another name.
        pace: seconds that a request takes, as far as is known.
        noted: called with path, status (499: the client was gone before) and seconds of every request.
        open: paths that need no key.
    """

    app: ASGIApp
    post: Callable[[str, Any], Awaitable[ASGIApp]]
    paths: frozenset[str]
    limits: Limits
    key: str
    pace: Callable[[], float]
    noted: Callable[[str, int, float], object]
    open: frozenset[str] = OPEN
    pending: int = field(default=0, init=False)
    held: int = field(default=0, init=False)

    @property
    def cookie(self) -> str:
        """What a browser brings instead of the key once it has shown that it has it; "" without a key."""
        return hmac.digest(self.key.encode(), COOKIE.encode(), "sha256").hex() if self.key else ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, answer = time.monotonic(), _Answer(send)
        try:
            await self._answer(scope, receive, answer)
        except Refused as error:
            if error.status == 429:  # clients that ask again at once would take the time in which others are answered
                await asyncio.sleep(BUSY_S)
            await answer.refuse(error)
        finally:
            self.noted(scope["path"], answer.status or 499, time.monotonic() - start)

    async def _answer(self, scope: Scope, receive: Receive, answer: "_Answer") -> None:
        headers = {name.decode("latin-1"): value for name, value in scope["headers"]}
        if scope["method"] != "POST" or scope["path"] not in self.paths:
            self._admit(scope, headers)
            await self.app(scope, receive, answer)
            return
        body = _Body(self, receive)
        try:
            self._admit(scope, headers)
            self._find_room()
            self.pending += 1
            try:
                content = await body.read(headers)
                await self._work(scope, receive, answer, parsed(content))
            finally:
                self.pending -= 1
        except Refused:
            await body.drain()  # a client that is still sending would see a broken connection instead of the answer
            raise
        finally:
            self.held -= body.size

    def _admit(self, scope: Scope, headers: Mapping[str, bytes]) -> None:
        if not self.key:
            host = headers.get("host", b"").decode("latin-1").lower()
            name = host.rpartition(":")[0] if re.search(r":\d*$", host) else host
            if name not in NAMES:
                raise Refused(403, "without a key only requests to localhost are answered: see --api-key-env", code="host")
        elif scope["path"] not in self.open:
            kind, _, given = headers.get("authorization", b"").partition(b" ")
            known = kind.lower() == b"bearer" and _same(given.strip(), self.key.encode())
            if not known and not any(_same(each, self.cookie.encode()) for each in _cookies(headers.get("cookie", b""))):
                raise Refused(
                    401,
                    "this server needs its key: send it as Authorization: Bearer KEY",
                    code="invalid_api_key",
                    WWW_Authenticate="Bearer",
                )

    def _find_room(self) -> None:
        expected = self.pending * self.pace()
        if self.pending >= self.limits.waiting or expected > self.limits.wait_s:
            raise self.full(expected)

    def full(self, expected: float) -> Refused:
        """The answer to one too many, and when it may be worth trying again."""
        wait = str(min(max(1, math.ceil(expected / 2)), 60))
        return Refused(429, f"the server is busy: try again in {wait} s", code="overloaded", Retry_After=wait)

    async def _work(self, scope: Scope, receive: Receive, answer: "_Answer", value: Any) -> None:
        """Answer what is posted, unless the client goes or time is up."""
        gone = False

        async def watch() -> None:
            nonlocal gone
            while (await receive())["type"] != "http.disconnect":
                pass
            gone = True
            clock.cancel()

        watcher: asyncio.Task[None] | None = None
        try:
            with anyio.move_on_after(self.limits.timeout_s) as clock:
                watcher = asyncio.create_task(watch())
                made = await self.post(scope["path"], value)
                await made(scope, receive, answer)
        finally:
            if watcher is not None:
                watcher.cancel()
        if clock.cancelled_caught and not gone and not answer.status:
            raise Refused(504, f"no answer within {self.limits.timeout_s:g} s: send less at a time", code="timeout")


class _Answer:
    """Sends, and remembers what status was sent."""

    def __init__(self, send: Send):
        self._send, self.status = send, 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), (b"x-content-type-options", b"nosniff")]
        await self._send(message)

    async def refuse(self, error: Refused) -> None:
        """Send an error."""
        if self.status:  # an answer has begun
            return
        headers = {"content-type": "application/json", "content-length": str(len(error.body)), **error.headers}
        pairs = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await self({"type": "http.response.start", "status": error.status, "headers": pairs})
        await self({"type": "http.response.body", "body": error.body})


class _Body:
    """The body of a request as it arrives."""

    def __init__(self, guard: Guard, receive: Receive):
        self._guard, self._receive = guard, receive
        self.size, self._ended = 0, False

    async def read(self, headers: Mapping[str, bytes]) -> bytes:
        """All of it.

        Raises:
            Refused: too large (413), in a form that is not read (415), too slow (408), or too much together with others (429).
        """
        most = self._guard.limits.body_bytes
        stated = headers.get("content-length", b"0")
        if headers.get("content-encoding", b"identity").lower() != b"identity":
            raise Refused(415, "compressed bodies are not read: send it without Content-Encoding", code="content_encoding")
        if headers.get("content-type", b"").partition(b";")[0].strip().lower() != b"application/json":
            raise Refused(415, "the body must be JSON: send it with Content-Type: application/json", code="content_type")
        if not stated.isdigit() or int(stated[:20]) > most:
            raise self._too_large(most)
        kept: list[bytes] = []
        with anyio.move_on_after(self._guard.limits.read_s) as clock:
            while not self._ended:
                part = await self._next()
                kept.append(part)
                self.size += len(part)
                self._guard.held += len(part)
                if self.size > most:
                    raise self._too_large(most)
                if self._guard.held > self._guard.limits.held_bytes:
                    raise self._guard.full(self._guard.limits.wait_s)
        if clock.cancelled_caught:
            self._ended = True  # whoever was too slow is not waited for again
            raise Refused(408, f"the body did not arrive within {self._guard.limits.read_s:g} s", code="timeout")
        return b"".join(kept)

    async def drain(self) -> None:
        """Take what is still coming, and keep nothing of it."""
        with anyio.move_on_after(self._guard.limits.read_s):
            while not self._ended:
                await self._next()

    async def _next(self) -> bytes:
        message = await self._receive()
        self._ended = not message.get("more_body", False)
        return message.get("body", b"")

    def _too_large(self, most: int) -> Refused:
        return Refused(413, f"the body has more than the {most:,} bytes allowed: send less at a time", code="too_large")
