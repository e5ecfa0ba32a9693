"""A server as a process of its own, what it serves, and clients. Nothing but the command line is between it and the tests."""

import base64
import contextlib
import json
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx2
import offline
import tiny

NAME, RANKER = "served/vlm", "served/reranker"
CONTEXT = multiprocessing.get_context("forkserver")


def build(folder):
    """An index of pictures and texts, its model and a reranker; gives the folder."""
    from hardwon.items import Item
    from hardwon.models import Embedder, Reranker
    from hardwon.search import Index

    model = Embedder.load(tiny.build_vlm(folder / "vlm"), device="cpu")
    Reranker.start_from(model).save(folder / "reranker")
    pictures = tiny.draw_all(folder / "pictures")
    items = [*(Item(images=(path,)) for path in pictures.values()), *(Item(text=caption) for caption in pictures)]
    Index.build(model, items, progress="").save(folder / "idx" / "index")
    (folder / "idx" / "model.json").write_text(json.dumps({"model": "../vlm"}))
    return folder


def mined(home, pairs, model):
    """Negatives of these examples, in `home`; gives their folder."""
    from hardwon import artifacts
    from hardwon.data import read
    from hardwon.items import write_examples
    from hardwon.mining import Hardest, Mining, mine

    write_examples(home / "pairs.jsonl", pairs, home)
    settings = Mining(depth=6, keep=3, beta=0.1, min_auc=0.0, selector=Hardest())
    inputs = {"stage": {"out": "negatives", "data": str(home / "pairs.jsonl"), "root": ""}, "parents": {}}
    with artifacts.writing(home / "negatives", "negatives", inputs) as draft:
        mine(read(str(home / "pairs.jsonl")).examples, model, settings=settings).write(draft.path, home)
    return home / "negatives"


def url_of(picture, kind="PNG"):
    """A picture as a data: URL."""
    return inline(tiny.encoded(picture, kind), kind)


def inline(content, kind="PNG"):
    """Bytes, said to be a picture, as a data: URL."""
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content).decode()}"


@dataclass
class Server:
    """A running server."""

    url: str
    log: Path
    process: multiprocessing.Process

    def client(self, **more):
        """A client that keeps its connections."""
        more = {"timeout": 60, "trust_env": False, "verify": False, **more}
        return httpx2.Client(base_url=self.url, **more)

    def post(self, path, value, **more):
        """One request."""
        with self.client() as client:
            return client.post(path, json=value, **more)

    def embed(self, *texts):
        """Status of a request for vectors of texts."""
        return self.post("/v1/embeddings", {"model": NAME, "input": list(texts)})

    def stop(self, kind=signal.SIGTERM):
        """Ask it to stop."""
        os.kill(self.process.pid, kind)

    @property
    def memory(self):
        """Resident bytes."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def running(folder, log, *arguments, place="idx", **environment):
    """`hardwon serve` with these arguments, on any port."""
    CONTEXT.set_forkserver_preload(["hardwon.stages.serving", "sentence_transformers", "fastapi", "uvicorn", "hardwon.cli"])
    arguments = ["serve", str(folder / place), "--port", "0", "--device", "cpu", *arguments]
    process = CONTEXT.Process(target=_main, args=(arguments, str(log), environment), daemon=True)
    process.start()
    try:
        end = time.monotonic() + 120
        while "serving at" not in (said := log.read_text() if log.exists() else ""):
            assert process.is_alive() and time.monotonic() < end, said
            time.sleep(0.02)
        yield Server(said.split("serving at ")[1].split()[0].removesuffix("/v1"), log, process)
    finally:
        process.kill()
        process.join()
    assert offline.OUTBOUND not in log.read_text()  # no server of any test looks anything up or connects to anybody


def _main(arguments, log, environment):
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    sys.addaudithook(offline.watch)
    import torch

    from hardwon import cli
    from hardwon.models import Embedder

    torch.set_num_threads(1)
    Embedder.encode = _obedient(Embedder.encode)
    sys.argv = ["hardwon", *arguments]
    cli.main()


def _obedient(encode):
    """Does what texts say: "sleep 0.2" takes that long, "fail" is an error that nobody expects."""

    def encoded(self, items, *, progress=""):
        for item in items:
            kind, _, much = item.text.partition(" ")
            if kind == "sleep":
                time.sleep(float(much.split()[0]))
            if kind == "fail":
                raise RuntimeError("as asked")
        return encode(self, items, progress=progress)

    return encoded
