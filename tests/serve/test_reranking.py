"""Rerankers as the server uses them: whatever `hardwon search` takes, used as it does there."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import serving
import tiny
import vlms
from serving import url_of
from typer.testing import CliRunner

from hardwon import cli
from hardwon.errors import RecipeError
from hardwon.items import Item
from hardwon.metrics import Interval
from hardwon.models import Listing, ListwiseReranker, load_reranker
from hardwon.search import Fused, Gate, Kind, open_index
from hardwon.serve.batching import Unusable, Worker
from hardwon.serve.limits import Limits
from hardwon.serve.reranking import scored, scoring
from hardwon.stages import serving as loading
from hardwon.stages.reranking import Rerank

RED, BLUE = tiny.draw("red", "square"), tiny.draw("blue", "circle")
SEEN = Item(images=(tiny.encoded(RED),))


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """Folder of a stage that made a list-wise reranker, and beside it that of one that evaluated with it, gate and all."""
    home = tmp_path_factory.mktemp("lists") / "own"
    plain = vlms.bare(vlms.DECODERS["qwen2-vl"](home / "plain"))
    made = ListwiseReranker.load(plain, device="cpu", listing=Listing("Which one fits best?", window=4, permutations=2))
    made.save(home / "ranker" / "model")
    (home / "ranker" / "manifest.json").write_text("{}")
    some = Interval(0.1, 0.05, 0.15)
    kinds = (Kind("find it", 40, some, 0.7, 2.0, 1.0), Kind("", 40, Interval(-0.1, -0.2, 0.0), 0.7, 2.0, 0.0))
    learned = Fused(load_reranker(home / "ranker" / "model", device="cpu"), depth=7, weight=0.5, gate=Gate(kinds))
    (home / "eval").mkdir()
    (home / "eval" / "fusion.json").write_text(json.dumps(learned.to_json()))
    return home / "ranker"


@pytest.fixture(scope="module")
def listed(folder, stage, tmp_path_factory):
    """A server with that reranker, as it was learned to be used."""
    asked = ("--rerank", str(stage), "--fusion", str(stage.parent / "eval"), "--limit", "listed=8")
    with serving.running(folder, tmp_path_factory.mktemp("log") / "log", *asked) as made:
        yield made


@pytest.fixture(scope="module")
def ranker(stage):
    return load_reranker(stage / "model", device="cpu")


def searched(server, **asked):
    reply = server.post("/v1/search", {"k": 12, "rerank": True, **asked})
    assert reply.status_code == 200, reply.text
    return reply.json()


def agree(reply, truth):
    assert [hit["id"] for hit in reply["hits"]] == [hit.id for hit in truth]
    np.testing.assert_allclose([hit["score"] for hit in reply["hits"]], [hit.score for hit in truth], atol=1e-5)
    assert reply["pairs"] == truth.pairs


def test_searching_is_that_of_search(listed, stage, folder, model):
    index = open_index(folder / "idx", model)
    fused = Rerank(str(stage), str(stage.parent / "eval")).load(device="cpu")
    assert isinstance(fused.reranker, ListwiseReranker)
    query = Item("red square", instruction="find it")
    reply = searched(listed, text="red square", instruction="find it")
    agree(reply, index.search(query, 12, fused))
    assert reply["pairs"] == 7
    assert [hit["id"] for hit in reply["hits"]] != [hit.id for hit in index.search(query, 12)]
    like = searched(listed, image=url_of(RED), instruction="find it")
    agree(like, index.search(Item(images=SEEN.images, instruction="find it"), 12, fused))


def test_the_gate_leaves_alone_what_it_does_not_know(listed, stage, folder, model):
    reply = searched(listed, text="red square")
    assert reply["reranked"] and reply["pairs"] == 0
    truth = open_index(folder / "idx", model).search(Item("red square"), 12)
    assert [hit["id"] for hit in reply["hits"]] == [hit.id for hit in truth]
    with listed.client() as client:
        assert client.get("/page/about").json()["depth"] == 7


def test_a_list_is_read_as_one(listed, ranker):
    documents = ["the blue circle", {"text": "red square"}, {"image": url_of(RED)}, {"text": "it", "image": url_of(BLUE)}, "a"]
    items = [Item("the blue circle"), Item("red square"), SEEN, Item("it", (tiny.encoded(BLUE),)), Item("a")]

    def asked(query):
        return listed.post("/v1/rerank", {"query": query, "documents": documents})

    queries = ["red square", "it", "the blue circle", "a"] * 2
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(asked, queries))
    for query, reply in zip(queries, replies, strict=True):
        assert reply.status_code == 200, reply.text
        truth = ranker.score(Item(query), items)
        results = reply.json()["results"]
        assert [row["index"] for row in results] == np.argsort(-truth, kind="stable").tolist()
        told, sure = [row["relevance_score"] for row in results], 1 / (1 + np.exp(-np.sort(truth)[::-1]))
        np.testing.assert_allclose(told, sure, atol=1e-5)
        assert reply.json()["usage"]["total_tokens"] > 0
    with listed.client() as client:
        numbers = client.get("/metrics").text
        cards = client.get("/v1/models").json()["data"]
    assert 'hardwon_batch_rows_count{work="list"}' in numbers
    assert [(card["id"], card["fingerprint"]) for card in cards][1] == ("own/ranker", ranker.fingerprint)


def test_what_a_list_cannot_hold(listed):
    reply = listed.post("/v1/rerank", {"query": "a", "documents": ["a"] * 9})
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["code"]) == (400, "documents", "too_many")
    assert "8 at most" in error["message"] and "--limit listed" in error["message"]
    whole = tiny.encoded(RED)
    place = whole.index(b"IDAT") + 8
    broken = whole[:place] + bytes(20) + whole[place + 20 :]  # that only decoding finds
    documents = ["a", {"image": url_of(BLUE)}, {"image": serving.inline(broken)}, "b"]
    reply = listed.post("/v1/rerank", {"query": "a", "documents": documents})
    assert (reply.status_code, reply.json()["error"]["param"]) == (422, "documents[2]")
    assert listed.post("/v1/rerank", {"query": "a", "documents": ["a", "b"]}).status_code == 200


def test_a_document_that_the_model_does_not_read(tmp_path):
    words = ListwiseReranker.load(vlms.build_words(tmp_path / "words"), device="cpu", listing=Listing("Best?", window=4))
    worker, work = Worker(100, lambda *batch: None), scoring(words)

    def scores(query, *items):
        async def score(rows):
            return await asyncio.wrap_future(worker.submit(work, rows))

        return asyncio.run(scored(score, words, query, items))

    try:
        three = [Item("a"), Item("red square"), Item("b")]
        np.testing.assert_allclose(scores(Item("red"), *three).values, words.score(Item("red"), three), atol=1e-5)
        with pytest.raises(Unusable, match="this model reads text only") as caught:
            scores(Item("red"), Item("a"), SEEN)
        assert caught.value.position == 1
        with pytest.raises(Unusable, match="the query: this model reads text only") as caught:
            scores(SEEN, Item("a"))
        assert caught.value.position is None
    finally:
        worker.close()


def test_what_serve_is_told_of_a_reranker(folder, stage, monkeypatch):
    asked: dict = {}
    monkeypatch.setattr(loading, "serve", lambda place, **more: asked.update(more))
    runner, place = CliRunner(), str(folder / "idx")
    told = ("--rerank", "some/one", "--depth", "5", "--weight", "0.4", "--pairs", "3", "--milliseconds", "9")
    assert runner.invoke(cli.app, ["serve", place, *told]).exit_code == 0
    assert asked["rerank"] == Rerank("some/one", "", 5, 0.4, 3.0, 9.0)
    assert runner.invoke(cli.app, ["serve", place]).exit_code == 0
    assert asked["rerank"] is None
    done = runner.invoke(cli.app, ["serve", place, "--weight", "0.1"])
    assert done.exit_code == 2
    assert "a reranker: name one with --rerank" in done.output
    with pytest.raises(RecipeError, match="depth and weight of the reranker are in the fusion"):
        Rerank(str(stage), str(stage.parent / "eval"), depth=3).load(device="cpu")
    with pytest.raises(RecipeError, match="--depth or --fusion"):
        Limits().changed({"rerank_depth": "5"})
