import numpy as np

from hardwon.items import Item
from hardwon.models import CachedEncoder, Embedder, Encoder


def test_each_item_is_embedded_once(text_model, tmp_path, monkeypatch):
    calls = []

    def encode(items, *, progress=""):
        calls.append([item.text for item in items])
        return Embedder.encode(text_model, items, progress=progress)

    monkeypatch.setattr(text_model, "encode", encode)
    items = [Item(text=text) for text in ("red", "blue", "red", "green")]
    truth = Embedder.encode(text_model, items)
    cached = CachedEncoder(text_model, tmp_path)
    assert isinstance(cached, Encoder)
    assert (cached.dim, cached.fingerprint) == (text_model.dim, text_model.fingerprint)
    np.testing.assert_allclose(cached.encode(items[:3]), truth[:3], atol=1e-6)
    np.testing.assert_allclose(cached.encode(items[::-1]), truth[::-1], atol=1e-5)
    np.testing.assert_allclose(CachedEncoder(text_model, tmp_path).encode(items), truth, atol=1e-5)
    assert calls == [["red", "blue"], ["green"]]
    assert cached.encode([]).shape == (0, text_model.dim)
    assert CachedEncoder(text_model, tmp_path).encode([Item(text="red", instruction="find")]).shape == (1, text_model.dim)
    assert calls[-1] == ["red"]  # an instruction makes another item


def test_another_model_never_meets_its_vectors(text_model, vlm, tmp_path):
    item = Item(text="red")
    first = CachedEncoder(text_model, tmp_path).encode([item])
    assert np.abs(CachedEncoder(vlm, tmp_path).encode([item]) - first).max() > 1e-3
    assert len(list(tmp_path.glob("vectors-*"))) == 2
