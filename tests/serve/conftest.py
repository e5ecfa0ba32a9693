import re
import shutil

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


@pytest.fixture(scope="module")
def browser():
    """A headless browser; without one what needs it is skipped."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("there is no chromium on the PATH: apt-get install chromium")
    with sync_api.sync_playwright() as player:
        made = player.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def opened(browser):
    """Opens pages, and afterwards looks at what they said and whom they asked."""
    pages, said, asked = [], [], []

    def open_page(url, width=1280, **more):
        context = browser.new_context(viewport={"width": width, "height": 800}, reduced_motion="reduce", **more)
        page = context.new_page()
        page.set_default_timeout(90_000)  # a browser on a busy machine
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("console", lambda message: said.append(message.text) if "Security Policy" in message.text else None)
        page.on("request", lambda request: asked.append(request.url))
        page.on("dialog", lambda dialog: said.append(f"dialog {dialog.message}"))
        page.goto(url)
        pages.append((context, re.match(r"https?://[^/]+", url)[0]))
        return page

    yield open_page
    for context, home in pages:
        assert not [url for url in asked if not url.startswith((home, "data:", "blob:"))]
        context.close()
    assert not said
