"""What an index that follows a folder takes from what it has, and what it leaves there."""

import json
import sys

import pytest
import stocked
import tiny
from fakes import FakeEncoder
from trials import trials

from hardwon.data.gather import Reading
from hardwon.errors import ArtifactError, MissingExtra
from hardwon.search import canaries, open_index, stores
from hardwon.stages import indexing
from hardwon.stages.indexing import Wanted, index_path

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


@pytest.fixture
def pages(tmp_path):
    """A folder with two PDF files of one page, and a text."""
    root = tmp_path / "documents"
    root.mkdir()
    for colour in ("red", "blue"):
        tiny.draw(colour, "square").save(root / f"{colour}.pdf")
    (root / "a.txt").write_text("one")
    return root


def shown(out):
    """Pictures that the rows of an index show."""
    return {row.picture for row in open_index(out).rows() if row.picture is not None}


def test_a_rebuild_keeps_the_pictures_of_the_index_that_readers_have_open(pages, tmp_path, encoder, monkeypatch):
    out, made = tmp_path / "idx", []
    index_path(encoder, MODEL, pages, out, Wanted(reading=Reading(dpi=36)))
    (tmp_path / "more").mkdir()
    (tmp_path / "more/b.txt").write_text("two")
    index_path(encoder, MODEL, tmp_path / "more", out)
    refresh = indexing.Run.run
    monkeypatch.setattr(indexing.Run, "run", lambda run: (refresh(run), made.append(all(p.is_file() for p in first)))[0])
    first = shown(out)
    for dpi in (48, 72):
        made.clear()
        index_path(encoder, MODEL, tmp_path / "more", out, Wanted(reading=Reading(dpi=dpi), rebuild=True))
        if dpi == 48:
            assert made == [True, True] and all(path.is_file() for path in first)  # also when the new one answers
            second = shown(out)
    assert not any(path.is_file() for path in first) and all(path.is_file() for path in second | shown(out))
    (pages / "red.pdf").unlink()
    last = shown(out)
    index_path(encoder, MODEL, pages, out, Wanted(reading=Reading(dpi=72)))
    gone = last - shown(out)
    assert len(gone) == 1 and not gone.pop().is_file() and all(path.is_file() for path in second | shown(out))


def test_a_picture_that_is_lost_is_made_again(pages, tmp_path, encoder):
    out = tmp_path / "idx"
    index_path(encoder, MODEL, pages, out)
    lost = sorted(shown(out))[0]
    lost.unlink()
    counts = index_path(encoder, MODEL, pages, out)
    assert (counts.unchanged, counts.encoded) == (3, 0) and lost.is_file()


def asked(encoder):
    """How many items were encoded, canaries aside; forgets them."""
    count = sum(len(keys) for keys in encoder.asked if len(keys) != canaries.COUNT)
    encoder.asked.clear()
    return count


def test_another_store_takes_the_vectors_that_are_there(tmp_path, encoder):
    root, out = tmp_path / "texts", tmp_path / "idx"
    root.mkdir()
    for number in range(20):
        (root / f"{number}.txt").write_text(f"text {number}")
    index_path(encoder, MODEL, root, out)
    kept, before = (out / canaries.FILE).read_bytes(), asked(encoder)
    assert before == 20
    (root / "0.txt").write_text("another")
    (root / "1.txt").unlink()
    for store, encoded, copied in (("lance", 1, 18), ("embedded", 0, 19), ("qdrant", 0, 19), ("lance", 0, 19)):
        counts = index_path(encoder, MODEL, root, out, Wanted(store=store, rebuild=True))
        assert (counts.rows, counts.encoded, counts.copied) == (19, encoded, copied)
        assert str(counts).endswith(f"19 rows, {encoded} encoded, {copied} copied from the index that was there")
        assert asked(encoder) == encoded
        index = open_index(out)
        assert (index.store_name, len(index)) == (store, 19)
        index.close()
        assert wrong(out, encoder) == []
        encoder.asked.clear()
        assert (out / canaries.FILE).read_bytes() == kept  # of when the vectors were made
    counts = index_path(encoder, MODEL, root, out, Wanted(rebuild=True))
    assert (counts.encoded, counts.copied) == (19, 0)  # which asks for nothing but to make all anew


