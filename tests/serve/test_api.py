"""The API as clients see it: every answer is what the library gives for the same items."""

import base64
import io
import json

import numpy as np
import openai
import pytest
import tiny
from serving import NAME, RANKER, url_of

from hardwon.items import Item
from hardwon.models import Reranker
from hardwon.search import Fused, open_index

TEXTS = ("red square", "the blue circle", "a")
RED, BLUE = tiny.draw("red", "square"), tiny.draw("blue", "circle")


def near(made, truth):
    return np.abs(np.asarray(made, dtype=np.float32) - truth).max() < 1e-5


def vectors_of(reply):
    assert reply.status_code == 200, reply.text
    rows = reply.json()["data"]
    assert [row["index"] for row in rows] == list(range(len(rows)))
    return [row["embedding"] for row in rows]


def item(picture, text="", instruction=""):
    return Item(text, (tiny.encoded(picture),), instruction)


def test_texts(server, model):
    truth = model.encode([Item(text) for text in TEXTS])
    reply = server.embed(*TEXTS)
    assert near(vectors_of(reply), truth)
    assert reply.json()["usage"]["total_tokens"] == sum(model.cost(Item(text)) for text in TEXTS)
    assert near(vectors_of(server.post("/v1/embeddings", {"model": NAME, "input": TEXTS[0]})), truth[:1])


def test_base64_and_fewer_numbers(server, model):
    truth = model.encode([Item(text) for text in TEXTS])[:, :8]
    truth /= np.linalg.norm(truth, axis=1, keepdims=True)
    asked = {"model": NAME, "input": TEXTS, "dimensions": 8, "encoding_format": "base64"}
    rows = vectors_of(server.post("/v1/embeddings", asked))
    made = np.stack([np.frombuffer(base64.b64decode(row), dtype="<f4") for row in rows])
    assert near(made, truth) and np.allclose(np.linalg.norm(made, axis=1), 1, atol=1e-6)
    too_many = server.post("/v1/embeddings", {"model": NAME, "input": "a", "dimensions": tiny.WIDTH + 1})
    assert too_many.status_code == 400 and too_many.json()["error"]["param"] == "dimensions"


def test_pictures_in_messages(server, model):
    def message(role, *parts):
        return {"role": role, "content": [{"type": kind, kind: part} for kind, part in parts]}

    seen = {"url": url_of(RED)}
    one = [message("user", ("image_url", seen), ("text", "it"))]
    told = [{"role": "system", "content": "find it"}, *one]
    truth = model.encode([item(RED, "it"), item(RED, "it", "find it")])
    assert near(vectors_of(server.post("/v1/embeddings", {"model": NAME, "messages": one})), truth[:1])
    assert near(vectors_of(server.post("/v1/embeddings", {"model": NAME, "messages": [one, told]})), truth)
    mixed = [{"image": url_of(BLUE, "JPEG")}, "a", {"text": "a", "instruction": "find it"}]
    truth = model.encode([Item(images=(tiny.encoded(BLUE, "JPEG"),)), Item("a"), Item("a", instruction="find it")])
    assert near(vectors_of(server.post("/v1/embeddings", {"model": NAME, "input": mixed})), truth)


def test_openai_client(server, model):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        made = client.embeddings.create(model=NAME, input=list(TEXTS))  # asks for base64 unless told otherwise
        assert near([row.embedding for row in made.data], model.encode([Item(text) for text in TEXTS]))
        floats = client.embeddings.create(model=NAME, input="a", encoding_format="float", dimensions=4)
        assert len(floats.data[0].embedding) == 4
        assert [card.id for card in client.models.list()] == [NAME, RANKER]
        for card in client.models.list():
            assert client.models.retrieve(card.id) == card
        for wrong in ("served/vml", "served", "a/b/c", "x" * 300):
            with pytest.raises(openai.NotFoundError, match="unknown model") as caught:
                client.models.retrieve(wrong)
            assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
        with pytest.raises(openai.NotFoundError, match="did you mean 'served/vlm'"):
            client.embeddings.create(model="served/vml", input="a")
        with pytest.raises(openai.BadRequestError) as caught:
            client.embeddings.create(model=NAME, input=["a", ""])
        assert caught.value.param == "input[1]"


def test_rerank(server, folder):
    reranker = Reranker.load(folder / "reranker", device="cpu")
    documents = ["the blue circle", {"text": "red square"}, {"image": url_of(RED)}, {"text": "it", "image": url_of(BLUE)}]
    items = [Item("the blue circle"), Item("red square"), item(RED), item(BLUE, "it")]
    odds = reranker.score(Item("red square"), items)
    for path in ("/v1/rerank", "/v2/rerank", "/rerank"):
        reply = server.post(path, {"query": "red square", "documents": documents, "model": RANKER})
        assert reply.status_code == 200, reply.text
        results = reply.json()["results"]
        assert [row["index"] for row in results] == np.argsort(-odds, kind="stable").tolist()
        assert near([row["relevance_score"] for row in results], 1 / (1 + np.exp(-np.sort(odds)[::-1])))
    asked = {"query": {"image": url_of(RED)}, "documents": documents, "top_n": 2, "return_documents": True}
    best = server.post("/v1/rerank", asked).json()["results"]
    truth = np.argsort(-reranker.score(item(RED), items), kind="stable")[:2].tolist()
    assert [row["index"] for row in best] == truth
    shown = [{"text": given} if isinstance(given, str) else given for given in documents]
    assert [row["document"] for row in best] == [shown[n] for n in truth]


