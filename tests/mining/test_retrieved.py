"""What was retrieved is an artifact: never searched for twice, and searched again when anything it rests on has changed."""

import json

import pytest

from hardwon import artifacts
from hardwon.items import Candidate, Example, Item
from hardwon.mining import Hardest, Mining, ledger, mine, reselect, retrieval, retrieved

SETTINGS = Mining(depth=6, keep=2, min_auc=0.0)


class Counting:
    """An encoder that counts what it embeds."""

    def __init__(self, encoder):
        self.encoder, self.fingerprint, self.dim, self.embedded = encoder, encoder.fingerprint, encoder.dim, 0

    def encode(self, items, *, progress=""):
        self.embedded += len(items)
        return self.encoder.encode(items)


@pytest.fixture
def searched(monkeypatch):
    """Sizes of the blocks that were searched; blocks are small."""
    sizes, nearest = [], retrieval.nearest_below

    def watched(queries, *args, **kwargs):
        sizes.append(len(queries))
        return nearest(queries, *args, **kwargs)

    monkeypatch.setattr(retrieval, "nearest_below", watched)
    monkeypatch.setattr(retrieval, "BLOCK", 4)
    return sizes


@pytest.fixture
def data(pairs):
    return (*pairs(9, "a"), *pairs(5, "b"))


def folders(store):
    return sorted(store.glob("retrieved-*"))


def said(capsys):
    return " ".join(capsys.readouterr().err.split())


def test_a_second_run_encodes_searches_and_judges_nothing(data, encoder, judging, by_hash, searched, tmp_path, capsys):
    alone = mine(data, encoder(dim=3), judging(by_hash), settings=SETTINGS)
    assert searched == [4, 4, 1, 4, 1]
    first, second, again = Counting(encoder(dim=3)), Counting(encoder(dim=3)), judging(by_hash)
    assert mine(data, first, judging(by_hash), settings=SETTINGS, store=tmp_path) == alone
    assert (first.embedded, len(searched)) == (28, 10)
    assert mine(data, second, again, settings=SETTINGS, store=tmp_path) == alone
    assert (second.embedded, len(searched), again.asked) == (0, 10, [])
    assert "retrieved before: 14 queries" in said(capsys)


def test_every_stage_says_what_it_is(data, encoder, judging, by_hash, searched, tmp_path):
    mined = mine(data, encoder(dim=3), judging(by_hash), settings=SETTINGS, store=tmp_path / "store")
    mined.write(tmp_path / "chosen", tmp_path)
    made = {}
    for folder in (*(tmp_path / "store").iterdir(), tmp_path / "chosen"):
        manifest = artifacts.load(folder)  # compares every file with its checksum
        assert set(manifest.files) == {file.name for file in folder.iterdir()} - {artifacts.MANIFEST}
        made[manifest.kind] = manifest
    assert made["vectors"].inputs == {"encoder": "fake", "width": 3}
    assert made["vectors"].stats == {"rows": 28}
    assert made["retrieval"].inputs["embedder"] == "fake"
    assert made["retrieval"].inputs["settings"] == {"depth": 6, "within_source": True, "copies": True}
    assert [made["retrieval"].inputs[name]["count"] for name in ("queries", "pool")] == [14, 14]
    assert made["retrieval"].stats == {"queries": 14, "hits": 9 * 6 + 5 * 4, "blocks": 5}
    assert made["judgements"].inputs == {"judge": "judge"}
    judged = {(e.query, e.candidate) for e in mined.ledger}
    assert made["judgements"].stats["pairs"] == made["judgements"].stats["with a usable answer"] >= len(judged) + 14
    assert made["negatives"].inputs == {"embedder": "fake", "judge": "judge", "settings": mined.about["settings"]}
    assert made["negatives"].stats == mined.stats
    assert set(made["negatives"].files) == {"examples.jsonl", "ledger.parquet", "summary.json"}


def test_the_name_of_a_judge_stands_beside_its_fingerprint(data, encoder, judging, by_hash, tmp_path):
    judge = judging(by_hash)
    judge.name = "qwen3-vl-8b"
    mined = mine(data, encoder(dim=3), judge, settings=SETTINGS, store=tmp_path / "store")
    mined.write(tmp_path / "chosen", tmp_path)
    (folder,) = (tmp_path / "store").glob("judge-*")
    assert artifacts.load(folder).inputs == {"judge": "judge", "name": "qwen3-vl-8b"}
    about = ledger.about(tmp_path / "chosen/ledger.parquet")
    assert (about["judge"], about["judge name"]) == ("judge", "qwen3-vl-8b")
    assert reselect(tmp_path / "chosen", data, settings=SETTINGS).about == mined.about


