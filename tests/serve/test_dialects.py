"""Requests as the clients of other servers send them: what plays no part is accepted, what cannot be honoured is refused."""

import base64

import numpy as np
import openai
import pytest
import tiny
from openai.types.create_embedding_response import CreateEmbeddingResponse
from serving import NAME, RANKER, url_of

from hardwon.items import Item
from hardwon.models import Reranker
from hardwon.models.length import shortened
from hardwon.serve.api import Api, Served
from hardwon.serve.limits import Limits, Refused

RED, BLUE = tiny.draw("red", "square"), tiny.draw("blue", "circle")
SEEN = (tiny.encoded(RED),)
BARE = base64.b64encode(SEEN[0]).decode()
ASKED = {"model": NAME, "input": "a"}


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def reranker(folder):
    return Reranker.load(folder / "reranker", device="cpu")


def refused(server, path, asked):
    reply = server.post(path, asked)
    assert reply.status_code == 400, reply.text
    return reply.json()["error"]


def turn(role, *parts):
    return {"role": role, "content": [{"type": kind, kind: part} for kind, part in parts]}


def vectors(server, **asked):
    reply = server.post("/v1/embeddings", {"model": NAME, **asked})
    assert reply.status_code == 200, reply.text
    return np.array([row["embedding"] for row in reply.json()["data"]], dtype=np.float32)


def order(server, path="/v1/rerank", **asked):
    reply = server.post(path, asked)
    assert reply.status_code == 200, reply.text
    return [(row["index"], round(row["relevance_score"], 5)) for row in reply.json()["results"]]


def truth(reranker, query, items):
    odds = reranker.score(query, items)
    return [(n, round(1 / (1 + float(np.exp(-odds[n]))), 5)) for n in np.argsort(-odds, kind="stable").tolist()]


class TestVLLM:
    def test_chat_embeddings_as_its_documentation_sends_them(self, client, model):
        for url, said in ((url_of(RED), ""), (url_of(RED), "it"), (None, "it")):
            seen = [("image_url", {"url": url, "detail": "high"})] if url else []
            body = {
                "model": NAME,
                "messages": [
                    turn("system", ("text", "find it")),
                    turn("user", *seen, ("text", said)),
                    turn("assistant", ("text", "")),
                ],
                "encoding_format": "float",
                "continue_final_message": True,
                "add_special_tokens": True,
            }
            made = client.post("/embeddings", cast_to=CreateEmbeddingResponse, body=body)
            sure = model.encode([Item(said, SEEN if url else (), "find it")])
            np.testing.assert_allclose(np.array([row.embedding for row in made.data]), sure, atol=1e-5)

    def test_other_ways_to_say_the_same(self, server, model):
        sure = model.encode([Item("it", SEEN)])
        plain = turn("user", ("image_url", url_of(RED)), ("text", "it"))
        for more in (
            {"add_generation_prompt": False, "request_id": "1", "priority": 0, "cache_salt": "b", "user": "me"},
            {"truncate_prompt_tokens": -1, "padding": "do_not_pad", "chat_template": None, "normalize": True},
            {"chat_template_kwargs": {}, "mm_processor_kwargs": None, "embed_dtype": "float32", "endianness": "little"},
        ):
            np.testing.assert_allclose(vectors(server, messages=[plain], **more), sure, atol=1e-5)
        for empty in ("", None, []):
            talks = [[plain, {"role": "assistant", "content": empty}], [plain]]
            np.testing.assert_allclose(vectors(server, messages=talks), np.repeat(sure, 2, axis=0), atol=1e-5)

    @pytest.mark.parametrize(
        ("field", "value", "says"),
        [
            ("truncate_prompt_tokens", 8, "a text that is too long is cut to what the model reads: leave it out, or send -1"),
            ("normalize", False, "vectors have unit length: leave it out, or send true"),
            ("use_activation", False, "send true"),
            ("chat_template", "{{ x }}", "the model's own form: leave it out"),
            ("mm_processor_kwargs", {"max_pixels": 9}, "the model's own form"),
            ("embed_dtype", "float16", "send 'float32'"),
            ("padding", "max_length", "send 'do_not_pad'"),
            ("no_such_field", 1, "there is no field 'no_such_field'"),
        ],
    )
    def test_what_would_change_the_vectors_is_refused(self, server, field, value, says):
        error = refused(server, "/v1/embeddings", {**ASKED, field: value})
        assert error["param"] == field
        assert says in error["message"]

    def test_errors_say_what_is_wrong_with_a_message(self, server):
        user, said = turn("user", ("text", "a")), [{"role": "assistant", "content": "so"}]
        for messages, param, says in (
            ([user, *said], "messages[0]", "the message of the assistant must be empty"),
            (said, "messages[0]", "the message of the assistant must be empty"),
            ([[user], [user, *said]], "messages[1]", "the message of the assistant must be empty"),
            ([{"role": "assistant", "content": ""}], "messages[0]", "one message of the user"),
            ([user, user], "messages[0]", "one message of the user"),
            ([{"role": "tool", "content": "a"}], "messages[0]", "role: Input should be 'system', 'user' or 'assistant'"),
            ([turn("user", ("text", ""))], "messages[0]", "needs text, a picture"),
            ([turn("user", ("image_url", "x.png"))], "messages[0]", "'x.png' is not opened"),
            (
                [turn("user", ("image_url", {"url": url_of(RED), "detail": "tiny"}))],
                "messages[0][0]",
                "detail: Input should be",
            ),
        ):
            error = refused(server, "/v1/embeddings", {"model": NAME, "messages": messages})
            assert error["param"] == param, error
            assert says in error["message"]


