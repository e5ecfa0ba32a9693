"""What an index that follows a folder takes from what it has, and what it leaves there."""

import json

import pytest
from fakes import FakeEncoder

from hardwon.search import open_index
from hardwon.stages.indexing import index_path

MODEL = "someone/model"


@pytest.fixture
def encoder():
    return FakeEncoder(dim=16)


def wrong(out, encoder):
    """Places of rows whose vector is not the one that the encoder gives."""
    index = open_index(out)
    rows = index.rows()
    cosines = (index.vectors([row.id for row in rows]) * encoder.encode([row.item for row in rows])).sum(axis=1)
    return [row.place for row, cosine in zip(rows, cosines, strict=True) if cosine < 0.999]


def test_vectors_are_not_taken_from_rows_that_were_overwritten(tmp_path, encoder, monkeypatch):
    monkeypatch.setattr("hardwon.stages.following.BATCH", 2)
    root, out = tmp_path / "texts", tmp_path / "idx"
    root.mkdir()
    for texts in ("abcdef", "ghabab", "ghgijh", "jihgba"):  # rows take what the ones before them, overwritten by now, have had
        for number, text in enumerate(texts):
            (root / f"{number}.txt").write_text(f"text {text}")
        counts = index_path(encoder, MODEL, root, out)
        assert wrong(out, encoder) == []
        assert counts.encoded < 6 or texts == "abcdef"  # what is still there is taken


def test_a_vector_of_another_instruction_is_not_taken(tmp_path, encoder):
    file, out = tmp_path / "rows.jsonl", tmp_path / "idx"
    row = {"id": "a", "text": "kite", "instruction": "find it"}
    file.write_text(json.dumps(row) + "\n")
    index_path(encoder, MODEL, file, out)
    file.write_text("".join(json.dumps({**row, **more}) + "\n" for more in ({"instruction": "find another"}, {"id": "b"})))
    counts = index_path(encoder, MODEL, file, out)
    assert (counts.updated, counts.added, counts.encoded) == (1, 1, 1)  # that of b was there
    assert wrong(out, encoder) == []


def test_rows_of_an_earlier_version_are_kept_but_not_taken_from(tmp_path, encoder):
    root, out = tmp_path / "texts", tmp_path / "idx"
    root.mkdir()
    (root / "a.txt").write_text("one")
    index_path(encoder, MODEL, root, out)
    index = open_index(out)
    entry, vectors = next(index.store.rows()), index.vectors([index.rows()[0].id])
    body = {name: value for name, value in json.loads(entry.payload).items() if name not in ("key", "file")}
    index.store.upsert([entry._replace(payload=json.dumps(body))], vectors)
    counts = index_path(encoder, MODEL, root, out)
    assert (counts.unchanged, counts.encoded) == (1, 0)
    (root / "b.txt").write_text("one")
    counts = index_path(encoder, MODEL, root, out)
    assert (counts.unchanged, counts.added, counts.encoded) == (1, 1, 1)
    assert wrong(out, encoder) == []


def test_names_with_a_number_sign(tmp_path, encoder):
    root, out = tmp_path / "texts", tmp_path / "idx"
    root.mkdir()
    (root / "c#1.txt").write_text("one")
    (root / "c#2.txt").write_text("two")
    (root / "c.jsonl").write_text('{"text": "three", "id": "x/y#z"}\n')
    index_path(encoder, MODEL, root, out)
    assert open_index(out).sources() == {"texts": 2, "c.jsonl": 1}
    (root / "c#1.txt").write_text("a new one")
    (root / "c#2.txt").unlink()
    counts = index_path(encoder, MODEL, root / "c#1.txt", out)
    assert (counts.updated, counts.removed, counts.rows) == (1, 0, 3)
    read = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hardwon.stages.following.things", lambda file, *_: read.append(file.name) or [])
        assert index_path(encoder, MODEL, root, out).removed == 1
    assert read == []  # what has not changed is not read again
