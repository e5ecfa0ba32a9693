"""Weights that are divided among processes (FSDP2) learn what whole ones learn."""

import processes
import pytest
import torch

from hardwon.errors import RecipeError
from hardwon.losses import InfoNCE
from hardwon.models import Embedder, Reranker
from hardwon.training import Settings, train

NAMES = ("kept", "some kept", "few", "lists", "mixed")
UNSEEN = "self.key.bias"  # see test_gradients


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module")
def works(tiny_text, tiny_vlm, pictures, folder):
    reranker = folder / "reranker"
    Reranker.start_from(Embedder.load(tiny_text, device="cpu"), layers=1).save(reranker)
    return processes.sharding, str(tiny_text), str(reranker), str(tiny_vlm), pictures


@pytest.fixture(scope="module")
def two(works, folder):
    return processes.together(2, folder / "results", (*works, str(folder / "two")))


@pytest.fixture(scope="module")
def alone(works, folder):
    work, *arguments = works
    return work(*arguments, str(folder / "one"))


@pytest.mark.parametrize("name", NAMES)
def test_losses_and_norms_are_those_of_one_process(two, alone, name):
    for (made,) in two:
        for found, truth in zip(made[name]["losses"], alone[name]["losses"], strict=True):
            assert found == pytest.approx(truth, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_whole_again_and_those_of_one_process(two, alone, name):
    first, second = two[0][0][name], two[1][0][name]
    assert first["kinds"] == {torch.nn.Parameter}
    assert first["weights"].keys() == alone[name]["weights"].keys()
    for key, truth in alone[name]["weights"].items():
        assert torch.equal(first["weights"][key], second["weights"][key]), key
        if UNSEEN not in key:
            assert float((first["weights"][key] - truth).square().mean().sqrt()) < 1e-5, key


def test_the_model_can_be_used_again(two, alone):
    torch.testing.assert_close(two[0][0]["kept"]["outputs"], alone["kept"]["outputs"], rtol=1e-4, atol=1e-5)


def test_nothing_is_validated(text_model):
    with pytest.raises(RecipeError, match="no process holds the whole model"):
        train(text_model, processes.examples(), InfoNCE(0.1), steps=1, settings=Settings(shard=True), validate=(1, float))
