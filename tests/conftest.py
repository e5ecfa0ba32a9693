"""Models and pictures that many tests share. hardwon is imported inside functions: the shape checks come before it."""

import gc
import sys
from pathlib import Path

import hypothesis
import pytest
import torch

sys.path.append(str(Path(__file__).parent))  # for `import tiny`

import tiny

hypothesis.settings.register_profile("unhurried", deadline=None)  # a busy machine is no defect
hypothesis.settings.load_profile("unhurried")
torch.set_num_threads(1)  # tiny matrices, and results that do not depend on the number of cores


@pytest.fixture(scope="module")
def little_garbage():
    """What is in memory already is left alone by `gc.collect`, which takes half a second once transformers is loaded."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def tiny_vlm(tmp_path_factory):
    """Folder of a model that reads text and pictures; never write into it."""
    return tiny.build_vlm(tmp_path_factory.mktemp("tiny") / "vlm")


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory):
    """Folder of a model that reads text only; never write into it."""
    import hardwon.models  # noqa: F401  (before anything imports transformers: see torchvision_guard)

    return tiny.build_text(tmp_path_factory.mktemp("tiny") / "text")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Paths of twenty small PNG files by caption."""
    return tiny.draw_all(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def vlm(tiny_vlm):
    """A fresh embedder that reads text and pictures."""
    from hardwon.models import Embedder

    return Embedder.load(tiny_vlm, device="cpu")


@pytest.fixture
def text_model(tiny_text):
    """A fresh embedder that reads text only."""
    from hardwon.models import Embedder

    return Embedder.load(tiny_text, device="cpu")