class TestJina:
    def test_vectors(self, server, model):
        sure = model.encode([Item("a"), Item(images=SEEN)])
        told = {"task": "retrieval.query", "normalized": True, "embedding_type": "float", "truncate": True}
        made = vectors(server, input=[{"text": "a"}, {"image": BARE}], late_chunking=False, **told)
        np.testing.assert_allclose(made, sure, atol=1e-5)
        reply = server.post("/v1/embeddings", {**ASKED, "embedding_type": "base64"}).json()
        made = np.frombuffer(base64.b64decode(reply["data"][0]["embedding"]), dtype="<f4")
        np.testing.assert_allclose(made, sure[0], atol=1e-5)

    @pytest.mark.parametrize(
        ("more", "says"),
        [
            ({"normalized": False}, "vectors have unit length"),
            ({"embedding_type": "binary"}, "send 'float' or 'base64'"),
            ({"embedding_type": "base64", "encoding_format": "float"}, "say different things"),
            ({"truncate": False}, "send true"),
            ({"late_chunking": True}, "send false"),
            ({"return_multivector": True}, "send false"),
        ],
    )
    def test_what_would_change_the_vectors_is_refused(self, server, more, says):
        assert says in refused(server, "/v1/embeddings", {**ASKED, **more})["message"]

    def test_a_task_that_the_model_has_a_prompt_for(self, text_model):
        api = Api(Served(text_model, "m"), Limits())
        prompts = text_model.body.model.prompts
        kept = dict(prompts)
        try:
            api._check_task("retrieval.passage")
            prompts["document"] = "passage: "
            with pytest.raises(Refused, match="has a prompt 'document' of its own") as caught:
                api._check_task("retrieval.passage")
            assert (caught.value.status, caught.value.param) == (400, "task")
            api._check_task("text-matching")
        finally:
            prompts.clear()
            prompts.update(kept)
            api.close()

    def test_only_a_picture_is_taken_for_one(self, server):
        for odd in (
            "pictures/kite",
            "file",
            "/etc/passwd",
            "http://127.0.0.1:1/x.png",
            BARE + "!",
            BARE[:-1],
            "AAAA",
            "Qk1.png",
        ):
            error = refused(server, "/v1/embeddings", {"model": NAME, "input": [{"image": odd}]})
            assert (error["param"], error["code"]) == ("input[0]", "picture_not_inline")
            assert "this server fetches no addresses and reads no files" in error["message"]
        cut = base64.b64encode(SEEN[0][:40]).decode()
        assert server.post("/v1/embeddings", {"model": NAME, "input": [{"image": cut}]}).status_code == 422

    def test_reranking(self, server, reranker):
        documents, items = ["red square", {"image": BARE}, {"text": "a"}], [Item("red square"), Item(images=SEEN), Item("a")]
        asked = {
            "model": RANKER,
            "query": {"image": BARE},
            "documents": documents,
            "truncation": True,
            "return_documents": None,
        }
        assert order(server, **asked) == truth(reranker, Item(images=SEEN), items)
        error = refused(server, "/v1/rerank", {**asked, "truncation": False})
        assert (error["param"], "is cut to what the model reads" in error["message"]) == ("truncation", True)


