"""Saved indexes: a folder opens as it was written or not at all."""

import json
import random

import numpy as np
import pytest
from fakes import FakeEncoder
from hypothesis import given, settings
from hypothesis import strategies as st

from hardwon import artifacts
from hardwon.errors import ArtifactError, DataError
from hardwon.items import Item
from hardwon.search import Index
from hardwon.search import index as index_module


def texts(count):
    return [Item(text=f"text {n}") for n in range(count)]


def ids(hits):
    return [hit.id for hit in hits]


def test_a_saved_index_is_the_same(mixed, tmp_path):
    encoder = FakeEncoder()
    index = Index.build(encoder, mixed)
    index.save(tmp_path / "out" / "index")
    loaded = Index.load(str(tmp_path / "out" / "index"), encoder)
    assert loaded.items == index.items and loaded.contents == index.contents
    assert np.array_equal(loaded.vectors, index.vectors) and not loaded.vectors.flags.writeable
    assert loaded.search(mixed[2], 3) == index.search(mixed[2], 3)
    assert ids(loaded.search(mixed[1], 5, exclude_self=True)) == ids(index.search(mixed[1], 5, exclude_self=True))
    manifest = artifacts.load(tmp_path / "out" / "index", "index")
    assert manifest.inputs == {"encoder": "fake-1", "root": "../../pictures"}
    assert manifest.stats == {"items": 5, "dim": 12}


def test_an_index_of_words_only(tmp_path):
    Index.build(FakeEncoder(), texts(3)).save(tmp_path / "index")
    assert Index.load(tmp_path / "index").items == tuple(texts(3))


def test_an_index_of_videos_only(pictures, tmp_path):
    items = [Item(video=(pictures[2], pictures[1])), Item(video=(pictures[1].read_bytes(),))]
    Index.build(FakeEncoder(), items[:1]).save(tmp_path / "out" / "index")
    assert Index.load(tmp_path / "out" / "index").items == (items[0],)
    with pytest.raises(DataError, match="held as bytes"):
        Index.build(FakeEncoder(), items).save(tmp_path / "other")