@pytest.mark.parametrize("stop", range(1, 6))
def test_a_stop_between_two_blocks_repeats_none(data, encoder, searched, tmp_path, monkeypatch, stop):
    whole = mine(data, encoder(dim=3), settings=SETTINGS, store=tmp_path / "whole")
    (calm,) = folders(tmp_path / "whole")
    sizes = list(searched)
    watched = retrieval.nearest_below

    def dying(*args, **kwargs):
        if len(searched) == stop:
            raise KeyboardInterrupt
        return watched(*args, **kwargs)

    del searched[:]
    if stop < len(sizes):
        monkeypatch.setattr(retrieval, "nearest_below", dying)
        with pytest.raises(KeyboardInterrupt):
            mine(data, encoder(dim=3), settings=SETTINGS, store=tmp_path / "cut")
        monkeypatch.setattr(retrieval, "nearest_below", watched)
    assert mine(data, encoder(dim=3), settings=SETTINGS, store=tmp_path / "cut") == whole
    assert searched == sizes
    (cut,) = folders(tmp_path / "cut")
    assert artifacts.load(cut).files == artifacts.load(calm).files


class TestSearchedAgain:
    """Whatever may change a hit makes another artifact; nothing else does."""

    def test_when_something_it_rests_on_has_changed(self, data, encoder, searched, tmp_path):
        def searches(examples=data, model=None, settings=SETTINGS):
            before = len(searched)
            found = mine(examples, model or encoder(dim=3), settings=settings, store=tmp_path)
            took = len(searched) - before
            assert not took or found == mine(examples, model or encoder(dim=3), settings=settings)
            return took

        assert searches() == 5
        turned = encoder({"at3": 40}, dim=3)
        turned.fingerprint = "turned"
        first = data[0]
        told = Example(Item(text=first.query.text, instruction="find"), first.candidates, first.source)
        own = Example(first.query, (*first.candidates, Candidate(Item(text="at1"), origin="gold")), first.source)
        other = Example(first.query, (Candidate(Item(text="at0 "), origin="gold"),), first.source)
        related = Example(first.query, first.candidates, first.source, frozenset({Item(text="at4").content}))
        two = [Candidate(Item(text="one more")), Candidate(Item(text="another"))]
        changed = {
            "model": {"model": turned},
            "depth": {"settings": Mining(depth=7, keep=2)},
            "ceiling": {"settings": Mining(depth=6, keep=2, ceiling=0.5)},
            "one pool for all": {"settings": Mining(depth=6, keep=2, within_source=False)},
            "fewer queries": {"settings": Mining(depth=6, keep=2, queries=8)},
            "other queries": {"settings": Mining(depth=6, keep=2, queries=8, seed=1)},
            "instruction": {"examples": (told, *data[1:])},
            "a second positive": {"examples": (own, *data[1:])},
            "another positive": {"examples": (other, *data[1:])},
            "related": {"examples": (related, *data[1:])},
            "a candidate more": {"examples": (first.adding([Candidate(Item(text="new"))]), *data[1:])},
            "two more": {"examples": (first.adding(two), *data[1:])},
            "the same two in the other order, which decides ties": {"examples": (first.adding(two[::-1]), *data[1:])},
            "order of the queries": {"examples": (data[1], data[0], *data[2:])},
            "source": {"examples": (Example(first.query, first.candidates, "b"), *data[1:])},
        }
        for n, (why, change) in enumerate(changed.items(), start=2):
            assert searches(**change), why
            assert len(folders(tmp_path)) == n, why
            assert not searches(**change), why
        assert not searches()
        for same in (
            {"skip": 2}, {"keep": 5}, {"beta": 0.4}, {"selector": Hardest()}, {"rest": True}, {"seed": 3}
        ):  # fmt: skip
            assert searches(settings=Mining(**({"depth": 6, "keep": 2} | same))) == 0, same

    @pytest.mark.parametrize("part", ["begin", "middle", "end", "gone", "manifest", "one less"])
    def test_when_it_is_damaged(self, data, encoder, searched, tmp_path, capsys, part):
        whole = mine(data, encoder(dim=3), settings=SETTINGS, store=tmp_path)
        (folder,) = folders(tmp_path)
        block = sorted(folder.glob("*.parquet"))[2]
        if part == "gone":
            block.unlink()
        elif part == "manifest":
            (folder / artifacts.MANIFEST).write_text((folder / artifacts.MANIFEST).read_text()[:-40])
        elif part == "one less":
            told = json.loads((folder / artifacts.MANIFEST).read_text())
            del told["files"][block.name]
            artifacts.write_json(folder / artifacts.MANIFEST, told)
        else:
            data_of = bytearray(block.read_bytes())
            data_of[{"begin": 8, "middle": len(data_of) // 2, "end": -9}[part]] ^= 1
            block.write_bytes(data_of)
        capsys.readouterr()
        assert mine(data, encoder(dim=3), settings=SETTINGS, store=tmp_path) == whole
        assert "retrieved again, since" in said(capsys)
        assert len(searched) == 10
        assert mine(data, encoder(dim=3), settings=SETTINGS, store=tmp_path) == whole
        assert len(searched) == 10

    def test_a_damaged_block_of_an_unfinished_search_alone(self, data, encoder, searched, tmp_path, capsys):
        whole = mine(data, encoder(dim=3), settings=SETTINGS, store=tmp_path)
        (folder,) = folders(tmp_path)
        manifest = artifacts.load(folder)
        started = {"kind": manifest.kind, "inputs": artifacts.fingerprint(manifest.inputs)}
        artifacts.write_json(folder / artifacts.STARTED, started)  # as it was just before its end
        (folder / artifacts.MANIFEST).unlink()
        block = sorted(folder.glob("*.parquet"))[3]
        block.write_bytes(block.read_bytes()[:-1] + b"?")
        del searched[:]
        assert mine(data, encoder(dim=3), settings=SETTINGS, store=tmp_path) == whole
        assert searched == [4]
        assert "is damaged: its queries are searched again" in said(capsys)
        assert artifacts.load(folder).files == manifest.files


class Planned:
    """A search of one hit a block, that knows which blocks it searched; something else happens while it prepares."""

    def __init__(self, meanwhile=lambda: None):
        self.meanwhile, self.prepared, self.searched = meanwhile, 0, []

    def prepare(self):
        self.prepared += 1
        self.meanwhile()

    def each(self, numbers):
        return map(self, numbers)

    def __call__(self, number):
        assert self.prepared == 1
        self.searched.append(number)
        return retrieved.Hits([f"{number:032x}"], [0.5], [["a"]], [[0.25]], [[0.5]])


class TestTwoRunsOfTheSame:
    def test_one_that_finished_meanwhile_is_read_and_left_alone(self, tmp_path):
        def through(search):
            return list(retrieved.through(tmp_path, {"of": 1}, [1, 1, 1], search))

        first = Planned()
        second = Planned(lambda: through(first))
        assert through(second) == through(Planned()) == through(first)
        assert first.searched == [0, 1, 2]
        assert second.searched == []
        (folder,) = tmp_path.iterdir()  # nothing was moved aside
        assert len(artifacts.load(folder).files) == 3

    @pytest.mark.parametrize("late", [False, True], ids=["from the beginning", "after preparing"])
    def test_a_block_that_vanishes_while_it_is_read_is_searched_again(self, tmp_path, late):
        def through(search):
            return retrieved.through(tmp_path, {"of": 1}, [1, 1, 1], search)

        whole = list(through(Planned()))
        (there,) = tmp_path.iterdir()
        if late:
            there.rename(tmp_path / "away")
        search = Planned(lambda: (tmp_path / "away").rename(there) if late else None)
        reading = through(search)
        made = [next(reading)]
        there.rename(tmp_path / "aside")
        assert [*made, *reading] == whole
        assert search.searched == [1, 2]


def test_vectors_that_have_changed_on_disk_are_embedded_again(data, encoder, searched, tmp_path, capsys):
    whole = mine(data, encoder(dim=3), settings=SETTINGS, store=tmp_path)
    (folder,) = tmp_path.glob("vectors-*")
    rows = max(folder.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    changed = bytearray(rows.read_bytes())
    changed[-1] ^= 1  # a number that is as good as any other
    rows.write_bytes(changed)
    again = Counting(encoder(dim=3))
    settings = Mining(depth=5, keep=2, min_auc=0.0)
    assert mine(data, again, settings=settings, store=tmp_path) == mine(data, encoder(dim=3), settings=settings) != whole
    assert again.embedded == 28  # the whole file's
    assert f"{rows.name} has changed since it was written" in said(capsys)
    assert artifacts.load(folder).stats == {"rows": 28}
    assert (folder / f"{rows.name}.damaged").exists()


def test_answers_that_have_changed_on_disk_are_asked_for_again(data, encoder, judging, by_hash, tmp_path, capsys):
    whole, first = mine(data, encoder(dim=3), one := judging(by_hash), settings=SETTINGS, store=tmp_path), len(data)
    assert first < sum(map(len, one.asked))
    (folder,) = tmp_path.glob("judge-*")
    for shard in folder.glob("*.parquet"):
        changed = bytearray(shard.read_bytes())
        changed[len(changed) // 3] ^= 1
        shard.write_bytes(changed)
    again = judging(by_hash)
    assert mine(data, encoder(dim=3), again, settings=SETTINGS, store=tmp_path) == whole
    assert again.asked == one.asked
    assert "its pairs are judged again" in said(capsys)
    assert artifacts.load(folder).inputs == {"judge": "judge"}
