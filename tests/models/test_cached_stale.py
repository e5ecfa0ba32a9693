"""A cache of vectors after something was changed: whatever may change a vector makes another one, and nothing else does."""

import numpy as np
import pytest
from PIL import Image
from stale import MODEL_CHANGES, items, load

from hardwon.items import Item
from hardwon.models import CachedEncoder, cached


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """The picture that everybody looks at."""
    path = tmp_path_factory.mktemp("shown") / "red.png"
    Image.new("RGB", (64, 64), "red").save(path)
    return path


@pytest.fixture(scope="module")
def filled(tiny_vlm, shown, tmp_path_factory):
    """A folder with the vectors of the unchanged model."""
    folder = tmp_path_factory.mktemp("vectors")
    CachedEncoder(load(tiny_vlm), folder).encode(items(shown))
    return folder


@pytest.mark.parametrize("change", MODEL_CHANGES)
def test_a_changed_model_finds_nothing_of_the_other(change, filled, shown, tiny_vlm):
    model = load(tiny_vlm)
    before = model.fingerprint
    change(model)
    assert model.fingerprint != before
    CachedEncoder(model, filled).encode(items(shown)[:1])
    assert model.embedded == 1


def test_a_changed_item_is_another_item(filled, shown, tiny_vlm, tmp_path):
    pixel = tmp_path / "red.png"
    with Image.open(shown) as picture:
        picture.putpixel((0, 0), (254, 0, 0))
        picture.save(pixel)
    text, both, told = items(shown)
    changed = [
        Item(text="red  square"),
        Item(text="red square", instruction="find it"),
        Item("a bar", (pixel,)),
        Item("a bar", (shown, shown)),
        Item("a bar", video=(shown,)),
        Item(images=(shown,), instruction="find"),
        Item("find it", (shown,)),
    ]
    model = load(tiny_vlm)
    kept = CachedEncoder(model, filled)
    missing = [item for item in changed if item.key not in kept.store.rows]
    assert missing == changed
    assert [item.key in kept.store.rows for item in (text, both, told)] == [True] * 3


def test_a_picture_whose_bytes_changed_under_its_name(tiny_vlm, tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (64, 64), "red").save(path)
    model = load(tiny_vlm)
    kept = CachedEncoder(model, tmp_path / "vectors")
    first = kept.encode([Item(images=(path,))])
    Image.new("RGB", (64, 64), "blue").save(path)
    second = kept.encode([Item(images=(path,))])
    assert model.embedded == 2
    assert np.abs(first - second).max() > 1e-3


def test_order_copies_and_another_name_of_a_file_are_no_change(filled, shown, tiny_vlm, tmp_path):
    model = load(tiny_vlm)
    other = tmp_path / "other name.png"
    other.write_bytes(shown.read_bytes())
    vectors = CachedEncoder(model, filled).encode([*items(shown)[::-1], *items(other), items(shown)[0]])
    assert model.embedded == 0
    np.testing.assert_array_equal(vectors[:3][::-1], vectors[3:6])
    np.testing.assert_array_equal(vectors[6], vectors[2])


def test_vectors_are_written_as_they_come(tiny_text, tmp_path, monkeypatch):
    """An interrupted run goes on with the same chunks, so it ends with the same vectors to the last bit."""
    monkeypatch.setattr(cached, "CHUNK", 3)
    texts = [Item(text=f"{'square ' * n}red") for n in range(8)]
    whole = CachedEncoder(load(tiny_text), tmp_path / "whole").encode(texts)
    dying = load(tiny_text)
    encode, calls = dying.encode, []

    def once(items, *, progress=""):
        calls.append(len(items))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(items)

    monkeypatch.setattr(dying, "encode", once)
    with pytest.raises(KeyboardInterrupt):
        CachedEncoder(dying, tmp_path / "cut").encode(texts)
    again = load(tiny_text)
    np.testing.assert_array_equal(CachedEncoder(again, tmp_path / "cut").encode(texts), whole)
    assert again.embedded == 2


def test_what_cannot_be_embedded_is_refused_before_anything_is(tiny_text, shown, tmp_path, monkeypatch):
    from hardwon.errors import BadItems

    monkeypatch.setattr(cached, "CHUNK", 2)
    model = load(tiny_text)
    texts = [Item(text=f"{n}") for n in range(5)]
    with pytest.raises(BadItems) as error:
        CachedEncoder(model, tmp_path).encode([*texts, Item(images=(shown,)), Item("a", (shown,))])
    assert len(error.value.items) == 2
    assert model.embedded == 0