def test_search(server, folder, model):
    index = open_index(folder / "idx", model)
    fused = Fused(Reranker.load(folder / "reranker", device="cpu"), 10)
    rows = index.rows()
    asked = (
        ({"text": "red square"}, Item("red square"), None, False),
        ({"text": "red square", "rerank": True, "k": 12}, Item("red square"), fused, False),
        ({"image": url_of(RED), "text": "it", "instruction": "find it", "k": 3}, item(RED, "it", "find it"), None, False),
        ({"like": rows[4].id, "exclude_self": True, "k": 5}, rows[4].item, None, True),
    )
    for request, query, rerank, own in asked:
        reply = server.post("/v1/search", request)
        assert reply.status_code == 200, reply.text
        truth = index.search(query, request.get("k", 10), rerank, exclude_self=own)
        hits = reply.json()["hits"]
        assert near([hit["score"] for hit in hits], [hit.score for hit in truth])
        for hit, true in zip(hits, truth, strict=True):
            row = index.row(true.id)
            assert (hit["id"], hit["source"], hit["place"]) == (row.id, row.source, row.place)
            assert hit["text"] == row.item.text and hit["images"] == [path.name for path in row.item.images]
            assert hit["rank"] == true.rank
    for unknown in ("40", "-1", "../x", "x" * 60):
        assert server.post("/v1/search", {"like": unknown}).status_code == 404
    assert server.post("/v1/search", {"like": rows[4].id, "text": "a"}).status_code == 400
    assert server.post("/v1/search", {}).status_code == 400


def test_what_operators_need(server, model):
    with server.client() as client:
        assert client.get("/healthz").json() == {"status": "ok"}
        cards = client.get("/v1/models").json()["data"]
        assert [(card["id"], card["kind"]) for card in cards] == [(NAME, "embedder"), (RANKER, "reranker")]
        assert cards[0]["fingerprint"] == model.fingerprint
        assert server.embed("a").status_code == 200
        client.get("/no/such/place")
        numbers = dict(row.rsplit(" ", 1) for row in client.get("/metrics").text.splitlines() if not row.startswith("#"))
    assert float(numbers['hardwon_requests_total{path="/v1/embeddings",status="200"}']) > 0
    assert float(numbers['hardwon_requests_total{path="other",status="404"}']) > 0
    assert float(numbers['hardwon_batch_rows_count{work="encode"}']) > 0
    assert float(numbers["hardwon_pending_requests"]) == 0 and float(numbers["hardwon_held_bytes"]) == 0
    assert not any("/no/such/place" in name for name in numbers)


def test_what_cannot_be_used_is_said(server):
    whole = tiny.encoded(RED)
    place = whole.index(b"IDAT") + 8
    broken = whole[:place] + bytes(20) + whole[place + 20 :]
    large = io.BytesIO()
    from PIL import Image

    Image.new("1", (5000, 4000)).save(large, "PNG")

    def url(content):
        return f"data:image/png;base64,{base64.b64encode(content).decode()}"

    for content, says in (
        (broken, "broken"),
        (whole[:-20], "broken"),
        (b"<html>", "web page"),
        (large.getvalue(), "16,000,000"),
    ):
        reply = server.post("/v1/embeddings", {"model": NAME, "input": ["a", {"image": url(content)}]})
        error = reply.json()["error"]
        assert (reply.status_code, error["param"], error["code"]) == (422, "input[1]", "unusable_item"), error
        assert says in error["message"]
    reply = server.post("/v1/rerank", {"query": {"image": url(broken)}, "documents": ["a"]})
    assert reply.status_code == 422


def test_schema_names_every_answer(server):
    with server.client() as client:
        schema = client.get("/openapi.json").json()
    for path, methods in schema["paths"].items():
        for method, about in methods.items():
            documented = set(about["responses"])
            assert {"200", "403"} <= documented
            assert method == "get" or {"400", "401", "404", "413", "415", "422", "429", "504"} <= documented, path
            for code, reply in about["responses"].items():
                if code != "200":
                    assert reply["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/ErrorReply"}
    assert "HTTPValidationError" not in json.dumps(schema)


def test_langchain(server, model):
    langchain = pytest.importorskip("langchain_openai")
    client = langchain.OpenAIEmbeddings(
        model=NAME, base_url=f"{server.url}/v1", api_key="none", check_embedding_ctx_length=False, max_retries=0
    )
    assert near(client.embed_documents(list(TEXTS)), model.encode([Item(text) for text in TEXTS]))
    assert near(client.embed_query("a"), model.encode([Item("a")])[0])
    shorter = langchain.OpenAIEmbeddings(
        model=NAME, base_url=f"{server.url}/v1", api_key="none", check_embedding_ctx_length=False, dimensions=8
    )
    assert len(shorter.embed_query("a")) == 8
    for tokens in ([1, 2], [[1, 2]]):  # what it sends without that setting: numbers of OpenAI's model
        reply = server.post("/v1/embeddings", {"model": NAME, "input": tokens})
        assert reply.status_code == 400 and "check_embedding_ctx_length=False" in reply.json()["error"]["message"]
