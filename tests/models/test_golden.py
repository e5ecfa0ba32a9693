"""Vectors kept beside a model: what turns them, and what does not."""

import json
import shutil

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from hardwon.errors import ModelError
from hardwon.models import Embedder, golden
from hardwon.models.doctor import examine
from hardwon.models.examination import KEPT


@pytest.fixture
def folder(tiny_text, tmp_path):
    """A copy of the tiny text model with its vectors kept."""
    home = tmp_path / "model"
    shutil.copytree(tiny_text, home)
    assert golden.keep(Embedder.load(home, device="cpu"), home) == 12  # the short probes of text
    return home


def row(found):
    return next((row for row in found.rows if row.name == KEPT), None)


def test_nothing_changed(folder):
    found = examine(folder, device="cpu")
    assert row(found).probes == 12
    assert row(found).largest < 1e-9
    assert found.passed
    assert not any("Since it was saved" in note for note in found.notes)


def test_a_model_without_kept_vectors(tiny_text):
    assert row(examine(tiny_text, device="cpu")) is None


@pytest.mark.parametrize("scale", [1.0001, 3.0])
def test_other_weights(folder, scale):
    """Rounding passes, another model does not."""
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "layer.0.attention.self.value.weight" in name)
    save_file(weights | {name: weights[name] * scale}, folder / "model.safetensors", metadata={"format": "pt"})
    found = examine(folder, device="cpu")
    assert found.passed is (scale < 2)
    assert row(found).passed is (scale < 2)
    assert row(found).largest > 0


def test_another_version_is_named(folder, monkeypatch):
    monkeypatch.setattr(golden, "version", lambda name: "0.0.1")
    notes = [note for note in examine(folder, device="cpu").notes if "Since it was saved" in note]
    assert len(notes) == len(golden.PACKAGES)
    assert all("then, 0.0.1 now" in note for note in notes)


def test_another_device_is_named(folder):
    assert golden.changed(golden.kept(folder)[1], "cuda") == ["computed on cpu then, on cuda now"]


def test_pictures_too(tiny_vlm, vlm, tmp_path):
    shutil.copytree(tiny_vlm, tmp_path / "model")
    assert golden.keep(vlm, tmp_path / "model") >= 19
    vectors, about = golden.kept(tmp_path / "model")
    np.testing.assert_allclose([np.linalg.norm(v) for v in vectors.values()], 1, atol=1e-5)
    assert about["device"] == "cpu"
    assert set(about["versions"]) == set(golden.PACKAGES)


@pytest.mark.parametrize("damage", ["cut", "no metadata", "not JSON"])
def test_a_damaged_file_is_named(folder, damage):
    path = folder / golden.FILE
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    else:
        save_file(load_file(path), path, metadata=None if damage == "no metadata" else {"versions": "{", "device": "cpu"})
    with pytest.raises(ModelError, match=r"probes.safetensors cannot be read.*--keep"):
        examine(folder, device="cpu")


def test_vectors_that_are_not_finite_are_not_kept(folder):
    embedder = Embedder.load(folder, device="cpu")
    embedder.module.get_parameter("0.model.encoder.layer.0.output.dense.bias").data.fill_(float("nan"))
    before = (folder / golden.FILE).read_bytes()
    with pytest.raises(ModelError, match="the probe 'one letter' is not finite"):
        golden.keep(embedder, folder)
    assert (folder / golden.FILE).read_bytes() == before


def test_the_plain_library_loads_the_folder_as_before(folder):
    from sentence_transformers import SentenceTransformer

    made = SentenceTransformer(str(folder), device="cpu").encode(["a red fox"])
    assert made.shape[0] == 1
    assert json.loads((folder / "modules.json").read_text())
