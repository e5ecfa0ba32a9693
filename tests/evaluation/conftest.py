"""Fakes and builders. hardwon is imported inside functions: the shape checks install themselves before the first import."""

import hashlib
import io

import numpy as np
import pytest


class FakeEncoder:
    """Vectors by `Item.key`; an item that has none gets a random one that depends on its content alone."""

    def __init__(self, dim=8, fingerprint="fake", **vectors):
        self.dim, self.fingerprint = dim, fingerprint
        self.vectors = {}
        self.calls = []
        self.progress = []

    def encode(self, items, *, progress=""):
        self.calls.append([item.key for item in items])
        self.progress.append(progress)
        return np.stack([self.vectors.get(item.key, self.random(item)) for item in items]).astype(np.float32)

    def random(self, item):
        seed = int(hashlib.sha256((self.fingerprint + item.key).encode()).hexdigest()[:15], 16)
        vector = np.random.default_rng(seed).normal(size=self.dim)
        return vector / np.linalg.norm(vector)


class Constant(FakeEncoder):
    """A collapsed model."""

    def random(self, item):
        return np.full(self.dim, self.dim**-0.5)


class FakeReranker:
    """Gives what `rule(queries, items, scores)` says, and remembers what it was shown."""

    def __init__(self, depth, rule):
        self.depth, self.rule = depth, rule
        self.seen = []

    def rescore(self, queries, items, scores, *, progress):
        assert len(queries) == len(items) == len(scores)
        assert all(len(row) == scores.shape[1] for row in items)
        self.seen.append((list(queries), [list(row) for row in items], scores.copy(), progress))
        return self.rule(queries, items, scores)


@pytest.fixture
def fake():
    return FakeEncoder


@pytest.fixture
def constant():
    return Constant


@pytest.fixture
def reranker():
    return FakeReranker


@pytest.fixture
def make_task():
    """A task of texts: query n belongs to corpus entry n, unless said otherwise."""

    def build(name="words", q=6, c=9, *, meta_task="retrieval", distribution="ind", prefix="", **changes):
        from hardwon.evaluation import Task
        from hardwon.items import Item

        row = {
            "queries": tuple(Item(text=f"{prefix}query {n}") for n in range(q)),
            "corpus": tuple(Item(text=f"{prefix}entry {n}") for n in range(c)),
            "gold": tuple((n % c,) for n in range(q)),
        }
        return Task(name, meta_task, distribution, **(row | changes))

    return build


@pytest.fixture
def benchmark_of(make_task):
    """A benchmark with two classification tasks, one retrieval and one grounding task, in and out of distribution."""

    def build(*tasks):
        from hardwon.evaluation import Benchmark

        return Benchmark(
            "tiny",
            tasks
            or (
                make_task("labels", 8, 3, meta_task="classification"),
                make_task("labels_far", 30, 4, meta_task="classification", distribution="ood", prefix="far "),
                make_task("words", 12, 20),
                make_task("boxes", 5, 6, meta_task="grounding", distribution="ood", prefix="box "),
            ),
        )

    return build


@pytest.fixture
def make_report(benchmark_of):
    """A report with hits as given, without any model; tasks named *_far lie out of distribution."""

    def build(label="a", model="m", revision="r" * 32, tasks=None, **hits):
        from hardwon.evaluation.report import Report
        from hardwon.evaluation.result import TaskResult

        results = tuple(
            TaskResult(
                name,
                "classification" if name.startswith("label") else "retrieval",
                "ood" if name.endswith("_far") else "ind",
                tuple(map(float, values)),
                tuple(2.0 - v for v in values),
                (0,) * len(values),
                0.25,
                4,
            )
            for name, values in hits.items()
        )
        return Report(model, "tiny", revision, tasks or tuple(r.name for r in results), label, results, {"seconds": 1})

    return build


@pytest.fixture
def shown():
    """What a person sees of a table, in a wide terminal."""

    def render(table):
        from rich.console import Console

        out = io.StringIO()
        Console(file=out, width=200).print(table)
        return out.getvalue()

    return render


@pytest.fixture
def picture(tmp_path):
    """Writes a small PNG whose colour is `shade`, and returns its path."""

    def write(name, shade=0):
        from PIL import Image

        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (shade, 0, 0)).save(path)
        return path

    return write
