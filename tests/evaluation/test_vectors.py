import importlib.metadata

import pytest
import torch

from hardwon.evaluation import Benchmark, Task, evaluate
from hardwon.items import Item
from hardwon.models import CachedEncoder
from hardwon.store import Store


@pytest.fixture
def colours():
    items = tuple(Item(text=text) for text in ("red", "green", "blue"))
    return Benchmark("b", (Task("colours", "retrieval", "ood", items, items, ((0,), (1,), (2,))),))


def test_vectors_that_were_made_elsewhere_are_told(vlm, colours, tmp_path, monkeypatch, capsys):
    def told():
        report = evaluate(vlm, colours, store=tmp_path, progress=False)
        return report.made["items_encoded"], " ".join(capsys.readouterr().err.split())

    version = importlib.metadata.version
    here = f"cpu, torch {version('torch')}, transformers {version('transformers')}"
    for count in (3, 0):
        assert told() == (count, "")
    assert CachedEncoder(vlm, tmp_path).store.makers == {here}
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9" if name == "torch" else version(name))
    count, words = told()
    assert count == 0
    assert f"holds vectors that were made on {here}; they are used again on cpu, torch 9.9" in words
    assert evaluate(vlm, colours, store=tmp_path / "other", progress=False).made["items_encoded"] == 3
    assert capsys.readouterr().err == ""


def test_vectors_of_which_nobody_said_how_they_were_made_are_used(vlm, colours, tmp_path, capsys):
    cached = CachedEncoder(vlm, None)
    items = {item.key: item for item in colours.tasks[0].queries}
    folder = tmp_path / f"vectors-{vlm.fingerprint}"
    Store(folder).add(list(items), torch.from_numpy(cached.encode(list(items.values()))))
    assert evaluate(vlm, colours, store=tmp_path, progress=False).made["items_encoded"] == 0
    assert capsys.readouterr().err == ""