def test_smaller_vectors_are_copied_and_measured_and_larger_ones_made(tmp_path, encoder):
    file, out = tmp_path / "rows.jsonl", tmp_path / "idx"
    file.write_text("".join(json.dumps({"text": f"text {n}"}) + "\n" for n in range(60)))
    index_path(encoder, MODEL, file, out)
    fresh = index_path(encoder, MODEL, file, tmp_path / "fresh", Wanted(dimensions=8))
    asked(encoder)
    counts = index_path(encoder, MODEL, file, out, Wanted(dimensions=8, rebuild=True))
    assert (counts.encoded, counts.copied, asked(encoder)) == (0, 60, 0)
    assert counts.narrowed == fresh.narrowed and not counts.partly
    one, other = open_index(out), open_index(tmp_path / "fresh")
    ids = [row.id for row in one.rows()]
    assert (one.vectors(ids) == other.vectors(ids)).all()  # to the bit
    measured = one.about.measured
    counts = index_path(encoder, MODEL, file, out, Wanted(store="lance", rebuild=True))
    assert (counts.encoded, counts.narrowed, counts.untold) == (0, None, False)
    assert open_index(out).about.measured == measured  # copies have lost what these had lost
    for wanted in (
        Wanted(dimensions=16, rebuild=True),
        Wanted(form="float16", rebuild=True),
        Wanted(form="float32", rebuild=True),
    ):
        counts = index_path(encoder, MODEL, file, out, wanted)
        assert counts.copied == (60 if wanted.form == "float16" else 0)
        assert open_index(out).space.narrowed == (wanted.form == "float16")


def test_vectors_that_cannot_be_trusted_are_not_copied(tmp_path, encoder, capsys):
    root, out = tmp_path / "texts", tmp_path / "idx"
    root.mkdir()
    (root / "a.txt").write_text("one")
    index_path(encoder, MODEL, root, out)
    table = next(out.glob("rows_*/*.safetensors"))
    table.write_bytes(table.read_bytes()[:-1])
    counts = index_path(encoder, MODEL, root, out, Wanted(store="lance", rebuild=True))
    assert (counts.encoded, counts.copied) == (1, 0) and "has changed since it was written" in capsys.readouterr().err
    for other, message in ((Turned(dim=16), "gives other vectors"), (FakeEncoder("fake-2", dim=16), "")):
        store = "embedded" if message else "lance"
        counts = index_path(other, MODEL, root, out, Wanted(store=store, rebuild=True))
        assert (counts.encoded, counts.copied) == (1, 0) and message in capsys.readouterr().err
        assert wrong(out, other) == []


class Turned(FakeEncoder):
    """Gives other vectors than what it is taken for."""

    def encode(self, items, *, progress=""):
        return -super().encode(items)


@pytest.mark.parametrize("store", ["embedded", "qdrant"])
def test_tables_of_earlier_builds_are_dropped_some_time(tmp_path, encoder, monkeypatch, store):
    root, out, dropped = tmp_path / "texts", tmp_path / "idx", []
    root.mkdir()
    (root / "a.txt").write_text("one")
    index_path(encoder, MODEL, root, out, Wanted(store=store))
    names = [open_index(out).about.name]

    def drop(*where):
        if len(names) == 3:
            raise MissingExtra("a package")
        stores_drop(*where)
        dropped.append(where[2])

    stores_drop = stores.drop
    monkeypatch.setattr(stores, "drop", drop)
    for _ in range(4):
        index_path(encoder, MODEL, root, out, Wanted(rebuild=True))
        names.append(json.loads((out / "index.json").read_text())["name"])
    index = open_index(out)
    assert sorted(dropped) == sorted(names[:3])
    assert [name for _, name in index.about.before] == [names[3]] and len(index.rows()) == 1
    index.close()
    for name in names[:3]:
        with pytest.raises(ArtifactError):
            stores.opened(store, out, name, index.space)


def test_small_changes_add_up_until_what_a_form_costs_is_measured_again(tmp_path, encoder):
    file, out, counts = tmp_path / "rows.jsonl", tmp_path / "idx", []
    for last in (100, 104, 108, 112, 116):
        file.write_text("".join(json.dumps({"text": f"text {n}"}) + "\n" for n in range(last)))
        counts.append(index_path(encoder, MODEL, file, out, Wanted(form="int8")))
    assert [each.recall is not None for each in counts] == [True, False, False, True, False]


def test_killed_anywhere_in_a_rebuild_an_index_opens_that_is_whole(pages, tmp_path):
    log, every = tmp_path / "log", max(1, 12 // trials(1))
    process = stocked.process(stocked.killed_everywhere, pages, tmp_path / "idx", log, every)
    process.join(stocked.PATIENCE_S)
    assert process.exitcode == 0
    assert int(log.read_text()) > 5


@pytest.mark.parametrize(("package", "name", "extra"), [("pypdfium2", "a.pdf", "pdf"), ("av", "a.mp4", "video")])
def test_what_needs_an_extra_says_which(tmp_path, encoder, monkeypatch, package, name, extra):
    root = tmp_path / "documents"
    root.mkdir()
    (root / name).write_bytes(b"x")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"pip install 'hardwon\[{extra}\]'"):
        index_path(encoder, MODEL, root, tmp_path / "idx")