def test_an_index_moves_with_its_pictures(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.png").write_bytes(b"a")
    Index.build(FakeEncoder(), [Item(images=(tmp_path / "one" / "a.png",))]).save(tmp_path / "one" / "index")
    (tmp_path / "one").rename(tmp_path / "two")
    loaded = Index.load(tmp_path / "two" / "index")
    assert loaded.items[0].images == (tmp_path / "two" / "a.png",)
    assert loaded.items[0].content == loaded.contents[0]


def test_relative_paths_and_links_are_followed_when_saving(tmp_path, monkeypatch):
    (tmp_path / "far").mkdir()
    (tmp_path / "near").mkdir()
    (tmp_path / "far" / "a.png").write_bytes(b"a")
    (tmp_path / "near" / "link.png").symlink_to(tmp_path / "far" / "a.png")
    (tmp_path / "near" / "b.png").write_bytes(b"b")
    monkeypatch.chdir(tmp_path / "near")
    items = [Item(images=(tmp_path / "near" / name,)) for name in ("link.png", "b.png")]
    Index.build(FakeEncoder(), items).save("index")
    assert [item.key for item in Index.load(tmp_path / "near" / "index").items] == [item.key for item in items]


def test_pictures_as_bytes_are_searched_but_not_saved(tmp_path, pictures):
    index = Index.build(FakeEncoder(), [Item(images=(pictures[0].read_bytes(),)), *texts(2)])
    assert index.search(Item(images=(pictures[0],)), 1)[0].id == 0
    with pytest.raises(DataError, match="held as bytes"):
        index.save(tmp_path / "index")
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize(("fingerprint", "dim"), [("fake-2", 12), ("fake-1", 13)])
def test_another_encoder_is_refused(tmp_path, fingerprint, dim):
    Index.build(FakeEncoder(), texts(3)).save(tmp_path / "index")
    with pytest.raises(ArtifactError) as error:
        Index.load(tmp_path / "index", FakeEncoder(fingerprint, dim))
    for part in ("encoder fake-1 (width 12)", f"{fingerprint} (width {dim})", "Index.build(encoder, index.items)"):
        assert part in str(error.value)


def test_without_an_encoder_one_can_read_but_not_search(tmp_path):
    Index.build(FakeEncoder(), texts(3)).save(tmp_path / "index")
    index = Index.load(tmp_path / "index")
    assert len(index) == 3 and index.fingerprint == "fake-1" and index.encoder is None
    with pytest.raises(ArtifactError, match=r"without its encoder: Index\.load\(path, encoder\)"):
        index.search(Item("q"))


def test_a_flipped_bit_anywhere_is_noticed_or_changes_nothing(mixed, tmp_path):
    index, path = Index.build(FakeEncoder(), mixed), tmp_path / "index"
    index.save(path)
    generator = random.Random(0)
    files = sorted(path.iterdir())
    assert [file.name for file in files] == ["items.jsonl", "manifest.json", "vectors.safetensors"]
    for n in range(210):
        file = files[n % 3]
        good = file.read_bytes()
        bad = bytearray(good)
        bad[generator.randrange(len(good))] ^= 1 << generator.randrange(8)
        file.write_bytes(bad)
        try:
            loaded = Index.load(path, FakeEncoder())
        except ArtifactError:
            pass
        else:  # in the manifest, what is said of time and machine may change
            assert (
                file.name == "manifest.json" and loaded.items == index.items and np.array_equal(loaded.vectors, index.vectors)
            )
        file.write_bytes(good)
    assert Index.load(path, FakeEncoder()).items == index.items


@pytest.mark.parametrize("name", ["items.jsonl", "manifest.json", "vectors.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_or_missing_file_is_refused(tmp_path, name, share):
    path = tmp_path / "index"
    Index.build(FakeEncoder(), texts(20)).save(path)
    whole = (path / name).read_bytes()
    (path / name).write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ArtifactError, match=name):
        Index.load(path)
    (path / name).unlink()
    with pytest.raises(ArtifactError, match="is not an artifact" if name == "manifest.json" else f"{name} is missing"):
        Index.load(path)


@pytest.mark.parametrize(("field_", "value"), [("root", ".."), ("encoder", "fake-2")])
def test_a_manifest_that_was_edited_is_refused(tmp_path, field_, value):
    path = tmp_path / "index"
    Index.build(FakeEncoder(), texts(2)).save(path)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["inputs"][field_] = value
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=r"manifest\.json has changed since it was written"):
        Index.load(path)


def test_saving_that_is_interrupted_leaves_nothing_that_opens(tmp_path, monkeypatch):
    path = tmp_path / "index"
    index = Index.build(FakeEncoder(), texts(4))

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(index_module, "save_file", killed)
        with pytest.raises(KeyboardInterrupt):
            index.save(path)
    with pytest.raises(ArtifactError, match="is unfinished"):
        Index.load(path)
    index.save(path)
    assert Index.load(path).items == index.items


def test_an_index_is_replaced_and_anything_else_is_left_alone(tmp_path):
    path = tmp_path / "index"
    Index.build(FakeEncoder(), texts(4)).save(path)
    Index.build(FakeEncoder(), texts(2)).save(path)
    assert len(Index.load(path)) == 2
    with artifacts.writing(tmp_path / "model", "model", {}) as draft:
        (draft.path / "weights").write_text("weights")
    with pytest.raises(ArtifactError, match="holds a model"):
        Index.build(FakeEncoder(), texts(2)).save(tmp_path / "model")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "letter.txt").write_text("dear")
    with pytest.raises(ArtifactError, match="was not made by hardwon"):
        Index.build(FakeEncoder(), texts(2)).save(tmp_path / "own")
    assert (tmp_path / "model" / "weights").exists() and (tmp_path / "own" / "letter.txt").exists()
    with pytest.raises(ArtifactError, match="holds a model"):
        Index.load(tmp_path / "model")


@settings(max_examples=20)
@given(st.lists(st.text(min_size=1), min_size=1, max_size=8))
def test_any_text_is_read_back(tmp_path_factory, written):
    path = tmp_path_factory.mktemp("any") / "index"
    index = Index.build(FakeEncoder(), [Item(text=text) for text in written], progress="")
    index.save(path)
    assert Index.load(path).items == index.items
