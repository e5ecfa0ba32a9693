"""What `hardwon serve` holds: throughput against offline `encode`, overload, and requests that make no sense.

    python -m benchmarks.serve --out benchmarks/serve_<hardware>_<date>.md
    python -m benchmarks.serve --model FOLDER --only load --rounds 1

The server is a process of its own on loopback, started by the command line; this process is the client, and both share the
machine.

**load.** 32 clients, each sending its next request when the last is answered, against `Embedder.encode` on the same items in
this process, in turns, medians over rounds. "1 text": a text of 12 words in a request. "16 texts": as many in a request, as
indexing does. "varied": 16 texts of 2 to 100 words. "picture": one JPEG of 320 x 240 in a request, if the model reads pictures.
Vectors must agree to a cosine of 0.99999, every request must be answered once.

**overload.** Ten times as many clients as the server lets wait. Only 200 and 429 may be answered; memory of the server before
and after; then 20 requests one after the other, to see that it has recovered.

**malformed.** Requests drawn with a seed: bytes, broken JSON, wrong types, huge numbers, deep nesting, damaged pictures, wrong
headers. Answers of 500 and above and broken connections are counted.
"""

import argparse
import asyncio
import base64
import contextlib
import gc
import io
import json
import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from PIL import Image
from rich.console import Console

from benchmarks.encode import texts
from benchmarks.losses import describe
from hardwon.data.assets import fetch
from hardwon.items import Item
from hardwon.models import Embedder

CLIENTS, NAME = 32, "served"
WAITING = 32  # that the server of "overload" lets wait
JSON = {"content-type": "application/json"}


@dataclass
class Server:
    """A running server."""

    url: str
    process: subprocess.Popen[str]

    @property
    def memory(self) -> float:
        """Resident megabytes."""
        rows = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return int(next(row for row in rows if row.startswith("VmRSS")).split()[1]) / 1024


@contextlib.contextmanager
def serving(model: str, *limits: str) -> Iterator[Server]:
    """`hardwon serve` on a free port."""
    told = [part for limit in limits for part in ("--limit", limit)]
    command = [sys.executable, "-m", "hardwon.cli", "serve", model, "--port", "0", "--name", NAME, *told]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("serving at "):
            raise RuntimeError(f"the server did not start: {line}")
        try:
            yield Server(line.split()[-1].removesuffix("/v1"), process)
        finally:
            process.terminate()


async def _together(url: str, bodies: Sequence[bytes], clients: int) -> tuple[list[httpx2.Response], list[float]]:
    replies: dict[int, httpx2.Response] = {}
    seconds: dict[int, float] = {}
    todo = iter(enumerate(bodies))
    limits = httpx2.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx2.AsyncClient(base_url=url, timeout=120, trust_env=False, verify=False, limits=limits) as client:

        async def one() -> None:
            for n, body in todo:
                start = time.perf_counter()
                reply = await client.post("/v1/embeddings", content=body, headers=JSON)
                seconds[n] = time.perf_counter() - start
                if n in replies:
                    raise AssertionError("a request was answered twice")
                replies[n] = reply

        await asyncio.gather(*(one() for _ in range(clients)))
    order = range(len(bodies))
    return [replies[n] for n in order], [seconds[n] for n in order]


def together(url: str, bodies: Sequence[bytes], clients: int = CLIENTS) -> tuple[list[httpx2.Response], list[float]]:
    """Answers in the order of the requests, and the seconds that each took."""
    return asyncio.run(_together(url, bodies, clients))


def jpeg(seed: int) -> bytes:
    """A picture of noise that has some structure."""
    draw = np.random.default_rng(seed)
    small = Image.fromarray(draw.integers(0, 255, (12, 16, 3), dtype=np.uint8))
    file = io.BytesIO()
    small.resize((320, 240), Image.Resampling.BICUBIC).save(file, "JPEG")
    return file.getvalue()


def url(picture: bytes, kind: str = "jpeg") -> str:
    """As a data: URL."""
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def requests(kind: str, count: int, words: Sequence[str]) -> list[list[Item]]:
    """The items of each request."""
    if kind == "picture":
        return [[Item(images=(jpeg(n),))] for n in range(count)]
    size = 1 if kind == "1 text" else 16
    drawn = texts("plain" if kind != "varied" else "varied", count * size, words)
    return [[Item(text) for text in drawn[n * size : (n + 1) * size]] for n in range(count)]


