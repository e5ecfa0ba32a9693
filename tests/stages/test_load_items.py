import json

import pytest

from hardwon.errors import ArtifactError, BadRows, DataError
from hardwon.items import Item
from hardwon.stages.measure import load_items, model_of


def test_items_of_any_kind_of_file(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n\n{"text": "b", "instruction": "find"}\n')
    (tmp_path / "a.csv").write_text("text,instruction\na,\nb,find\n")
    expected = [Item(text="a"), Item(text="b", instruction="find")]
    assert load_items(tmp_path / "a.jsonl", None) == load_items(tmp_path / "a.csv", None) == expected


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"\xff\xfe", b"[]", b'{"text": 3}', b'{"txt": "a"}', b'{"image": "../a.png"}', b"{}"]
)
def test_rows_that_are_no_items_are_named(tmp_path, damage):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n' + damage + b"\n")
    if not damage:
        assert len(load_items(tmp_path / "a.jsonl", None)) == 1
        return
    with pytest.raises(BadRows, match="1 of 2 rows") as told:
        load_items(tmp_path / "a.jsonl", None)
    assert told.value.rows[0].line == 2


def test_nothing_there(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        load_items(tmp_path / "a.jsonl", None)


@pytest.mark.parametrize("damage", ["", "{", "[]", "{}", "3"])
def test_an_index_that_does_not_say_its_model(tmp_path, damage):
    (tmp_path / "model.json").write_text(damage)
    with pytest.raises(ArtifactError, match="build the index again"):
        model_of(tmp_path)
    (tmp_path / "model.json").write_text(json.dumps({"model": "owner/name"}))
    assert model_of(tmp_path) == "owner/name"
