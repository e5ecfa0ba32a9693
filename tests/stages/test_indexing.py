"""An index that follows a folder."""

import json
import signal
import time

import numpy as np
import pytest
import stocked
import tiny
from fakes import FakeEncoder

from hardwon.data.gather import Reading, passages
from hardwon.errors import ArtifactError, DataError, RecipeError
from hardwon.items import Item
from hardwon.search import canaries, open_index
from hardwon.stages import forms, indexing
from hardwon.stages.indexing import Wanted, index_path, told

MODEL = "someone/model"


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "photos"
    for name in ("red square", "blue circle", "green bar"):
        colour, shape = name.split()
        (root / colour).mkdir(parents=True)
        tiny.draw(colour, shape).save(root / colour / f"{shape}.png")
    (root / "red/square.txt").write_text("a red square")
    (root / "notes.md").write_text("one\n\ntwo")
    (root / "rows.jsonl").write_text('{"text": "first", "id": "a"}\n{"text": "second"}\n{"txt": "third"}\n')
    return root


@pytest.fixture
def encoder():
    return FakeEncoder(dim=16)


def asked(encoder):
    """How many items were encoded, canaries aside; forgets them."""
    count = sum(len(keys) for keys in encoder.asked if len(keys) != canaries.COUNT)
    encoder.asked.clear()
    return count


def places(out):
    return sorted(row.place for row in open_index(out).rows())


def test_it_holds_what_the_folder_holds(folder, tmp_path, encoder):
    (folder / ".hidden.png").write_bytes(b"x")
    (folder / "data.bin").write_bytes(b"x")
    (folder / "broken.png").write_bytes(b"nothing")
    counts = index_path(encoder, MODEL, folder, tmp_path / "idx")
    assert (counts.added, counts.rows, counts.others) == (6, 6, {".bin": 1})
    names = ["blue/circle.png", "green/bar.png", "notes.md#1", "red/square.png", "rows.jsonl#2", "rows.jsonl#a"]
    assert places(tmp_path / "idx") == [f"photos/{name}" for name in names]
    assert sorted((row.file.rpartition("/")[2], row.line) for row in counts.failed) == [("broken.png", 1), ("rows.jsonl", 3)]
    assert "did you mean 'text'" in json.loads((tmp_path / "idx/failed.json").read_text())[1]["reason"]
    lines = told(counts, tmp_path / "idx")
    assert lines[0].startswith("6 added, 0 updated, 0 unchanged, 0 removed, 2 failed")
    index = open_index(tmp_path / "idx", encoder)
    assert index.sources() == {"photos": 1, "rows.jsonl": 2, "blue": 1, "green": 1, "red": 1}
    assert next(iter(index.sources())) == "rows.jsonl"  # the largest first
    best = index.search(Item(text="a red square", images=(folder / "red/square.png",)), 1)[0]
    assert best.score == pytest.approx(1, abs=1e-6)
    assert index.row(str(best.id)).picture == folder / "red/square.png"
    assert index.search(best.item, 2, exclude_self=True)[0].id != best.id


def test_it_follows_the_folder(folder, tmp_path, encoder):
    out = tmp_path / "idx"
    index_path(encoder, MODEL, folder, out)
    asked(encoder)
    reader = open_index(out, encoder)
    counts = index_path(encoder, MODEL, folder, out)
    assert (counts.unchanged, counts.added, counts.updated, counts.removed, asked(encoder)) == (6, 0, 0, 0, 0)
    (folder / "blue/circle.png").rename(folder / "renamed.png")
    (folder / "green/bar.png").unlink()
    (folder / "notes.md").write_text("three")
    (folder / "red/square.txt").write_text("another caption")
    counts = index_path(encoder, MODEL, folder, out)
    assert (counts.added, counts.updated, counts.unchanged, counts.removed) == (1, 2, 2, 2)
    assert asked(encoder) == 2  # what was renamed is known
    assert len(reader) == 5  # it looks again by itself
    assert reader.search(Item(text="three"), 1)[0].score == pytest.approx(1, abs=1e-6)


def test_another_folder_is_added_and_a_file_alone_removes_nothing(folder, tmp_path, encoder):
    out, more = tmp_path / "idx", tmp_path / "more"
    more.mkdir()
    (more / "a.txt").write_text("of more")
    index_path(encoder, MODEL, folder, out)
    assert index_path(encoder, MODEL, more, out).rows == 7
    (folder / "notes.md").write_text("four")
    counts = index_path(encoder, MODEL, folder / "notes.md", out)
    assert (counts.updated, counts.removed, counts.rows) == (1, 0, 7)
    rebuilt = index_path(FakeEncoder("fake-2", dim=16), MODEL, folder, out, Wanted(rebuild=True))
    assert rebuilt.rows == 7  # the other folder too


