import pytest
import serving


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """What is served; never write into it."""
    return serving.build(tmp_path_factory.mktemp("served-parent") / "served")


@pytest.fixture(scope="session")
def server(folder, tmp_path_factory):
    """A server with an index and a reranker; leave it as it was."""
    with serving.running(folder, tmp_path_factory.mktemp("log") / "log", "--rerank", str(folder / "reranker")) as made:
        yield made


@pytest.fixture(scope="session")
def model(folder):
    """The model that is served, here."""
    from hardwon.models import Embedder

    return Embedder.load(folder / "vlm", device="cpu")
