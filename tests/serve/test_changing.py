"""What is answered while the index changes, and what is never told of where it lies."""

import logging
import shutil
import threading

import anyio
import pytest
import tiny
from fakes import FakeEncoder

from hardwon.errors import ArtifactError, DataError
from hardwon.search import Index, StoredIndex, open_index
from hardwon.serve import page as pages
from hardwon.serve import replies
from hardwon.serve.api import Api, Served
from hardwon.serve.limits import Limits, Refused
from hardwon.serve.page import Page, Thumbnails
from hardwon.serve.schemas import SearchRequest
from hardwon.stages.indexing import Wanted, index_path

MODEL = "someone/model"


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "photos"
    root.mkdir()
    for name in ("red-square", "blue-circle"):
        tiny.draw(*name.split("-")).save(root / f"{name}.png")
    (root / "notes.txt").write_text("one")
    return root


@pytest.fixture
def encoder(text_model):
    """Draws vectors that stand for those of the model."""
    return FakeEncoder(text_model.fingerprint, text_model.dim)


@pytest.fixture
def index(folder, tmp_path, encoder):
    index_path(encoder, MODEL, folder, tmp_path / "idx")
    return open_index(tmp_path / "idx", encoder)


@pytest.fixture
def api(index, text_model):
    made = Api(Served(text_model, "m", index), Limits())
    yield made
    made.close()


@pytest.fixture
def page(index):
    return Page(index, {}, None)


def pictured(index, name):
    return next(row for row in index.rows() if row.place.endswith(f"{name}.png"))


def refused(work, *arguments, **more):
    with pytest.raises(Refused) as caught:
        anyio.run(lambda: work(*arguments, **more))
    return caught.value


def test_page_and_searches_see_the_same_index(index, folder, tmp_path, encoder):
    other = index.with_encoder(encoder)
    name = index.about.name
    index_path(encoder, MODEL, folder, tmp_path / "idx", Wanted(rebuild=True))
    (folder / "more.txt").write_text("two")
    index_path(encoder, MODEL, folder, tmp_path / "idx")
    assert len(index) == len(index.rows()) == len(other) == 4  # they look by themselves
    assert index.about == other.about and index.store is other.store and index.about.name != name
    (folder / "notes.txt").unlink()
    index_path(encoder, MODEL, folder, tmp_path / "idx")
    assert len(other.sample(9)[0]) == 3 and other.changes == index.changes > 0


def test_hits_are_answered_as_they_were_found(api, index, folder, tmp_path, encoder, monkeypatch):
    def search(store, *arguments):
        found = true(store, *arguments)
        for path in folder.iterdir():
            path.unlink()
        (folder / "other.txt").write_text("other")
        index_path(encoder, MODEL, folder, tmp_path / "idx")  # before anything can be looked up once more
        return found

    true = type(index.store).search
    monkeypatch.setattr(type(index.store), "search", search)
    reply = anyio.run(api.search, SearchRequest(text="one"))
    assert reply.status_code == 200 and reply.body.count(b'"place"') == 3 and len(index) == 1


def test_a_sample_is_of_one_version(index, folder, tmp_path, encoder, monkeypatch):
    def vectors(store, ids):
        monkeypatch.setattr(type(store), "vectors", true)
        (folder / "notes.txt").unlink(missing_ok=True)
        index_path(encoder, MODEL, folder, tmp_path / "idx")
        index.refresh()
        return true(store, ids)

    true = type(index.store).vectors
    monkeypatch.setattr(type(index.store), "vectors", vectors)
    rows, sampled = index.sample(9)
    assert len(rows) == 2
    assert (sampled * encoder.encode([row.item for row in rows])).sum(axis=1) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("kind", ["followed", "recipe"])
