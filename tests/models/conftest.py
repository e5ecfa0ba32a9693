"""The architectures of `vlms`, made when first asked for. hardwon is imported inside functions: the shape checks come first."""

from types import SimpleNamespace

import pytest
import vlms

DECODERS = vlms.DECODERS | vlms.WITHOUT_VIDEO
KINDS = vlms.DUAL | DECODERS


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Folder, hardwon's and sentence-transformers' model by architecture, made when first asked for. Not to be changed."""
    from hardwon.models import Embedder  # isort: skip  (first: it makes a broken torchvision importable)
    from sentence_transformers import SentenceTransformer

    class Made(dict):
        def __missing__(self, name):
            folder = KINDS[name](tmp_path_factory.mktemp("vlms") / name.replace(" ", "-"))
            plain = SentenceTransformer(str(folder), device="cpu")
            if name == "siglip":  # as it was trained; see test_siglip_does_not_depend_on_its_neighbours
                plain[0].processing_kwargs = {"text": {"padding": "max_length"}}
            self[name] = SimpleNamespace(name=name, folder=folder, ours=Embedder.load(folder, device="cpu"), theirs=plain)
            return self[name]

    return Made()


@pytest.fixture(params=KINDS)
def any_model(request, models):
    return models[request.param]


@pytest.fixture(params=vlms.DUAL)
def dual(request, models):
    return models[request.param]


@pytest.fixture(params=DECODERS)
def decoder(request, models):
    return models[request.param]