def test_a_rebuild_takes_the_place_of_what_was_there_when_it_is_ready(folder, tmp_path, encoder):
    out = tmp_path / "idx"
    index_path(encoder, MODEL, folder, out)
    reader = open_index(out, encoder)
    with pytest.raises(ArtifactError, match="--rebuild"):
        index_path(FakeEncoder("fake-2", dim=16), MODEL, folder, out)
    for number in range(3):
        other = FakeEncoder(f"fake-{number}", dim=8 + 8 * number)
        index_path(other, MODEL, folder, out, Wanted(rebuild=True))
        assert len(open_index(out, other).search(Item(text="x"), 9)) == 6
        assert len(list(out.glob("rows_*"))) == 2  # and the one before, which readers may still have open
    with pytest.raises(ArtifactError, match="vectors of two encoders cannot be compared"):
        reader.search(Item(text="x"))


def test_an_interrupted_rebuild_goes_on_and_the_old_index_answers_meanwhile(folder, tmp_path, encoder, monkeypatch):
    out, other = tmp_path / "idx", FakeEncoder("fake-2", dim=16)
    index_path(encoder, MODEL, folder, out)
    monkeypatch.setattr("hardwon.stages.following.BATCH", 2)
    monkeypatch.setattr(other, "given", Dying(4))
    with pytest.raises(KeyboardInterrupt):
        index_path(other, MODEL, folder, out, Wanted(rebuild=True))
    assert len(open_index(out, encoder).search(Item(text="x"), 9)) == 6
    other.given = {}
    asked(other)
    assert index_path(other, MODEL, folder, out, Wanted(rebuild=True)).rows == 6
    assert asked(other) < 6
    assert not (out / "building.json").exists()


class Dying(dict):
    """Stands for given vectors, and interrupts after so many questions."""

    def __init__(self, left):
        self.left = left

    def get(self, text, default=None):
        self.left -= "canary" not in text and bool(text)
        if self.left < 0:
            raise KeyboardInterrupt
        return default


def test_forms_are_measured_on_the_index_itself(tmp_path, encoder):
    file = tmp_path / "many.jsonl"
    file.write_text("".join(json.dumps({"text": f"text {n}"}) + "\n" for n in range(300)))
    for form in ("int8", "binary", "float16"):
        counts = index_path(encoder, MODEL, file, tmp_path / form, Wanted(form=form, dimensions=8))
        index = open_index(tmp_path / form, encoder)
        assert index.space.dim == 8
        hits = index.search(Item(text="text 7"), 3)
        assert hits[0].item.text == "text 7"
        lines = told(counts, tmp_path)
        assert lines[1] == str(counts.narrowed) and "of the best 10 of whole vectors (16 in float32)" in lines[1]
        assert counts.narrowed.value.mean < 0.9 and lines[2].startswith("that is below 0.99: keep more numbers")
        if form != "float16":
            assert counts.recall is not None and counts.recall.value.mean >= 0.99
            assert index.about.form.proposed == counts.recall.form.proposed
            assert "of the best 10 of these 8 numbers in float32" in lines[3]
    counts = index_path(encoder, MODEL, file, tmp_path / "whole", Wanted(form="int8"))
    assert len(told(counts, tmp_path)) == 2 and "of the best 10 of whole vectors, asked" in told(counts, tmp_path)[1]
    with pytest.raises(ArtifactError, match="has form 'int8', not 'binary'"):
        index_path(encoder, MODEL, file, tmp_path / "int8", Wanted(form="binary"))
    with pytest.raises(RecipeError, match="multiple of 8"):
        index_path(encoder, MODEL, file, tmp_path / "new", Wanted(form="binary", dimensions=9))
    with pytest.raises(RecipeError, match="is for the embedded store"):
        index_path(encoder, MODEL, file, tmp_path / "new2", Wanted(form="int8", store="lance"))


def many(file, first, last):
    file.write_text("".join(json.dumps({"text": f"text {n}"}) + "\n" for n in range(first, last)))
    return file


