"""Calls to a server that speaks the OpenAI protocol: what fails is tried again, what cannot succeed ends at once.

Each call has a connection of its own. An answer that a confused server or proxy sends twice can then never be taken for
the answer to the next call; the price is some tenths of a millisecond on one machine, a handshake across a network.
"""

import asyncio
import json
import os
import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpx2

from hardwon.errors import JudgeError, unknown
from hardwon.models.question import Question

LONGEST_WAIT_S = 30.0  # between two tries
MAX_REPLY = 4_000_000  # bytes; the list of models of a large provider has some hundred thousand
AGAIN = {408, 425, 429}  # and 5xx
NEVER = {401, 402, 403, 404, 405}  # no other pair would fare better
FIXED = {"model", "messages", "max_tokens", "temperature", "logprobs", "top_logprobs"}  # of a request


@dataclass(frozen=True)
class RemoteSettings:
    """How a judge behind a server is asked.

    Attributes:
        question: what it is asked.
        concurrency: calls under way at once.
        timeout_s: time for one call, from the first byte out to the last byte in.
        tries: calls after which a pair is given up, if the server answered others meanwhile. Those that did not reach it
            are not counted: they say nothing of the pair.
        patience_s: how long the server may answer nothing at all before that is an error.
        wait_s: before the second try; doubled with every further one up to half a minute, shortened by chance by up to a
            half. A longer time that the server asks for (Retry-After) is kept by all calls.
        budget: calls allowed in the life of the judge, tries included; None: any number.
        top_logprobs: first tokens that the server lists; some allow fewer than 20.
        least: probability that Yes and No must have together; an answer below is none.
        max_unusable: share of the pairs of one call of `judge` without a usable answer above which it stops. Mining asks for
            some 256 pairs at a time, and stops by itself above `Mining.max_unusable` of all pairs.
        max_pixels: width x height that a picture is scaled down to before it is sent; None sends it in its size.
        key_variable: environment variable that holds the key of the server; "" sends none. The key itself is never kept
            in settings, shown or stored.
        fields: more fields of each request, such as {"chat_template_kwargs": {"enable_thinking": False}}.
    """

    question: Question = field(default_factory=Question)
    concurrency: int = 16
    timeout_s: float = 120.0
    tries: int = 10
    patience_s: float = 600.0
    wait_s: float = 0.5
    budget: int | None = None
    top_logprobs: int = 20
    least: float = 0.01
    max_unusable: float = 0.02
    max_pixels: int | None = None
    key_variable: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("concurrency", "tries", "top_logprobs"):
            if getattr(self, name) < 1:
                raise JudgeError(f"{name} must be 1 or more, got {getattr(self, name)}")
        for name in ("timeout_s", "patience_s", "wait_s"):
            if getattr(self, name) <= 0:
                raise JudgeError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("least", "max_unusable"):
            if not 0 <= getattr(self, name) <= 1:
                raise JudgeError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        for name in ("budget", "max_pixels"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise JudgeError(f"{name} must be 1 or more, or None, got {getattr(self, name)}")
        if fixed := sorted(FIXED & set(self.fields)):
            raise JudgeError(f"fields cannot hold {', '.join(fixed)}: they are set by hardwon")
        if self.question.yes.strip().casefold() == self.question.no.strip().casefold():
            raise JudgeError(f"answers must differ in more than case, got {self.question.yes!r} and {self.question.no!r}")


@dataclass
class Usage:
    """What a judge behind a server has cost so far.

    Attributes:
        pairs: that were asked about, usable or not.
        unusable: of these, without a usable answer.
        bounded: of these, where Yes or No was not listed and a bound took its place; see `hardwon.models.replies.read`.
        calls: that reached the server, or may have.
        retries: tries after a failed one, whether or not they reached the server.
        prompt_tokens: as the server counts them; 0 if it does not say.
        seconds: that judging took.
    """

    pairs: int = 0
    unusable: int = 0
    bounded: int = 0
    calls: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    seconds: float = 0.0


class Failed(Exception):
    """A call, or all tries of one, without an answer.

    Attributes:
        again: whether another try may fare better.
        wait_s: that the server asked to wait.
        sent: False if the server was never reached.
    """

    def __init__(self, reason: str, *, again: bool = False, wait_s: float = 0.0, sent: bool = True):
        super().__init__(reason)
        self.again, self.wait_s, self.sent = again, wait_s, sent


class Server:
    """A server that speaks the OpenAI protocol.

    Args:
        url: up to and with the version, such as http://localhost:8000/v1.
        settings: of the judge.
        usage: where calls and retries are counted.

    Raises:
        JudgeError: a url that is none, or a key that is not there.
    """

    def __init__(self, url: str, settings: RemoteSettings, usage: Usage):
        try:
            parts = urlsplit(url)
            _ = parts.port  # is checked when it is asked for
        except ValueError as error:
            raise JudgeError(f"{url!r} is no url ({error}): give one such as 'http://localhost:8000/v1'") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise JudgeError(f"{url!r} is no url of a server: give one such as 'http://localhost:8000/v1'")
        if parts.username or parts.password or parts.query:
            raise JudgeError(
                f"the url of {parts.hostname} holds a password or a query: name a variable with the key (key_variable)"
            )
        self.url, self.settings, self.usage = url.rstrip("/"), settings, usage
        self._key = _key(settings.key_variable)
        self._heard = self._not_before = 0.0  # by time.monotonic(): the last answer; the time that the server asked to wait for
        self._chance = random.Random()

    def client(self) -> httpx2.AsyncClient:
        """A client for the calls of one event loop."""
        self._heard = time.monotonic()
        return httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else None,
            timeout=None,  # `call` has a limit for the whole
            limits=httpx2.Limits(max_connections=self.settings.concurrency, max_keepalive_connections=0),
        )

    async def served(self, model: str) -> str:
        """The name of the model as the server reports it; `model` must be among those served, or "" if there is but one.

        Raises:
            JudgeError: the server cannot be reached, refuses, or serves no such model.
        """
        async with self.client() as client:
            try:
                reply = await self.ask(client, "/models", None, patient=False)
            except Failed as failed:
                raise JudgeError(f"{self.url}/models: {failed}") from None
        rows = reply.get("data")
        names = [row.get("id") for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
        names = [name for name in names if isinstance(name, str)]
        if not names:
            raise JudgeError(
                f"{self.url}/models lists no model: is this a server of the OpenAI protocol, and its url complete?"
            )
        if not model and len(names) > 1:
            raise JudgeError(f"{self.url} serves {len(names)} models, say which: {', '.join(sorted(names))}")
        if model and model not in names:
            raise JudgeError(f"{self.url}: {unknown('model', model, names)}")
        return model or names[0]

    async def ask(
        self,
        client: httpx2.AsyncClient,
        path: str,
        body: bytes | None,
        *,
        patient: bool = True,
        tell: Callable[[str], None] = lambda _: None,
    ) -> dict[str, Any]:
        """The server's reply; failures that may pass are tried again.

        Args:
            client: see `client`.
            path: after the url.
            body: JSON to post; None gets.
            patient: False ends at once if nobody listens: at the very start, nobody ever did.
            tell: told why there is a wait.

        Raises:
            Failed: not to be had for this body.
            JudgeError: not to be had for any.
        """
        began, failures, reached = time.monotonic(), 0, 0
        while True:
            await self._asked_to_wait()
            try:
                return await self.call(client, path, body)
            except Failed as failed:
                reason = str(failed)
                if not failed.sent and not patient:
                    raise JudgeError(
                        f"nothing answers at {self.url} ({reason}): start the server (`vllm serve MODEL`, say), or mend the url"
                    ) from None
                if not failed.again:
                    raise
                failures, reached = failures + 1, reached + failed.sent
                if reached >= self.settings.tries and self._heard > began:
                    raise Failed(f"{reason} ({failures} tries)") from None
                wait_s = self._wait(failures, failed.wait_s)
            if time.monotonic() + wait_s > self._heard + self.settings.patience_s:
                raise JudgeError(
                    f"{self.url} has given no usable answer for {time.monotonic() - self._heard:.0f} s and the next try would "
                    f"be in {wait_s:.0f} s, beyond patience_s={self.settings.patience_s:g}. Last failure: {reason}. Mend the "
                    "server and run again: what was judged before is not judged again"
                )
            tell(f"try {failures + 1} in {wait_s:.1f} s: {reason}")
            self.usage.retries += 1
            await asyncio.sleep(wait_s)

    async def call(self, client: httpx2.AsyncClient, path: str, body: bytes | None) -> dict[str, Any]:
        """One try. Raises Failed or JudgeError."""
        if body is not None:
            self._spend()
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                headers = {} if body is None else {"Content-Type": "application/json"}
                method = "GET" if body is None else "POST"
                async with client.stream(method, self.url + path, content=body, headers=headers) as reply:
                    text = await _whole(reply)
        except TimeoutError:
            raise Failed(f"no whole answer within {self.settings.timeout_s:g} s", again=True) from None
        except (httpx2.ConnectError, httpx2.ProxyError) as error:
            self.usage.calls -= body is not None
            raise Failed(self._shown(str(error) or "no connection"), again=True, sent=False) from None
        except httpx2.HTTPError as error:
            raise Failed(f"the connection broke off ({self._shown(str(error)) or type(error).__name__})", again=True) from None
        if not reply.is_success:
            raise self._refused(path, reply, text)
        made = self._read(text)
        self._heard = time.monotonic()
        return made

    def _spend(self) -> None:
        if self.settings.budget is not None and self.usage.calls >= self.settings.budget:
            raise JudgeError(
                f"the budget of {self.settings.budget} calls is used up: {self.usage.pairs} pairs were judged, with "
                f"{self.usage.retries} tries after a failure. Raise RemoteSettings.budget, or ask about fewer pairs"
            )
        self.usage.calls += 1

    def _refused(self, path: str, reply: httpx2.Response, text: bytes) -> Exception:
        """What a status other than success means."""
        said = f"HTTP {reply.status_code}: {self._shown(text) or reply.reason_phrase}"
        if reply.status_code in AGAIN or reply.status_code >= 500:
            wait_s = _retry_after(reply.headers.get("Retry-After", ""))
            if wait_s:
                self._not_before = max(self._not_before, time.monotonic() + wait_s)
            return Failed(said, again=True, wait_s=wait_s)
        if reply.is_redirect:
            return JudgeError(f"{self.url}{path} has moved to {self._shown(reply.headers.get('Location', '?'))}: give that url")
        if reply.status_code in (404, 405):
            return JudgeError(f"{self.url}{path} is not there ({said}): should the url end in /v1?")
        if reply.status_code in NEVER:
            name = self.settings.key_variable
            remedy = (
                f"is the key in {name} right?" if name else "does it want a key? Name the variable that holds it (key_variable)"
            )
            return JudgeError(f"{self.url} refuses ({said}): {remedy}")
        return Failed(said)

    def _read(self, text: bytes) -> dict[str, Any]:
        try:
            made = json.loads(text)
        except (ValueError, RecursionError):
            what = "a web page" if text.lstrip()[:1] == b"<" else "nothing" if not text.strip() else "something that is no JSON"
            raise Failed(f"the server answered with {what}: {self._shown(text)}", again=True) from None
        if not isinstance(made, dict):
            raise Failed(f"the server answered with no JSON object: {self._shown(text)}", again=True)
        if made.get("error"):
            raise Failed(f"the server answered with an error: {self._shown(text)}", again=True)
        return made

    def _shown(self, text: str | bytes) -> str:
        """The beginning of what a server said, on one line and without the key."""
        said = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        if self._key:
            said = said.replace(self._key, "(key)")
        said = re.sub(r"[^\x20-\x7e\xa1-\uffff]+|\s+", " ", said).strip()
        return said if len(said) <= 200 else f"{said[:200]} ..."

    def _wait(self, failures: int, asked_s: float) -> float:
        longest = min(LONGEST_WAIT_S, self.settings.wait_s * 2.0 ** min(failures - 1, 30))
        return max(asked_s, longest * self._chance.uniform(0.5, 1.0))

    async def _asked_to_wait(self) -> None:
        """Nobody calls before the time that the server asked to wait for."""
        while (left := self._not_before - time.monotonic()) > 0:
            await asyncio.sleep(left)


def _key(variable: str) -> str:
    if not variable:
        return ""
    if not os.environ.get(variable):
        raise JudgeError(f"the environment variable {variable} (key_variable) is not set: put the server's key there")
    return os.environ[variable]


async def _whole(reply: httpx2.Response) -> bytes:
    made = bytearray()
    async for chunk in reply.aiter_bytes():
        made += chunk
        if len(made) > MAX_REPLY:
            raise Failed(f"the server sent more than {MAX_REPLY:,} bytes")
    return bytes(made)


def _retry_after(value: str) -> float:
    """Seconds that a server asks to wait: a number, or a date; 0 if it does not say."""
    try:
        return max(float(value), 0.0) if float(value) < 1e9 else 0.0
    except ValueError:
        pass
    try:
        return max(parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except ValueError:
        return 0.0
