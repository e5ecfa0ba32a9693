"""Stages by several real workers: what comes of them is that of one process, byte for byte, also when a worker is killed."""

import os
import re
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import vlms

from hardwon import artifacts
from hardwon.errors import ArtifactError, DataError, HardwonError, RecipeError
from hardwon.items import Candidate, Example, Item, write_examples
from hardwon.mining import Mining, judging, retrieval
from hardwon.models import CachedEncoder, Embedder, Reranker, cached
from hardwon.shards import Job
from hardwon.spread import engines, tasks
from hardwon.spread.engines import Workers
from hardwon.spread.models import SpreadEncoder
from hardwon.stages import BuildIndex, ChatModel, Mine, Workspace
from hardwon.stages.evaluating import Evaluation

MINING = Mining(depth=6, keep=2, min_auc=0.0, max_unusable=0.3)

pytestmark = pytest.mark.filterwarnings("ignore:query and candidate come to more than")  # 64 tokens are soon full


def examples(count):
    sources = ("red", "blue")
    return [
        Example(
            Item(text=f"find the {'square ' * (n % 4)}bar {n}"),
            (Candidate(Item(text=f"{sources[n % 2]} bar {n}"), origin="gold"),),
            sources[n % 2],
        )
        for n in range(count)
    ]


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A file of examples; chunks, blocks and batches are small."""
    monkeypatch.setattr(cached, "CHUNK", 20)
    monkeypatch.setattr(retrieval, "BLOCK", 10)
    monkeypatch.setattr(judging, "BATCH", 20)
    write_examples(tmp_path / "pairs.jsonl", examples(30), tmp_path)
    return tmp_path / "pairs.jsonl"


@pytest.fixture(scope="module")
def reranker(tiny_text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reranker") / "model"
    Reranker.start_from(Embedder.load(tiny_text, device="cpu"), layers=1).save(folder)
    return folder


@contextmanager
def killing(folder, kind):
    """Kill the first worker that claims a shard of this kind; gives a list that it is written down in."""
    killed, over = [], threading.Event()

    def watch():
        while not killed and not over.is_set():
            for claim in folder.glob(f"{kind}-*/claimed/*@*"):
                pid = int(claim.name.partition("@")[2].split(".")[1])
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
                break
            time.sleep(0.005)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def files(folder):
    """Contents of an artifact and of the stores beside it, by name; manifests hold the time and are left out."""
    places = [*(folder / "negatives").rglob("*"), *(folder / "features").rglob("*"), *(folder / "judgements").rglob("*")]
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in places if path.is_file() and path.name != "manifest.json"
    }


def mined(folder, data, tiny_text, judge, workers=None, **more):
    workspace = Workspace(folder, workers=workers)
    workspace.run(Mine("negatives", str(tiny_text), str(data), judge=judge, settings=MINING, **more))
    assert not list((folder / "work").glob("*/*")), "work that is done is cleared away"
    return files(folder)


def test_mining_while_a_worker_is_killed(data, tmp_path, tiny_text, reranker, capsys):
    truth = mined(tmp_path / "one", data, tiny_text, str(reranker))
    assert "workers" not in capsys.readouterr().err
    assert {"negatives/examples.jsonl", "negatives/ledger.parquet"} < truth.keys()
    with killing(tmp_path / "two/work", "judge") as killed:
        made = mined(tmp_path / "two", data, tiny_text, str(reranker), Workers(2))
    told = re.findall(r"the first \d+ (?:pairs )?took .* will take about \S+ with 2 workers", capsys.readouterr().err)
    assert len(told) == 2
    assert killed
    assert made.keys() == truth.keys()
    assert [name for name in truth if made[name] != truth[name]] == []
    assert artifacts.load(tmp_path / "two/negatives").kind == "negatives"


@pytest.mark.slow  # each of these starts workers several times
class TestOthers:
    @pytest.mark.parametrize("workers", [Workers(1), Workers(3, threads=2), Workers(2, "ray")], ids=str)
    def test_whoever_works(self, data, tmp_path, tiny_text, reranker, workers):
        # Two threads add in another order than one: on some processors the last bits differ.
        alone = None if workers.threads == 1 else Workers(1, threads=workers.threads)
        truth = mined(tmp_path / "one", data, tiny_text, str(reranker), alone)
        assert mined(tmp_path / "two", data, tiny_text, str(reranker), workers) == truth

    def test_a_blend_and_a_chat_model(self, data, tmp_path, tiny_text, reranker, tmp_path_factory):
        chat = ChatModel(str(vlms.bare(vlms.DECODERS["qwen2-vl"](tmp_path_factory.mktemp("judge") / "vlm"))))
        for n, (judge, more) in enumerate([(str(reranker), {"calibrate": str(data)}), (chat, {})]):
            made = [mined(tmp_path / f"{n}{w}", data, tiny_text, judge, w and Workers(w), **more) for w in (1, 2)]
            assert made[0] == made[1]

    def test_an_index_and_an_evaluation(self, data, tmp_path, tiny_text):
        (tmp_path / "items.jsonl").write_text("".join(f'{{"text": "bar {n}"}}\n' for n in range(70)))
        sums = []
        for workers in (None, Workers(2)):
            workspace = Workspace(tmp_path / f"{workers and 2}", workers=workers)
            workspace.run(BuildIndex("index", str(tiny_text), str(tmp_path / "items.jsonl")))
            sums.append(artifacts.checksum(workspace.root / "index/index/vectors.safetensors"))
        assert sums[0] == sums[1]


class TestEncoder:
    def test_what_a_worker_cannot_read_is_told_as_without_workers(self, tmp_path, tiny_text, monkeypatch):
        """A shard that fails is done again here, where the error has the item in it."""
        monkeypatch.setattr(cached, "CHUNK", 2)
        inner = Embedder.load(tiny_text, device="cpu")
        spread = SpreadEncoder(inner, tiny_text, workers=Workers(2), below=tmp_path / "work")
        outputs = iter([None, None])
        monkeypatch.setattr("hardwon.spread.models.spread", lambda *_, **__: outputs)
        items = [Item(text=f"bar {n}") for n in range(4)]
        assert np.array_equal(CachedEncoder(spread, None).encode(items), CachedEncoder(inner, None).encode(items))

    def test_pictures_as_bytes_cannot_be_sent(self, tmp_path, tiny_text):
        spread = SpreadEncoder(Embedder.load(tiny_text, device="cpu"), tiny_text, workers=Workers(2), below=tmp_path)
        with pytest.raises(DataError, match="held as bytes"):
            list(spread.encode_each([[Item(images=(b"abc",))]]))


def test_a_model_that_has_changed_is_not_used(tmp_path, tiny_text):
    Job.create(tmp_path / "embed", {"kind": "embed", "model": str(tiny_text), "fingerprint": "0123456789ab"}).put([1])
    with pytest.raises(ArtifactError, match="changed since"):
        tasks.help_with(tmp_path / "embed")


def test_work_of_a_kind_that_is_not_known(tmp_path):
    Job.create(tmp_path / "job", {"kind": "os.system"}).put([1])
    with pytest.raises(RecipeError, match=r"unknown kind of work 'os\.system'"):
        tasks.help_with(tmp_path / "job")


def test_workers_that_cannot_work_are_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "COMMAND", ("/bin/sh", "-c", "echo no such model >&2; exit 3"))
    with pytest.raises(HardwonError, match=r"end with code 3: no such model"):
        list(engines.spread(tmp_path, {"kind": "embed"}, rows=[[1], [2]], workers=Workers(2), entry=tasks.by_ray))


def test_workers_that_are_killed_before_they_begin_are_given_up(tmp_path, monkeypatch):
    """Where memory is short, loading the model ends like that every time."""
    monkeypatch.setattr(engines, "COMMAND", ("/bin/sh", "-c", "kill -9 $$"))
    with pytest.raises(HardwonError, match=r"end with code -9: killed, for want of memory\?"):
        list(engines.spread(tmp_path, {"kind": "embed"}, rows=[[1], [2]], workers=Workers(2), entry=tasks.by_ray))


@pytest.mark.parametrize("wrong", [{"count": 0}, {"threads": 0}, {"lease_s": 0.0}])
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(RecipeError):
        Workers(**wrong)


def test_an_evaluation_is_called_the_same_whoever_embeds():
    plain = Evaluation("model", "benchmark")
    assert replace(plain, workers=Workers(2)).home == plain.home == Path("runs/evaluations/model-benchmark.json")