@pytest.mark.parametrize(("store", "wanted"), [("embedded", {}), ("lance", {}), ("embedded", {"form": "float16"})])
def test_fewer_numbers_tell_what_they_cost(tmp_path, encoder, store, wanted):
    file, out = many(tmp_path / "many.jsonl", 0, 320), tmp_path / "idx"
    counts = index_path(encoder, MODEL, file, out, Wanted(store=store, dimensions=8, **wanted))
    index = open_index(out, encoder)
    rows = index.rows()
    whole = encoder.encode([row.item for row in rows])
    truth = np.argsort(-(whole @ whole.T), axis=1)[:, 1:11]  # the first is itself
    found = [[hit.id for hit in hits if hit.id != row.id] for row, hits in zip(rows, index.search_many(
        [row.item for row in rows], 11), strict=True)]  # fmt: skip
    shares = [len({rows[n].id for n in best} & set(ids[:10])) / 10 for best, ids in zip(truth, found, strict=True)]
    told_of = counts.narrowed
    assert (told_of.asked, told_of.among, counts.partly) == (320, 320, False)
    assert told_of.value.mean == pytest.approx(np.mean(shares), abs=0.002)  # its own searches find so much
    assert index.about.measured["narrowed"]["recall"] == told_of.value.mean
    index.close()
    said = [str(part) for part in forms.about(out)]  # of `hardwon inspect`
    assert sum(f"these numbers find {told_of.value.mean:.3f} [" in part for part in said) == 1


def test_of_what_whole_vectors_find_later_runs_tell_what_they_can(tmp_path, encoder):
    out = tmp_path / "idx"
    first = index_path(encoder, MODEL, many(tmp_path / "a.jsonl", 0, 300), out, Wanted(dimensions=8))
    kept = open_index(out).about.measured
    few = index_path(encoder, MODEL, many(tmp_path / "b.jsonl", 300, 320), out)
    assert few.narrowed is None and not few.untold and len(told(few, out)) == 1
    assert open_index(out).about.measured == kept  # what is known of the 300
    more = index_path(encoder, MODEL, many(tmp_path / "c.jsonl", 400, 520), out)
    assert (more.narrowed.among, more.partly) == (120, True)
    assert "among 120 that this run has read, of 440 rows: among all likely less" in told(more, out)[1]
    assert more.narrowed.value.mean > first.narrowed.value.mean  # as it says
    assert index_path(encoder, MODEL, tmp_path / "c.jsonl", out).narrowed is None


def test_an_interrupted_index_does_not_tell_by_the_few_that_were_left(tmp_path, encoder, monkeypatch):
    file, out = many(tmp_path / "many.jsonl", 0, 260), tmp_path / "idx"
    monkeypatch.setattr(encoder, "given", Dying(canaries.COUNT + 258))
    with pytest.raises(KeyboardInterrupt):
        index_path(encoder, MODEL, file, out, Wanted(dimensions=8))
    encoder.given = {}
    counts = index_path(encoder, MODEL, file, out)
    assert counts.encoded == 4 and counts.rows == 260 and counts.narrowed is None
    assert told(counts, out)[1].startswith("what 8 of 16 numbers in float32 find of what whole vectors find is not known")


def test_canaries_tell_of_vectors_that_have_drifted(folder, tmp_path, encoder):
    out = tmp_path / "idx"
    index_path(encoder, MODEL, folder, out)
    assert open_index(out, encoder).drift() == pytest.approx(1, abs=1e-12)

    class Drifted(FakeEncoder):
        def encode(self, items, *, progress=""):
            rows = super().encode(items) + np.float32(0.03)
            return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    assert open_index(out, Drifted(dim=16)).drift() < canaries.ALARM
    with pytest.raises(ArtifactError, match="gives other vectors than when"):
        index_path(Drifted(dim=16), MODEL, folder, out)


def test_what_the_model_cannot_read_is_listed(folder, tmp_path, text_model):
    counts = index_path(text_model, MODEL, folder, tmp_path / "idx")
    assert (counts.rows, len(counts.failed)) == (3, 4)
    assert any("circle.png" in row.file for row in counts.failed)
    only = tmp_path / "only"
    only.mkdir()
    tiny.draw("red", "bar").save(only / "a.png")
    with pytest.raises(DataError, match=r"nothing of .* could be indexed"):
        index_path(text_model, MODEL, only, tmp_path / "idx2")


