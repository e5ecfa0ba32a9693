"""The architectures of `vlms`, made when first asked for, and pictures of several sizes.

hardwon is imported inside functions: the shape checks come first.
"""

from types import SimpleNamespace

import pytest
import tiny
import vlms
from PIL import Image

DECODERS = vlms.DECODERS | vlms.WITHOUT_VIDEO
KINDS = vlms.DUAL | DECODERS


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Folder by architecture, made when first asked for; never write into one."""

    class Made(dict):
        def __missing__(self, name):
            self[name] = KINDS[name](tmp_path_factory.mktemp("vlms") / name.replace(" ", "-"))
            return self[name]

    return Made()


@pytest.fixture(scope="session")
def models(folders):
    """Folder, hardwon's and sentence-transformers' model by architecture, made when first asked for. Not to be changed."""
    from hardwon.models import Embedder  # isort: skip  (first: it makes a broken torchvision importable)
    from sentence_transformers import SentenceTransformer

    class Made(dict):
        def __missing__(self, name):
            folder = folders[name]
            plain = SentenceTransformer(str(folder), device="cpu")
            if name == "siglip":  # as it was trained; see test_siglip_does_not_depend_on_its_neighbours
                plain[0].processing_kwargs = {"text": {"padding": "max_length"}}
            self[name] = SimpleNamespace(name=name, folder=folder, ours=Embedder.load(folder, device="cpu"), theirs=plain)
            return self[name]

    return Made()


@pytest.fixture(scope="session")
def shapes(pictures, tmp_path_factory):
    """Pictures of several sizes by name."""
    home = tmp_path_factory.mktemp("sizes")
    made = {"plain": pictures["red square"], "other": pictures["blue circle"]}
    for name, size in {"wide": (120, 40), "tall": (30, 90), "large": (300, 220), "dot": (1, 1), "line": (150, 1)}.items():
        made[name] = home / f"{name}.png"
        tiny.draw("green", "triangle", 200).resize(size, Image.Resampling.NEAREST).save(made[name])
    return made


@pytest.fixture(params=KINDS)
def any_model(request, models):
    return models[request.param]


@pytest.fixture(params=vlms.DUAL)
def dual(request, models):
    return models[request.param]


@pytest.fixture(params=DECODERS)
def decoder(request, models):
    return models[request.param]
