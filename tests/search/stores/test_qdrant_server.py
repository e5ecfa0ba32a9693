"""What goes over the wire to a Qdrant server: Qdrant's own client against a server of ours that answers as theirs does.

A real server cannot be had here. What it does with what is sent is not tried; what is sent is.
"""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from uuid import UUID

import pytest
from stocked import SPACE, entry, unit

from hardwon.errors import ArtifactError
from hardwon.search import stores

NAME, SECRET = "rows_1", "a key of the test"


class Handler(BaseHTTPRequestHandler):
    """Knows one collection with one row; remembers what it is asked."""

    def do_GET(self):
        self.answer()

    do_POST = do_PUT = do_GET  # noqa: N815

    def log_message(self, *_):
        """Says nothing."""

    def answer(self):
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "null")
        path, _, query = self.path.partition("?")
        self.server.asked.append((self.command, path.removeprefix(f"/collections/{NAME}"), query, body, self.headers))
        self.server.pause.wait(self.server.slow)
        point = {"id": str(UUID(entry(1).id)), "version": 1, "score": 0.5, "payload": {"row": entry(1).payload}}
        result = {
            "/exists": {"exists": True},
            "": {
                "status": "green",
                "optimizer_status": "ok",
                "segments_count": 1,
                "payload_schema": {},
                "config": {
                    "params": {"vectors": {"size": SPACE.dim, "distance": "Dot"}},
                    "hnsw_config": {"m": 16, "ef_construct": 100, "full_scan_threshold": 10000},
                    "optimizer_config": {
                        "deleted_threshold": 0.2, "vacuum_min_vector_number": 1000, "default_segment_number": 0,
                        "flush_interval_sec": 5,
                    },
                    "metadata": {"hardwon": SPACE.to_json()},
                },
            },
            "/points/query/batch": [{"points": [point]}],
            "/points": {"operation_id": 1, "status": "completed"},
            "/points/count": {"count": 1},
        }.get(path.removeprefix(f"/collections/{NAME}"))  # fmt: skip
        known = self.headers.get("api-key") == SECRET
        told = json.dumps(
            {"result": result, "status": "ok", "time": 0.0} if known else {"status": {"error": "no key"}}
        ).encode()
        self.send_response(200 if known else 401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(told)))
        self.end_headers()
        self.wfile.write(told)


@pytest.fixture
def server(monkeypatch):
    pytest.importorskip("qdrant_client")
    monkeypatch.setenv("QDRANT_API_KEY", SECRET)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        made.asked, made.slow, made.pause = [], 0, threading.Event()
        made.address = f"http://127.0.0.1:{made.server_port}"
        serving = threading.Thread(target=made.serve_forever, args=(0.01,))
        serving.start()
        yield made
        made.pause.set()
        made.shutdown()
        serving.join()


def test_searches_are_exact_and_writes_wait(server, tmp_path):
    store = stores.opened(server.address, tmp_path, NAME, SPACE)
    found = store.search(unit(2, 0)[:1], 3)
    assert [(match.entry, match.score) for match in found[0]] == [(entry(1), 0.5)]
    command, path, _, body, headers = server.asked[-1]
    assert (command, path, headers["api-key"]) == ("POST", "/points/query/batch", SECRET)
    (search,) = body["searches"]
    assert search["params"]["exact"] is True and search["limit"] == 3
    store.upsert([entry(1)], unit(1, 1))
    command, path, query, body, _ = server.asked[-1]
    assert (command, path, query, len(body["points"])) == ("PUT", "/points", "wait=true", 1)  # durable when it returns
    assert len(store) == 1 and server.asked[-1][3]["exact"] is True
    store.close()


def test_another_key_and_a_server_that_does_not_answer_are_told(server, tmp_path, monkeypatch):
    monkeypatch.setattr("hardwon.search.stores.qdrant.TIMEOUT_S", 1)
    store = stores.opened(server.address, tmp_path, NAME, SPACE)
    server.slow = 30
    with pytest.raises(ArtifactError, match=r"does not answer as Qdrant does .*timed out"):
        store.search(unit(1, 0), 3)
    store.close()
    server.slow = 0
    monkeypatch.setenv("QDRANT_API_KEY", "another")
    with pytest.raises(ArtifactError, match="check address and QDRANT_API_KEY") as caught:
        stores.opened(server.address, tmp_path, NAME, SPACE)
    assert "another" not in str(caught.value) and not list(tmp_path.iterdir())