def test_pages_and_frames(tmp_path, vlm):
    root = tmp_path / "media"
    root.mkdir()
    pages = [tiny.draw(colour, "square") for colour in ("red", "blue")]
    pages[0].save(root / "doc.pdf", save_all=True, append_images=pages[1:])
    tiny.clip(root / "clip.mp4", [tiny.draw(colour, "circle") for colour in ("red", "green", "blue")])
    (root / "bad.pdf").write_bytes(b"%PDF-1.7 no")
    out = tmp_path / "idx"
    counts = index_path(vlm, MODEL, root, out, Wanted(reading=Reading(frames=2)))
    assert places(out) == [f"media/{n}" for n in ("clip.mp4#frame=1", "clip.mp4#frame=2", "doc.pdf#page=1", "doc.pdf#page=2")]
    assert len(counts.failed) == 1 and "cannot be read as a PDF" in counts.failed[0].reason
    assert all(row.picture.is_file() for row in open_index(out).rows())
    (root / "doc.pdf").unlink()
    assert index_path(vlm, MODEL, root, out, Wanted(reading=Reading(frames=2))).removed == 2
    assert len(list((out / "media").iterdir())) == 1


def test_killed_it_goes_on_and_encodes_again_only_what_was_under_way(tmp_path):
    file, out, log = tmp_path / "many.jsonl", tmp_path / "idx", tmp_path / "log"
    file.write_text("".join(json.dumps({"text": f"text {n}"}) + "\n" for n in range(60)))
    log.touch()
    for goal in (12, 33, None):
        process = stocked.process(stocked.indexing_slowly, file, out, log)
        while goal is not None and len(log.read_text().splitlines()) < goal:
            assert process.is_alive()
            time.sleep(0.005)
        if goal is not None:
            process.kill()
        process.join(stocked.PATIENCE_S)
        assert process.exitcode == (-signal.SIGKILL if goal is not None else 0)
    lines = log.read_text().splitlines()
    assert sorted(set(lines)) == sorted(f"text {n}" for n in range(60))
    assert len(lines) - 60 <= 2 * 5  # of each kill at most the batch in flight
    assert len(open_index(out)) == 60


def test_a_folder_that_is_not_ours_is_left_alone(folder, tmp_path, encoder):
    with pytest.raises(ArtifactError, match="is not empty and holds no index"):
        index_path(encoder, MODEL, folder, folder)
    with pytest.raises(DataError, match="did you mean 'photos'"):
        indexing.check_path(tmp_path / "fotos")


def test_passages_keep_paragraphs_together():
    text = "one two\n\nthree\n\n" + "A sentence of some words. " * 20
    made = passages(text, 100)
    assert made[0].startswith("one two\n\nthree\n\nA sentence")
    assert all(len(part) <= 100 for part in made)
    assert "".join("".join(made).split()) == "".join(text.split())
    assert passages(text, 0) == [text.strip()]
    assert passages(" \n", 10) == []


def test_an_index_of_a_recipe_opens_too(tmp_path, encoder):
    from hardwon.search import Index

    items = [Item(text=f"t{n}") for n in range(5)]
    Index.build(encoder, items, progress="").save(tmp_path / "run/index")
    (tmp_path / "run/model.json").write_text('{"model": "some/name"}')
    index = open_index(tmp_path / "run", encoder)
    assert index.search(items[3], 1)[0].item == items[3]
    rows, vectors = index.sample(3)
    assert len(rows) == 3 and vectors.shape == (3, 16)
    with pytest.raises(ArtifactError, match="made by a recipe"):
        index.store.delete([rows[0].id])


def test_hits_are_reranked_and_vectors_searched(folder, tmp_path, encoder):
    from fakes import RuleJudge

    from hardwon.search import Fused

    index_path(encoder, MODEL, folder, tmp_path / "idx")
    index = open_index(tmp_path / "idx").with_encoder(encoder)
    judge = RuleJudge(lambda query, item: 9.0 if item.text == "second" else -9.0)
    hits = index.search(Item(text="first"), 3, Fused(judge, depth=6, weight=1.0))
    assert hits[0].item.text == "second"
    assert hits.pairs == 6
    ids = [str(hit.id) for hit in hits]
    assert [row.id for row, _ in index.search_vectors(index.vectors(ids), 1)[0]] == ids[:1]
    with pytest.raises(DataError, match="no row"):
        index.row("0" * 32)
    with pytest.raises(ArtifactError, match="opened without its encoder"):
        open_index(tmp_path / "idx").search(Item(text="x"))