def test_ids_that_are_none(index, tmp_path, encoder, kind, text_model):
    if kind == "recipe":
        items = [row.item for row in index.rows()]
        Index.build(encoder, items, progress="").save(tmp_path / "run/index")
        (tmp_path / "run/model.json").write_text('{"model": "some/name"}')
        index = open_index(tmp_path / "run", encoder)
    page, api = Page(index, {}, None), Api(Served(text_model, "m", index), Limits())
    for wrong in ("999", "../../etc", "x" * 32, "A" * 32, "0" * 32, "\u00e9"):
        assert refused(page.items, wrong).status == refused(page.thumbnail, wrong).status == 404, wrong
        assert refused(api.search, SearchRequest(like=wrong)).status == 404, wrong
    assert refused(page.thumbnail, next(row.id for row in index.rows() if row.picture is None)).status == 404
    api.close()


def test_thumbnails_follow_what_they_show(page, index, folder, tmp_path, encoder):
    row = pictured(index, "red-square")
    first = anyio.run(page.thumbnail, row.id, row.content)
    assert "max-age" in first.headers["cache-control"]
    shutil.copy(folder / "blue-circle.png", folder / "red-square.png")
    index_path(encoder, MODEL, folder, tmp_path / "idx")
    second = anyio.run(page.thumbnail, row.id, row.content)
    assert second.body != first.body and second.headers["cache-control"] == "no-store"  # under the address of the first
    row = pictured(index, "red-square")
    assert anyio.run(page.thumbnail, row.id, row.content).headers["cache-control"] != "no-store"
    assert f'"content":"{row.content}"'.encode() in anyio.run(page.items, row.id).body


def test_thumbnails_asked_for_last_are_kept(tmp_path):
    paths = []
    for size in range(40, 44):
        paths.append(tmp_path / f"{size}.png")
        tiny.draw("red", "square", size).save(paths[-1])
    size = len(Thumbnails()("a", paths[0]))
    thumbnails = Thumbnails(3 * size + size // 2)
    for path in (*paths[:3], paths[0], paths[3]):
        thumbnails(path.name, path)
    for path in paths:
        path.unlink()
    assert thumbnails(paths[0].name, paths[0]) and thumbnails(paths[3].name, paths[3])
    with pytest.raises(DataError):
        thumbnails(paths[1].name, paths[1])


def test_nothing_tells_where_things_lie(page, api, index, folder, tmp_path, caplog):
    row = pictured(index, "red-square")
    row.picture.unlink()
    with caplog.at_level(logging.WARNING):
        for error in (refused(page.thumbnail, row.id), refused(api.search, SearchRequest(like=row.id))):
            assert error.status == 422 and "log" in error.message and str(tmp_path) not in error.message
        assert caplog.text.count(str(row.picture)) >= 2
        for error, status in ((ArtifactError(f"{tmp_path} is damaged"), 503), (DataError(f"leads out of {tmp_path}"), 422)):
            caplog.clear()
            reply = replies.explained(error, "/v1/search")
            assert reply.status_code == status and str(tmp_path).encode() not in reply.body
            assert str(tmp_path) in caplog.text


def test_the_index_is_read_in_threads(page, api, index, monkeypatch):
    here, row = threading.get_ident(), index.rows()[0]

    def watched(name, true):
        def asked(*arguments, **more):
            assert threading.get_ident() != here, name
            return true(*arguments, **more)

        return asked

    for name in ("__len__", "rows", "sample", "search_many"):
        monkeypatch.setattr(StoredIndex, name, watched(name, getattr(StoredIndex, name)))
    for work in (page.about, page.sample, lambda: page.items(row.id), lambda: api.search(SearchRequest(text="one"))):
        assert anyio.run(work).status_code == 200
    refused(api.search, SearchRequest(like="0" * 32))


def test_a_map_is_not_drawn_all_the_time(page, folder, tmp_path, encoder, monkeypatch):
    def change(text):
        (folder / "notes.txt").write_text(text)
        index_path(encoder, MODEL, folder, tmp_path / "idx")
        return anyio.run(page._draw)

    first = anyio.run(page._draw)
    assert change("two") is first
    monkeypatch.setattr(pages, "REDRAWN_S", 0.0)
    second = anyio.run(page._draw)
    assert second is not first  # although there are as many rows as before
    assert anyio.run(page._draw) is second
    monkeypatch.setattr(type(second.plane), "computing", True)
    assert change("three") is second
    page.close()
