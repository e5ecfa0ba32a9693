"""Helpers for training. hardwon is imported inside functions: the shape checks install themselves before it."""

import pytest
import tiny


def weights_of(model):
    """A copy of all weights and buffers."""
    return {name: value.clone() for name, value in model.module.state_dict().items()}


@pytest.fixture
def weights():
    return weights_of


@pytest.fixture
def texts():
    return tiny.texts()


@pytest.fixture
def shapes(pictures):
    return tiny.examples(pictures)


@pytest.fixture
def fresh_text(tiny_text):
    """Loads the text model anew, as often as it is called."""
    from hardwon.models import Embedder

    return lambda: Embedder.load(tiny_text, device="cpu")


@pytest.fixture
def fresh_vlm(tiny_vlm):
    from hardwon.models import Embedder

    return lambda: Embedder.load(tiny_vlm, device="cpu")
