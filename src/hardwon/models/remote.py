"""`RemoteJudge`: Yes or No from any server that speaks the OpenAI protocol and gives log-probabilities."""

import asyncio
import base64
import functools
import json
import math
import re
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import httpx2
import numpy as np

from hardwon.artifacts import fingerprint
from hardwon.errors import BadMedia, JudgeError
from hardwon.items import Picture, picture_key
from hardwon.models.calls import Failed, RemoteSettings, Server, Usage
from hardwon.models.question import Question, Shown, messages, parts
from hardwon.models.replies import Answer, read
from hardwon.models.scorer import Judgements, Pair
from hardwon.pictures import portable
from hardwon.progress import bar

AT_LEAST = 50  # pairs that the share of unusable answers is taken of: one of three is no sign of a bad judge
EXAMPLES = 5
# What chat templates and tokenizers are known to take for something else than text; a server does not say what it takes.
SPECIAL = re.compile(r"<[|\uff5c][^<>\s]{1,64}[|\uff5c]>|</?[A-Za-z_][A-Za-z0-9_]{0,31}>|\[/?[A-Z_]{2,32}\]")

Made = TypeVar("Made")


class RemoteJudge:
    """A judge behind a server: vLLM, SGLang, llama.cpp's server, or a provider; anything with chat completions and `logprobs`.

    Each pair is one request for one token at temperature 0, of which the log-probabilities are read. They stand for the
    logits: their difference is that of the logits. A reply that cannot be read makes NaN and a reason, never a number.
    Pictures travel in the request; no address in an item is ever fetched, here or, as far as we can tell it, there.

    Attributes:
        model: name of the model as the server reports it.
        settings: see `RemoteSettings`.
        usage: what has been spent so far.
    """

    def __init__(self, url: str, model: str = "", *, settings: RemoteSettings | None = None):
        """Reach the server and ask what it serves.

        Args:
            url: up to and with the version, such as "http://localhost:8000/v1".
            model: one of those that the server lists; may be left out if that is one.
            settings: see `RemoteSettings`.

        Raises:
            JudgeError: nobody answers there, the model is not served, or the key is missing or refused.
        """
        self.settings = settings or RemoteSettings()
        self.usage = Usage()
        self._server = Server(url, self.settings, self.usage)
        self.model = _run(self._server.served(model))

    @property
    def fingerprint(self) -> str:
        """Identity of model and question. Where the server stands plays no part, nor how often it is asked at once."""
        settings = self.settings
        asked = [settings.question.fingerprint, settings.top_logprobs, settings.least, settings.max_pixels, settings.fields]
        return fingerprint(["remote judge 1", self.model, *asked])

    @property
    def name(self) -> str:
        """What people call it: the model's name."""
        return self.model

    @property
    def question(self) -> Question:
        """What is asked."""
        return self.settings.question

    @property
    def costs(self) -> dict[str, int]:
        """What a bill is made of, by name; from `usage`."""
        return {"calls": self.usage.calls, "prompt tokens": self.usage.prompt_tokens}

    def judge(self, pairs: Sequence[Pair], *, progress: str = "") -> Judgements:
        """Judgements of (query, candidate) pairs, in their order. Identical pairs are asked about once.

        Pairs of one query are asked about one after the other, and the first of them ahead of the rest, so that a server
        which keeps the beginnings of prompts has read the query when the others come.

        Raises:
            JudgeError: the server is gone for longer than `patience_s`, refuses, or too many answers are unusable
                (`max_unusable`); or the budget of calls is used up.
            BadMedia: a picture that is not there.
        """
        place: dict[tuple[str, str], int] = {}
        keys = [(query.key, item.key) for query, item in pairs]
        rows = [place.setdefault(key, len(place)) for key in keys]
        distinct = list(dict(zip(keys, pairs, strict=True)).values())
        started = time.monotonic()
        try:
            with bar(progress, len(distinct), "pairs", shown=bool(progress)) as advance:
                answers = _run(self._all(distinct, warm_first([query for query, _ in place]), advance))
        finally:
            self.usage.seconds += time.monotonic() - started
        yes = np.array([answers[row].yes for row in rows], dtype=np.float32)
        no = np.array([answers[row].no for row in rows], dtype=np.float32)
        return Judgements(yes, no, {n: answers[row].problem for n, row in enumerate(rows) if answers[row].problem})

    async def _all(self, pairs: Sequence[Pair], order: Sequence[int], advance: Callable[..., None]) -> dict[int, Answer]:
        made: dict[int, Answer] = {}
        problems: list[str] = []
        waiting = iter(order)

        async def work(client: httpx2.AsyncClient) -> None:
            for n in waiting:  # all workers take from the same
                made[n] = answer = await self._one(client, pairs[n], lambda why: advance(0, note=why))
                self._count(answer)
                if answer.problem:
                    problems.append(f"{pairs[n][0].label} and {pairs[n][1].label}: {answer.problem}")
                    self._believe(problems, len(pairs))
                advance()

        async with self._server.client() as client:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self.settings.concurrency, len(pairs))):
                        group.create_task(work(client))
            except BaseExceptionGroup as several:
                raise several.exceptions[0] from None
        return made

    async def _one(self, client: httpx2.AsyncClient, pair: Pair, tell: Callable[[str], None]) -> Answer:
        try:
            body = await asyncio.to_thread(self.request, pair)
            reply = await self._server.ask(client, "/chat/completions", body, tell=tell)
        except (Failed, BadMedia) as failed:
            return Answer(problem=str(failed))
        used = reply.get("usage")
        tokens = used.get("prompt_tokens") if isinstance(used, dict) else None
        self.usage.prompt_tokens += tokens if isinstance(tokens, int) else 0
        question = self.settings.question
        return read(reply, (question.yes, question.no), self.settings.least)

    def request(self, pair: Pair) -> bytes:
        """What is posted about a pair, as JSON.

        Raises:
            BadMedia: a picture that cannot be decoded.
        """
        query, item = pair
        special = sorted({found for text in (query.instruction, query.text, item.text) for found in SPECIAL.findall(text)})
        show = functools.partial(_show, max_pixels=self.settings.max_pixels)
        (turn,) = messages(parts(self.settings.question, query, item, special), show)
        if len(turn["content"]) == 1:  # text alone; servers that read no pictures want it plain
            turn["content"] = turn["content"][0]["text"]
        asked = {"model": self.model, "messages": [turn], "max_tokens": 1, "temperature": 0, "logprobs": True}
        return json.dumps(asked | {"top_logprobs": self.settings.top_logprobs} | dict(self.settings.fields)).encode()

    def _count(self, answer: Answer) -> None:
        self.usage.pairs += 1
        self.usage.unusable += bool(answer.problem)
        self.usage.bounded += answer.bounded

    def _believe(self, problems: Sequence[str], asked: int) -> None:
        """Stop as soon as more answers are unusable than may be when all are in."""
        if len(problems) <= math.floor(self.settings.max_unusable * max(asked, AT_LEAST)):
            return
        shown = "\n".join(f"  {problem}" for problem in problems[:EXAMPLES])
        raise JudgeError(
            f"{self.model} at {self._server.url} gave no usable answer to {len(problems)} of {asked} pairs, more than "
            f"max_unusable={self.settings.max_unusable:g} allows:\n{shown}\nMend the server or take another model; `fields` "
            "adds what a model needs to answer at once, such as {'chat_template_kwargs': {'enable_thinking': False}}"
        )


def warm_first(queries: Sequence[str]) -> list[int]:
    """Positions grouped by query, the first of each group moved before the rest of the group that comes before it."""
    groups: dict[str, list[int]] = {}
    for n, query in enumerate(queries):
        groups.setdefault(query, []).append(n)
    order: list[int] = []
    rest: list[int] = []
    for group in groups.values():
        order += [group[0], *rest]
        rest = group[1:]
    return order + rest


def _show(shown: Shown, max_pixels: int | None) -> list[dict[str, Any]]:
    """Pictures as data URLs. The protocol knows no video: its frames are pictures with a word before them."""
    urls = [_data_url(picture, picture_key(picture), max_pixels) for picture in shown.pictures]
    made: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    if shown.kind == "video":
        made.insert(0, {"type": "text", "text": f"(a video, {len(urls)} frames in order of time)\n"})
    return made


@functools.lru_cache(maxsize=64)  # the pictures of a query are sent with each of its candidates
def _data_url(picture: Picture, _key: str, max_pixels: int | None) -> str:
    kind, data = portable(picture, max_pixels=max_pixels)
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _run(work: Coroutine[Any, Any, Made]) -> Made:
    """Run to the end, also where a loop is running already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
