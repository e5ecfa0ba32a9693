import shutil

import numpy as np
import pytest
import torch

from hardwon.items import Item
from hardwon.models import Embedder
from hardwon.models.eyes import TowerEye
from hardwon.models.vision import VisionCache, weights_digest


@pytest.fixture
def cached(tiny_vlm, tmp_path):
    """An embedder that keeps features under `tmp_path`."""
    return Embedder.load(tiny_vlm, device="cpu", vision_cache=tmp_path)


@pytest.fixture
def blind(monkeypatch):
    """From here on, looking at a picture is an error."""

    def switch_off():
        def look(*_):
            raise AssertionError("a picture was looked at again")

        monkeypatch.setattr(TowerEye, "look", look)

    return switch_off


def kinds(pictures):
    red, blue = pictures["red square"], pictures["blue circle"]
    return [
        Item(images=(red,)),
        Item(text="red square"),
        Item(images=(blue,), text="what is it", instruction="find"),
        Item(images=(blue, red, blue)),
        Item(images=(blue, red), text="a"),
    ]


def test_makes_no_difference_to_vectors(cached, vlm, pictures):
    assert cached.body.vision is not None
    assert vlm.body.vision is None
    np.testing.assert_allclose(cached.encode(kinds(pictures)), vlm.encode(kinds(pictures)), atol=1e-5)


def test_makes_no_difference_to_tokens(cached, vlm, pictures):
    rows = [[item] for item in kinds(pictures)]
    ours, theirs = cached.body.features(rows), vlm.body.features(rows)
    assert torch.equal(ours["input_ids"], theirs["input_ids"])
    assert torch.equal(ours["attention_mask"], theirs["attention_mask"])


def test_makes_no_difference_to_the_projectors_gradient(cached, vlm, pictures):
    made = []
    for model in (cached, vlm):
        model.freeze(["vision"])
        model.forward(kinds(pictures))[:, :5].sum().backward()
        made.append(model.body.transformer.multi_modal_projector.linear_1.weight.grad)
    assert made[0].abs().max() > 1e-4
    assert torch.allclose(made[0], made[1], rtol=1e-4, atol=1e-6)


def test_the_tower_looks_once(cached, pictures, blind):
    first = cached.encode(kinds(pictures))
    blind()
    np.testing.assert_array_equal(cached.encode(kinds(pictures)), first)
    copy = pictures["red square"].with_name("copy-of-red-square.png")
    shutil.copy(pictures["red square"], copy)
    same = cached.encode([Item(images=(copy,)), Item(images=(copy.read_bytes(),))])  # found by content, not by name
    np.testing.assert_allclose(same, np.stack([first[0]] * 2), atol=1e-6)
    with pytest.raises(AssertionError, match="looked at again"):
        cached.encode([Item(images=(pictures["green bar"],))])


def test_the_next_run_reads_from_disk(cached, tiny_vlm, pictures, tmp_path, blind):
    first = cached.encode(kinds(pictures))
    blind()
    other = Embedder.load(tiny_vlm, device="cpu", vision_cache=tmp_path)
    np.testing.assert_allclose(other.encode(kinds(pictures)), first, atol=1e-6)


def test_prepare_says_what_was_new(cached, pictures):
    items = kinds(pictures)
    groups = [item.images for item in items]
    assert cached.body.vision.prepare(groups) == 2
    assert cached.body.vision.prepare(groups) == 0
    assert cached.body.vision.prepare([*groups, [pictures["green bar"]]]) == 1


def test_prepare_and_features_give_the_same(cached, pictures, tiny_vlm, tmp_path):
    paths = list(pictures.values())
    cached.body.vision.prepare([paths])
    other = Embedder.load(tiny_vlm, device="cpu", vision_cache=tmp_path / "other").body.vision
    alone = torch.cat([other.features([path]) for path in paths])
    assert torch.allclose(cached.body.vision.features(paths), alone, atol=1e-5)
    assert alone.shape == (20, 4, 128)


def test_another_tower_has_a_folder_of_its_own(cached, tiny_vlm, pictures, tmp_path):
    old = cached.encode(kinds(pictures))
    changed = Embedder.load(tiny_vlm, device="cpu")
    with torch.no_grad():
        changed.body.transformer.vision_tower.embeddings.convolution.weight[0] *= -1
    changed.save(tmp_path / "changed")
    other = Embedder.load(tmp_path / "changed", device="cpu", vision_cache=tmp_path)
    assert other.body.vision.store.folder != cached.body.vision.store.folder
    assert len(list(tmp_path.glob("vision-*"))) == 2
    assert np.abs(other.encode(kinds(pictures)) - old).max() > 1e-4
    np.testing.assert_allclose(other.encode(kinds(pictures)), changed.encode(kinds(pictures)), atol=1e-5)


def test_another_pre_processing_has_a_folder_of_its_own(cached, tmp_path):
    vision, eye = cached.body.vision, cached.body.vision.eye
    processor = type(eye.processor)(**eye.processor.to_dict() | {"image_mean": [0.0, 0.0, 0.0]})
    assert VisionCache(TowerEye(eye.tower, processor), tmp_path).store.folder != vision.store.folder
    assert VisionCache(TowerEye(eye.tower, eye.processor), tmp_path).store.folder == vision.store.folder


def test_another_projector_shares_the_folder(cached, tiny_vlm, tmp_path):
    changed = Embedder.load(tiny_vlm, device="cpu", vision_cache=tmp_path)
    with torch.no_grad():
        changed.body.transformer.multi_modal_projector.linear_1.weight *= 2
    changed.save(tmp_path / "changed")
    loaded = Embedder.load(tmp_path / "changed", device="cpu", vision_cache=tmp_path)
    assert loaded.body.vision.store.folder == cached.body.vision.store.folder


def test_what_a_killed_run_left_is_not_read(cached, tiny_vlm, pictures, tmp_path):
    first = cached.encode(kinds(pictures))
    folder = cached.body.vision.store.folder
    (listed,) = folder.glob("*.json")
    listed.unlink()  # features without their list of keys
    (folder / ".0123.tmp").write_bytes(b"half a file")
    other = Embedder.load(tiny_vlm, device="cpu", vision_cache=tmp_path)
    assert other.body.vision.rows == {}
    np.testing.assert_allclose(other.encode(kinds(pictures)), first, atol=1e-6)


def test_without_a_folder_it_lives_in_memory(vlm, pictures, tmp_path, blind):
    vlm.freeze(["vision"]).body.settle_vision()
    assert vlm.body.vision.store.folder is None
    first = vlm.encode(kinds(pictures))
    blind()
    np.testing.assert_array_equal(vlm.encode(kinds(pictures)), first)


def test_not_for_a_model_without_a_tower(tiny_text, tmp_path):
    assert Embedder.load(tiny_text, device="cpu", vision_cache=tmp_path).body.vision is None
    assert list(tmp_path.iterdir()) == []


def test_digest_sees_names_shapes_types_and_values():
    def made(change=lambda module: None):
        module = torch.nn.BatchNorm1d(4)
        with torch.no_grad():
            change(module)
        return weights_digest(module)

    assert made() == made()
    assert made(lambda m: m.weight.__setitem__(0, 2.0)) != made()
    assert made(lambda m: m.running_mean.__setitem__(0, 2.0)) != made()
    assert made(lambda m: m.num_batches_tracked.add_(1)) != made()
    assert made(lambda m: m.half()) != made()
    assert weights_digest(torch.nn.BatchNorm2d(4)) == made()
    assert weights_digest(torch.nn.ModuleDict({"a": torch.nn.BatchNorm1d(4)})) != made()
