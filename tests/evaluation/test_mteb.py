"""Our models in mteb itself, on its own small tasks, without a network."""

import io
import json
import socket
import sys

import numpy as np
import pytest
from mteb import evaluate
from mteb.cache import ResultCache
from mteb.mocks import mock_tasks
from mteb.models import CrossEncoderProtocol, EncoderProtocol
from mteb.results import TaskResult
from mteb.types import PromptType
from PIL import Image

from hardwon.errors import MissingExtra, ModelError
from hardwon.evaluation.mteb import MtebEncoder, MtebReranker
from hardwon.items import Item
from hardwon.models import Reranker

# mteb's tasks have too few rows for some of the measures that it computes beside the main one.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
TASKS = {
    "text retrieval": "MockRetrievalTask",
    "classification": "MockClassificationTask",
    "similarity": "MockSTSTask",
    "pictures": "MockImageClassificationTask",
    "picture to text": "MockAny2AnyRetrievalI2TTask",
    "pictures with texts": "MockImageTextPairClassificationTask",
    "instructions": "MockInstructionRetrieval",
}


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No network: whoever tries it fails."""

    def refuse(*_):
        raise OSError("this test has no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def model(vlm):
    return MtebEncoder(vlm, "us/tiny")


def run(model, name, folder):
    return evaluate(model, getattr(mock_tasks, name)(), cache=ResultCache(cache_path=folder), show_progress_bar=False)


@pytest.mark.parametrize("what", TASKS)
def test_mteb_asks_our_embedder(what, model, tmp_path):
    assert isinstance(model, EncoderProtocol)
    (result,) = run(model, TASKS[what], tmp_path).task_results
    assert -1 <= result.get_score() <= 1
    folder = tmp_path / "results" / "us__tiny" / model.embedder.fingerprint
    kept = TaskResult.from_disk(folder / f"{result.task_name}.json").get_score()
    assert kept == pytest.approx(result.get_score(), abs=1e-12)
    about = json.loads((folder / "model_meta.json").read_text())
    assert (about["name"], about["revision"], about["embed_dim"]) == ("us/tiny", model.embedder.fingerprint, model.embedder.dim)
    assert about["modalities"] == ["text", "image"]


def test_mteb_asks_our_reranker(vlm, tmp_path):
    model = MtebReranker(Reranker.start_from(vlm, layers=1), "us/tiny-reranker")
    assert isinstance(model, CrossEncoderProtocol)
    assert not isinstance(model, EncoderProtocol)
    (result,) = run(model, "MockRerankingTask", tmp_path).task_results
    assert 0 <= result.get_score() <= 1


class Task:
    name, type = "Kites", "Retrieval"


def encode(model, *batches, side=None):
    return model.encode(batches, task_metadata=Task, hf_split="test", hf_subset="default", prompt_type=side)


def test_vectors_are_those_of_the_embedder(model, vlm, pictures):
    red = Image.open(pictures["red square"])
    made = encode(model, {"text": ["a bar", "red"], "image": [red, None]}, {"text": ["blue"]})
    truth = vlm.encode([Item("a bar", (pictures["red square"],)), Item(text="red"), Item(text="blue")])
    np.testing.assert_allclose(made, truth, atol=1e-6)
    np.testing.assert_allclose(encode(model, {"image": [red]}), vlm.encode([Item(images=(pictures["red square"],))]), atol=1e-6)
    scores = model.similarity(made, made)
    np.testing.assert_allclose(scores, truth @ truth.T, atol=1e-6)
    np.testing.assert_allclose(model.similarity_pairwise(made, made[::-1].copy()), (truth * truth[::-1]).sum(1), atol=1e-6)
    np.testing.assert_allclose(model.similarity(made[0], made[1])[0, 0], truth[0] @ truth[1], atol=1e-6)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "F", "I", "I;16", "P", "LA", "1"])
def test_pictures_of_every_kind_of_pixels_are_read(mode, model, vlm, pictures):
    shown = Image.open(pictures["red square"])
    shown = (shown.convert("L") if mode == "I;16" else shown).convert(mode)
    truth = vlm.encode([Item(images=(png(shown.convert("RGB")),))]) if mode in {"CMYK", "YCbCr", "HSV", "F"} else None
    made = encode(model, {"image": [shown]})
    assert made.shape == (1, vlm.dim)
    if truth is not None:
        np.testing.assert_allclose(made, truth, atol=1e-6)


def png(image):
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def test_queries_get_the_instruction_and_documents_do_not(vlm):
    told = MtebEncoder(vlm, "us/tiny", {"Kites": "find: ", "Retrieval": "never"})
    truth = {text: vlm.encode([Item(text="red", instruction=text)]) for text in ("find: ", "")}
    batch = {"text": ["red"]}
    np.testing.assert_allclose(encode(told, batch, side=PromptType.query), truth["find: "], atol=1e-6)
    np.testing.assert_allclose(encode(told, batch, side=PromptType.document), truth[""], atol=1e-6)
    vlm.body.model.prompts = {"query": "ask: ", "document": "tell: "}
    for side, prompt in ((PromptType.query, "ask: "), (PromptType.document, "tell: ")):
        made = encode(MtebEncoder(vlm, "us/tiny"), batch, side=side)
        np.testing.assert_allclose(made, vlm.encode([Item(text="red", instruction=prompt)]), atol=1e-6)
    own = {"text": ["red and blue"], "query": ["red"], "instruction": ["and blue"]}
    made = encode(MtebEncoder(vlm, "us/tiny", {"Kites": "find"}), own, side=PromptType.query)
    np.testing.assert_allclose(made, vlm.encode([Item(text="red", instruction="find and blue")]), atol=1e-6)


def test_another_model_never_finds_these_results(model, vlm, tmp_path):
    import torch

    run(model, "MockRetrievalTask", tmp_path)
    with torch.no_grad():
        next(iter(vlm.module.parameters())).add_(0.01)
    run(MtebEncoder(vlm, "us/tiny"), "MockRetrievalTask", tmp_path)
    assert len(list((tmp_path / "results" / "us__tiny").iterdir())) == 2


def test_other_instructions_never_find_these_results(vlm, tmp_path):
    told = [MtebEncoder(vlm, "us/tiny", words) for words in (None, {}, {"Retrieval": "find: "}, {"Retrieval": "name: "})]
    revisions = [model.mteb_model_meta.revision for model in told]
    assert revisions[:2] == [vlm.fingerprint] * 2
    assert len(set(revisions)) == 3
    for model in told[1:]:
        run(model, "MockRetrievalTask", tmp_path)
    assert len(list((tmp_path / "results" / "us__tiny").iterdir())) == 3


def test_what_cannot_be_asked_says_why(vlm, model, monkeypatch):
    with pytest.raises(ModelError, match="is owner/model, got 'tiny'"):
        MtebEncoder(vlm, "tiny")
    with pytest.raises(ModelError, match="a task with audio cannot be asked"):
        encode(model, {"text": ["a"], "audio": [{"array": [0.0]}]})
    monkeypatch.setitem(sys.modules, "mteb.models", None)
    with pytest.raises(MissingExtra, match=r"pip install 'hardwon\[mteb\]'"):
        MtebEncoder(vlm, "us/tiny")