class TestCohere:
    def test_the_second_version(self, server, reranker):
        documents = ["the blue circle " * 4, "red square", "it"]
        cut = [Item(shortened(text, reranker.body.tokenizer, 3)) for text in documents]
        assert cut[0].text.strip() == "the blue circle"
        asked = {"model": RANKER, "query": "a", "documents": documents, "priority": 3}
        assert order(server, "/v2/rerank", **asked, max_tokens_per_doc=3) == truth(reranker, Item("a"), cut)
        whole = truth(reranker, Item("a"), [Item(text) for text in documents])
        assert order(server, "/v2/rerank", **asked, max_tokens_per_doc=4096) == whole != truth(reranker, Item("a"), cut)
        for path, version in (("/v2/rerank", "2"), ("/v1/rerank", "1"), ("/rerank", "1")):
            reply = server.post(path, asked).json()
            assert reply["meta"] == {
                "api_version": {"version": version},
                "tokens": {"input_tokens": reply["usage"]["total_tokens"]},
            }

    def test_the_first_version(self, server, reranker):
        documents = [
            {"title": "red", "text": "square", "image": BARE, "year": 3, "tags": ["a"]},
            {"title": "blue", "text": "circle", "url": None},
            {"title": "a", "text": None},
        ]
        asked = {"query": "red square", "documents": documents, "max_chunks_per_doc": 1}
        seen = [Item("square", SEEN), Item("circle")]
        assert order(server, **{**asked, "documents": documents[:2]}) == truth(reranker, Item("red square"), seen)
        for fields, items in (
            (["title", "text"], [Item("red\nsquare"), Item("blue\ncircle"), Item("a")]),
            (["text", "title"], [Item("square\nred"), Item("circle\nblue"), Item("a")]),
            (["title", "image"], [Item("red", SEEN), Item("blue"), Item("a")]),
        ):
            assert order(server, **asked, rank_fields=fields) == truth(reranker, Item("red square"), items)
        best = server.post("/v1/rerank", {**asked, "rank_fields": ["title"], "return_documents": True}).json()["results"]
        assert [row["document"] for row in best] == [documents[row["index"]] for row in best]

    @pytest.mark.parametrize(
        ("more", "param", "says"),
        [
            ({}, "documents[0]", "holds nothing to read in text, image"),
            ({"rank_fields": ["body"]}, "documents[0]", "holds nothing to read in body"),
            ({"rank_fields": ["year"]}, "documents[0]", "its 'year' is no string"),
            ({"rank_fields": ["title"], "max_chunks_per_doc": 10}, "max_chunks_per_doc", "documents are not read in chunks"),
            ({"max_tokens_per_doc": 0}, "max_tokens_per_doc", "greater than or equal to 1"),
        ],
    )
    def test_what_cannot_be_honoured_is_refused(self, server, more, param, says):
        error = refused(server, "/v1/rerank", {"query": "a", "documents": [{"title": "b", "year": 3}], **more})
        assert error["param"] == param
        assert says in error["message"]
