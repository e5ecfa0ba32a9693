"""What `hardwon serve` holds: throughput against offline `encode`, overload, and requests that make no sense.

    python -m benchmarks.serve --out benchmarks/serve_<hardware>_<date>.md
    python -m benchmarks.serve --only load --rounds 3 --requests 100      # a minute; all of it takes half an hour on two cores

The server is a process of its own on loopback, started by the command line; this process is the client, and both share the
machine.

**load.** 32 connections, each sending its next request when the last is answered, against `Embedder.encode` on the same items
in this process, in turns, medians over rounds; and the processor time of each, since clients and server share the machine.
"1 text": a text of 12 words in a request. "16 texts": as many in a request, as indexing does. "varied": 16 texts of 2 to 100
words. "picture": one JPEG of 320 x 240 in a request, if the model reads pictures.
"few": `encode` again, without a server, but never more items at a time than 32 clients can have sent, shared by the lanes that
the server has: with one text in a request batches are small, whoever computes them.
Vectors must agree to a cosine of 0.99999, every request must be answered once.

**overload.** Ten times as many clients as the server lets wait. Only 200 and 429 may be answered; memory of the server before
and after; then 20 requests one after the other, to see that it has recovered.

**malformed.** Requests drawn with a seed: bytes, broken JSON, wrong types, huge numbers, deep nesting, damaged pictures, wrong
headers. Answers of 500 and above and broken connections are counted.
"""

import argparse
import base64
import contextlib
import gc
import io
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import torch
from PIL import Image
from rich.console import Console

from benchmarks.clients import CLIENTS, Reply, together
from benchmarks.encode import texts
from benchmarks.losses import describe
from hardwon.data.assets import fetch
from hardwon.items import Item
from hardwon.models import Embedder
from hardwon.models.twins import twins
from hardwon.serve.batching import lanes_on

NAME = "served"
WAITING = 32  # that the server of "overload" lets wait
KINDS = ("1 text", "16 texts", "varied", "picture")
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

    @property
    def seconds(self) -> float:
        """Processor time that it has taken."""
        spent = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(spent[11]) + int(spent[12])) / os.sysconf("SC_CLK_TCK")


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


def load(server: Server, model: Embedder, asked: argparse.Namespace, words: Sequence[str]) -> list[str]:
    """Served against offline."""
    rounds, count = asked.rounds, asked.requests
    rows = [
        "| request | items | offline items/s | few | served | served / offline | served / few | CPU ms an item, offline | "
        "few | served | client | p50 ms | p99 ms |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lanes = twins(model, lanes_on("cpu"))
    for kind in (kind for kind in asked.kinds if kind != "picture" or "image" in model.body.modalities):
        sent = requests(kind, count if kind == "1 text" else count // 4, words)
        items, bodies = [item for each in sent for item in each], [body(each) for each in sent]
        turns, seconds = [], []
        for turn in range(rounds + 1):
            start, spent = time.perf_counter(), time.process_time()
            truth = model.encode([Item(item.text, item.images) for item in items])
            offline, alone = time.perf_counter() - start, time.process_time() - spent
            start, spent = time.perf_counter(), time.process_time()
            few(lanes, [[Item(item.text, item.images) for item in each] for each in sent])
            little, alone_few = time.perf_counter() - start, time.process_time() - spent
            start, spent, spent_there = time.perf_counter(), time.process_time(), server.seconds
            replies, took = together(server.url, bodies)
            served = time.perf_counter() - start
            if turn:
                there, here = server.seconds - spent_there, time.process_time() - spent
                turns.append((offline, little, served, alone, alone_few, there, here))
                seconds += took
            check(replies, truth)
        *speeds, there, here, mine, client = (statistics.median(each) for each in zip(*turns, strict=True))
        ratios = [statistics.median(turn[n] / turn[2] for turn in turns) for n in (0, 1)]
        p50, p99 = (1000 * float(np.percentile(seconds, p)) for p in (50, 99))
        rates = " | ".join([*(f"{len(items) / took:,.0f}" for took in speeds), *(f"{ratio:.2f}" for ratio in ratios)])
        cpu = " | ".join(f"{1000 * each / len(items):.2f}" for each in (there, here, mine, client))
        rows.append(f"| {kind} | {len(items):,} | {rates} | {cpu} | {p50:.0f} | {p99:.0f} |")
    return rows


def few(lanes: Sequence[Embedder], requests: Sequence[Sequence[Item]], clients: int = CLIENTS) -> None:
    """Encode in batches of what each lane's share of the clients can have sent, without a server."""
    share, cores = max(clients // len(lanes), 1), torch.get_num_threads()
    batches = iter([[item for each in requests[n : n + share] for item in each] for n in range(0, len(requests), share)])
    taking = threading.Lock()

    def work(model: Embedder) -> None:
        torch.set_num_threads(max(1, cores // len(lanes)))
        while True:
            with taking:
                batch = next(batches, None)
            if batch is None:
                return
            model.encode(batch)

    threads = [threading.Thread(target=work, args=(model,)) for model in lanes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def check(replies: Sequence[Reply], truth: np.ndarray) -> None:
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
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="of load")
    parser.add_argument("--rounds", type=int, default=5)
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
            lines += ["## load", "", *load(server, model, asked, words), ""]
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