def body(items: Sequence[Item]) -> bytes:
    """A request for vectors in base64."""
    given = [item.text or {"image": url(item.images[0])} for item in items]  # type: ignore[arg-type]
    return json.dumps({"model": NAME, "input": given, "encoding_format": "base64"}).encode()


def load(server: Server, model: Embedder, rounds: int, count: int, words: Sequence[str]) -> list[str]:
    """Served against offline."""
    rows = [
        "| request | items | offline items/s | served items/s | served / offline | p50 ms | p99 ms |",
        "|---|---|---|---|---|---|---|",
    ]
    kinds = ["1 text", "16 texts", "varied", *(["picture"] if "image" in model.body.modalities else [])]
    for kind in kinds:
        asked = requests(kind, count if kind == "1 text" else count // 4, words)
        items, bodies = [item for each in asked for item in each], [body(each) for each in asked]
        offline, served, seconds = [], [], []
        for turn in range(rounds + 1):
            start = time.perf_counter()
            truth = model.encode([Item(item.text, item.images) for item in items])
            offline.append(time.perf_counter() - start)
            start = time.perf_counter()
            replies, took = together(server.url, bodies)
            served.append(time.perf_counter() - start)
            seconds += took if turn else []
            check(replies, truth)
        slow, fast = statistics.median(served[1:]), statistics.median(offline[1:])
        p50, p99 = (1000 * float(np.percentile(seconds, p)) for p in (50, 99))
        rates = f"{len(items) / fast:,.0f} | {len(items) / slow:,.0f} | {fast / slow:.2f}"
        rows.append(f"| {kind} | {len(items):,} | {rates} | {p50:.0f} | {p99:.0f} |")
    return rows


def check(replies: Sequence[httpx2.Response], truth: np.ndarray) -> None:
    """All answered, each with its own vectors."""
    made = []
    for reply in replies:
        if reply.status_code != 200:
            raise AssertionError(reply.text)
        made += [np.frombuffer(base64.b64decode(row["embedding"]), dtype="<f4") for row in reply.json()["data"]]
    cosines = (np.stack(made) * truth).sum(axis=1)
    if cosines.min() < 0.99999:
        raise AssertionError(f"a vector has a cosine of {cosines.min()} with the true one")


def overload(server: Server, count: int, words: Sequence[str]) -> list[str]:
    """Ten times as many clients as may wait."""
    bodies = [body(each) for each in requests("1 text", count, words)]
    calm, unloaded = together(server.url, bodies[:200], WAITING // 4)
    before, start = server.memory, time.perf_counter()
    replies, seconds = together(server.url, bodies, 10 * WAITING)
    took, counts = time.perf_counter() - start, Counter(reply.status_code for reply in replies)
    if set(counts) > {200, 429} or any("retry-after" not in reply.headers for reply in replies if reply.status_code == 429):
        raise AssertionError(f"answers other than 200 and 429: {counts}")
    after = server.memory
    start = time.perf_counter()
    again, _ = together(server.url, bodies[:20], 1)
    if {reply.status_code for reply in [*calm, *again]} != {200}:
        raise AssertionError("not all requests of a calm server were answered")
    accepted = [s for s, reply in zip(seconds, replies, strict=True) if reply.status_code == 200]
    sent = f"{len(bodies):,} requests by {10 * WAITING} clients in {took:.1f} s"
    return [
        f"{sent}: {counts[200]:,} answered, {counts[429]:,} sent away.",
        f"Memory of the server: {before:.0f} MB before, {after:.0f} MB after.",
        f"p99 with {WAITING // 4} clients: {1000 * np.percentile(unloaded, 99):.0f} ms; here of what was answered: "
        f"{1000 * np.percentile(accepted, 99):.0f} ms.",
        f"Afterwards 20 requests took {time.perf_counter() - start:.2f} s.",
    ]


def malformed(draw: random.Random) -> tuple[str, bytes, dict[str, str]]:
    """Path, body and headers of a request that makes no sense (now and then it does)."""
    odd: Sequence[Callable[[], Any]] = (
        lambda: None,
        lambda: draw.randint(-(10**18), 10**18),
        lambda: draw.random() * 10 ** draw.randint(-300, 300),
        lambda: "".join(
            chr(draw.choice((0, 10, 34, 92, 127, 0x301, 0x4E2D, 0x1F600, 0xFFFD))) for _ in range(draw.randint(0, 40))
        ),
        lambda: [odd[draw.randrange(len(odd))]() for _ in range(draw.randint(0, 4))] if draw.random() < 0.7 else [],
        lambda: {draw.choice(fields): odd[draw.randrange(4)]() for _ in range(draw.randint(0, 4))},
        lambda: url(jpeg(1)[: draw.randint(0, 3000)]),
        lambda: draw.choice(("http://127.0.0.1:1/", "file:///etc/passwd", "../x", "data:", "data:image/png;base64,AAAA")),
        lambda: {"image": url(bytes(draw.randbytes(20)))},
        lambda: [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        lambda: "a " * draw.randint(1, 20_000),
    )
    fields = (
        "model",
        "input",
        "messages",
        "dimensions",
        "encoding_format",
        "query",
        "documents",
        "top_n",
        "text",
        "image",
        "k",
    )
    path = draw.choice(("/v1/embeddings", "/v1/rerank", "/v1/search", "/v1/models", f"/{draw.randint(0, 9)}"))
    asked = {name: odd[draw.randrange(len(odd))]() for name in draw.sample(fields, draw.randint(0, 4))}
    made = json.dumps(asked if draw.random() < 0.5 else {"model": NAME, **asked}).encode()
    kind = draw.random()
    if kind < 0.1:
        made = draw.randbytes(draw.randint(0, 60))
    elif kind < 0.2:
        made = made[: draw.randint(0, len(made))]
    elif kind < 0.25:
        made = draw.choice(
            (b"[" * 5000, b'{"a":' * 1000, b'{"model":"served","input":[' + b"1," * 9999 + b"1]}", b"[{}]" * 999)
        )
    headers = (
        JSON if draw.random() < 0.9 else draw.choice(({}, {"content-type": "text/plain"}, {**JSON, "content-encoding": "gzip"}))
    )
    return path, made, headers


def nonsense(server: Server, count: int, seed: int) -> list[str]:
    """Send it."""
    draw, counts, clock, before = random.Random(seed), Counter[str](), time.perf_counter(), server.memory
    with httpx2.Client(base_url=server.url, timeout=60, trust_env=False, verify=False) as client:
        for _ in range(count):
            path, made, headers = malformed(draw)
            try:
                reply = client.post(path, content=made, headers=headers)
            except httpx2.HTTPError as error:
                counts[type(error).__name__] += 1
                continue
            counts[str(reply.status_code)] += 1
            if reply.status_code != 200 and set(reply.json()["error"]) != {"message", "type", "param", "code"}:
                counts["error of another form"] += 1
        counts["dead"] += client.get("/healthz").status_code != 200
    bad = sum(n for what, n in counts.items() if not what.isdigit() or int(what) >= 500)
    told = ", ".join(f"{what}: {n:,}" for what, n in sorted(counts.items()) if n)
    return [
        f"{count:,} requests (seed {seed}) in {time.perf_counter() - clock:.0f} s: {bad} failures. {told}.",
        f"Memory of the server: {before:.0f} MB before, {server.memory:.0f} MB after.",
    ]


def main(arguments: Sequence[str]) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="", help="folder or name; the demo's language model if left out")
    parser.add_argument(
        "--only", nargs="+", choices=("load", "overload", "malformed"), default=["load", "overload", "malformed"]
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=1000, help="of a round; malformed ones are ten times as many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args(arguments)
    place = asked.model or str(next(fetch(("language",))["language"].rglob("model.safetensors")).parent)
    words = [f"word{n}" for n in range(1000)]
    about = describe(arguments, "serve", "src/hardwon/serve", "src/hardwon/models")
    lines = [f"# hardwon serve, {Path(place).name}", "", *(f"- {key}: {value}" for key, value in about.items()), ""]
    if "load" in asked.only:
        model = Embedder.load(place)
        words = [word for word in model.body.tokenizer.get_vocab() if word.isalpha() and word.islower()][:8000] or words
        gc.collect()
        gc.freeze()  # the client should not be looking for garbage while it measures
        with serving(place, "wait_s=60") as server:  # slow machines too answer all of it
            lines += ["## load", "", *load(server, model, asked.rounds, asked.requests, words), ""]
    if "overload" in asked.only:
        with serving(place, f"waiting={WAITING}") as server:
            lines += ["## overload", "", *overload(server, 5 * asked.requests, words), ""]
    if "malformed" in asked.only:
        with serving(place) as server:
            lines += ["## malformed", "", *nonsense(server, 10 * asked.requests, asked.seed), ""]
    Console(highlight=False, soft_wrap=True).print("\n".join(lines), markup=False)
    if asked.out:
        asked.out.write_text("\n".join(lines))


if __name__ == "__main__":
    main(sys.argv[1:])
