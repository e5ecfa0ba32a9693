"""Many clients of a server in one process, as cheap as they can be: they share the machine with what they measure."""

import contextlib
import itertools
import json
import re
import selectors
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

CLIENTS = 32


@dataclass(frozen=True)
class Reply:
    """An answer as it came."""

    status_code: int
    headers: dict[str, str]
    content: bytes

    @property
    def text(self) -> str:
        """The body."""
        return self.content.decode(errors="replace")

    def json(self) -> Any:
        """The body, read."""
        return json.loads(self.content)


class _Client:
    """A connection that is kept: the cheapest client there is, since it runs on the cores of the server."""

    def __init__(self, address: tuple[str, int]):
        self.socket = socket.create_connection(address, timeout=120)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.number, self.start, self.said, self.need = -1, 0.0, b"", -1

    def ask(self, number: int, request: bytes) -> None:
        self.number, self.start, self.said, self.need = number, time.perf_counter(), b"", -1
        self.socket.sendall(request)

    def take(self) -> bool:
        """What has come; says whether it is all."""
        part = self.socket.recv(1 << 18)
        if not part:
            raise AssertionError(f"the server closed the connection under request {self.number}: {self.said[:200]!r}")
        self.said += part
        if self.need < 0 and (end := self.said.find(b"\r\n\r\n")) >= 0:
            found = re.search(rb"content-length: *(\d+)", self.said[:end].lower())
            if found is None:
                raise AssertionError(f"an answer without its length: {self.said[:200]!r}")
            self.need = end + 4 + int(found[1])
        if 0 <= self.need < len(self.said):
            raise AssertionError("a request was answered twice")
        return len(self.said) == self.need


def together(url: str, bodies: Sequence[bytes], clients: int = CLIENTS) -> tuple[list[Reply], list[float]]:
    """Answers in the order of the requests, and the seconds that each took.

    Every client sends its next request when the last is answered. What comes is kept as bytes and read afterwards.
    """
    host, port = url.removeprefix("http://").split(":")
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\nContent-Length: "
    requests = [f"{head}{len(each)}\r\n\r\n".encode() + each for each in bodies]
    said, seconds, todo, left = [b""] * len(bodies), [0.0] * len(bodies), iter(range(len(bodies))), len(bodies)
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as waiting:
        for n in itertools.islice(todo, clients):
            client = _Client((host, int(port)))
            stack.callback(client.socket.close)
            waiting.register(client.socket, selectors.EVENT_READ, client)
            client.ask(n, requests[n])
        while left:
            ready = waiting.select(120)
            if not ready:
                raise AssertionError(f"{left} requests were never answered")
            for key, _ in ready:
                client = key.data
                if client.take():
                    said[client.number], seconds[client.number] = client.said, time.perf_counter() - client.start
                    left -= 1
                    if (n := next(todo, -1)) >= 0:
                        client.ask(n, requests[n])
                    else:
                        waiting.unregister(client.socket)
    return [_read(each) for each in said], seconds


def _read(said: bytes) -> Reply:
    head, _, content = said.partition(b"\r\n\r\n")
    first, *rows = head.decode("latin-1").split("\r\n")
    pairs = (row.partition(":") for row in rows)
    return Reply(int(first.split()[1]), {name.strip().lower(): value.strip() for name, _, value in pairs}, content)
