"""A server of the OpenAI protocol that fails as it is told to, as a process of its own on loopback.

It answers with what the text itself says: Yes has 0.98 of the number after the last "p=". Each test has a path of its own,
`/NAME/v1`, with a plan (POST /NAME/plan), and may read what came in (GET /NAME/log). Only the standard library is used, so
that the process starts in a moment.
"""

import asyncio
import collections
import contextlib
import hashlib
import json
import math
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

PLAN = {
    "models": ["small-judge"],
    "faults": [],  # kinds, of which one is drawn by text and number of the try
    "share": 0.0,  # of calls that fail
    "script": [],  # kinds of the first calls, one after the other; "" is none
    "always": "",  # kind of every call
    "body": "",  # what the kind "body" sends
    "status": 400,  # what the kind "status" sends
    "retry_after": "0",
    "slow_s": 5.0,
    "key": "",
}
TOKENS = {"Maybe": 0.01, "The": 0.005, " ": 0.001}


def completion(text):
    """A reply that says what the text says."""
    p = float(re.findall(r"p=([0-9.]+)", text)[-1])
    chances = {"Yes": 0.98 * p, "No": 0.98 * (1 - p)} | TOKENS
    rows = [{"token": token, "logprob": math.log(chance), "bytes": None} for token, chance in chances.items()]
    rows.sort(key=lambda row: -row["logprob"])
    choice = {"index": 0, "message": {"role": "assistant", "content": rows[0]["token"]}, "finish_reason": "length"}
    choice["logprobs"] = {"content": [rows[0] | {"top_logprobs": rows}]}
    return {"object": "chat.completion", "choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 1}}


@contextlib.contextmanager
def fake_server():
    """The process; gives its address."""
    with subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


class Plan:
    """The side of a test: its url, and what came in."""

    def __init__(self, address, name):
        self.home = f"{address}/{name}"
        self.url = f"{self.home}/v1"

    def set(self, **plan):
        """Make a plan; forgets what came in."""
        assert set(plan) <= set(PLAN)
        self._call("plan", json.dumps(plan).encode())
        return self

    @property
    def log(self):
        """Calls for a completion: text, kind of fault, time in seconds, calls under way, headers and body."""
        return json.loads(self._call("log"))

    def _call(self, path, data=None):
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(f"{self.home}/{path}", data, timeout=20) as reply:
            return reply.read()


def free_port():
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class _Fake:
    def __init__(self):
        self.plans, self.logs, self.tries, self.under_way = {}, {}, {}, collections.Counter()

    async def connected(self, reader, writer):
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while await self.one(reader, writer):
                pass
        writer.close()

    async def one(self, reader, writer):
        """Answer one request of a connection; says whether there may be another."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *rows = head.strip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (row.partition(": ") for row in rows)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        name, _, path = first.split()[1].strip("/").partition("/")
        plan = self.plans.setdefault(name, dict(PLAN))
        if path == "plan":
            self.plans[name], self.logs[name] = PLAN | json.loads(body), []
            return await send(writer, 200, b"{}")
        if path == "log":
            return await send(writer, 200, json.dumps(self.logs.get(name, [])).encode())
        if plan["key"] and headers.get("authorization") != f"Bearer {plan['key']}":
            said = {"error": {"message": f"no such key: {headers.get('authorization')}"}}
            return await send(writer, 401, json.dumps(said).encode())
        if path == "v1/models":
            data = [{"id": model} for model in plan["models"]]
            return await send(writer, 200, json.dumps({"data": data}).encode())
        if path != "v1/chat/completions":
            return await send(writer, 404, b'{"error": "no such place"}')
        self.under_way[name] += 1
        try:
            return await self.complete(name, plan, headers, json.loads(body), writer)
        finally:
            self.under_way[name] -= 1

    async def complete(self, name, plan, headers, asked, writer):
        content = asked["messages"][0]["content"]
        text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
        log = self.logs.setdefault(name, [])
        fault = self.fault(plan, text, len(log))
        row = {"text": text, "fault": fault, "at": time.monotonic(), "under_way": self.under_way[name]}
        log.append(row | {"headers": headers, "body": asked})
        made = json.dumps(completion(text)).encode()
        if fault == "reset":
            linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"  # on, 0 seconds: the connection is reset instead of closed
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
            return False
        if fault == "slow":
            await asyncio.sleep(plan["slow_s"])
        if fault == "drip":  # never silent for long, and never done
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n")
            for _ in range(1000):
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.05)
        if fault == "half":
            return await send(writer, 200, made, length=len(made), sent=len(made) // 2)
        if fault == "cut":
            return await send(writer, 200, made, length=None, sent=len(made) // 2)
        if fault in ("429", "503"):
            return await send(writer, int(fault), b'{"error": "busy"}', f"Retry-After: {plan['retry_after']}\r\n")
        other = {
            "500": (500, b"<html>Internal Server Error</html>"),
            "html": (200, b"<!doctype html><html><body>Welcome to nginx!</body></html>"),
            "garbage": (200, b"\x00\xff}{" * 20),
            "nothing": (200, b""),
            "list": (200, b"[]"),
            "error": (200, b'{"error": {"message": "upstream is overloaded", "code": 502}}'),
            "status": (plan["status"], b'{"error": {"message": "the prompt is too long"}}'),
            "body": (200, plan["body"].encode("utf-8", "surrogatepass")),
        }
        if fault in other:
            return await send(writer, *other[fault])
        if fault == "twice":
            await send(writer, 200, made)
        return await send(writer, 200, made)

    def fault(self, plan, text, calls):
        if plan["always"]:
            return plan["always"]
        if calls < len(plan["script"]):
            return plan["script"][calls]
        key = json.dumps([plan, text])
        self.tries[key] = self.tries.get(key, 0) + 1
        draw = int(hashlib.sha256(f"{text} {self.tries[key]}".encode()).hexdigest()[:8], 16)
        if (draw % 1000) / 1000 >= plan["share"] or not plan["faults"]:
            return ""
        return plan["faults"][draw // 1000 % len(plan["faults"])]


async def send(writer, status, body, more="", length=-1, sent=None):
    """A response; says whether the connection stays open."""
    stated = "Connection: close\r\n" if length is None else f"Content-Length: {len(body) if length < 0 else length}\r\n"
    writer.write(f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n{more}{stated}\r\n".encode() + body[:sent])
    await writer.drain()
    return sent is None and length is not None


async def _serve():
    server = await asyncio.start_server(_Fake().connected, "127.0.0.1", 0, limit=1 << 24, backlog=512)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)  # noqa: T201
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve())


def llama(model, port):
    """A llama.cpp server with a model, as a process of its own."""
    return subprocess.Popen([sys.executable, str(Path(__file__).with_name("llama.py")), str(model), str(port)])
