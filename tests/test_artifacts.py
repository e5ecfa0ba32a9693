import dataclasses
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardwon import artifacts
from hardwon.artifacts import fingerprint, finished, load, plain, writing
from hardwon.errors import ArtifactError

INPUTS = {"steps": 3, "parents": {"data": "abc"}}
values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    where: Path = Path("a/b")


@dataclasses.dataclass(frozen=True)
class Other:
    x: int
    where: Path = Path("a/b")


def full(*_):
    raise OSError(28, "No space left on device")


def make(path, inputs=INPUTS, kind="thing", text="hello"):
    with writing(path, kind, inputs) as draft:
        (draft.path / "deep").mkdir(exist_ok=True)
        (draft.path / "deep" / "a.txt").write_text(text)
        draft.stats["count"] = 7
    return load(path)


def test_what_was_made_can_be_loaded(tmp_path):
    made = make(tmp_path / "new" / "a")
    assert (made.kind, made.inputs, made.stats) == ("thing", INPUTS, {"count": 7})
    assert made.files == {"deep/a.txt": artifacts.checksum(tmp_path / "new/a/deep/a.txt")}
    assert made.made["resumed"] is False
    assert made.made["seconds"] >= 0
    assert sorted(p.name for p in (tmp_path / "new" / "a").iterdir()) == ["deep", "manifest.json"]
    assert finished(tmp_path / "new" / "a", "thing", INPUTS) == made
    assert load(tmp_path / "new" / "a", "thing") == made


def test_identity_is_that_of_the_content(tmp_path):
    first, copy = make(tmp_path / "a"), make(tmp_path / "b", {"steps": 4})
    assert first.fingerprint == copy.fingerprint  # the same files, however they came about
    assert make(tmp_path / "c", text="hallo").fingerprint != first.fingerprint
    assert make(tmp_path / "d", kind="other").fingerprint != first.fingerprint


def test_finished_only_for_the_same_kind_and_inputs(tmp_path):
    make(tmp_path / "a")
    assert finished(tmp_path / "a", "thing", {"parents": {"data": "abc"}, "steps": 3}) is not None
    assert finished(tmp_path / "a", "thing", {**INPUTS, "steps": 4}) is None
    assert finished(tmp_path / "a", "other", INPUTS) is None
    assert finished(tmp_path / "nowhere", "thing", INPUTS) is None


def damage_flip(path):
    data = bytearray((path / "deep/a.txt").read_bytes())
    data[0] ^= 1
    (path / "deep/a.txt").write_bytes(bytes(data))


def damage_missing(path):
    (path / "deep/a.txt").unlink()


def damage_cut(path):
    os.truncate(path / "deep/a.txt", 2)


def damage_manifest(path):
    os.truncate(path / "manifest.json", 60)


def damage_fields(path):
    (path / "manifest.json").write_text('{\n "files": {},\n "what": 1}')


def damage_kinds(path):
    """What is not JSON's usual object, in a folder that is known to be ours all the same."""
    (path / "manifest.json").write_text('{"files": [], "inputs": {}, "kind": "thing"}')
    (path / "started.json").write_text('{"inputs": "", "kind": "thing"}')


def damage_depth(path):
    (path / "manifest.json").write_text('{\n "files": {"a": ' + "[" * 100_000)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_kinds, r"manifest\.json (cannot be read [\s\S]*|is no manifest): delete"),
        (damage_depth, r"manifest\.json cannot be read .*: delete"),
        (damage_flip, "deep/a.txt has changed since it was written: delete .* and run its stage again"),
        (damage_missing, "deep/a.txt is missing"),
        (damage_cut, "has changed"),
        (damage_manifest, r"manifest\.json cannot be read .*: delete .* and run its stage again"),
        (damage_fields, r"manifest\.json cannot be read .*: delete"),
    ],
)
def test_damage_is_noticed_and_made_good_by_making_it_again(tmp_path, damage, words):
    whole = make(tmp_path / "a")
    damage(tmp_path / "a")
    with pytest.raises(ArtifactError, match=words):
        load(tmp_path / "a")
    assert finished(tmp_path / "a", "thing", INPUTS) is None
    again = make(tmp_path / "a")
    assert again.files == whole.files
    assert again.made["resumed"] is False


def test_verifying_can_be_left_out(tmp_path):
    make(tmp_path / "a")
    damage_flip(tmp_path / "a")
    assert load(tmp_path / "a", verify=False).kind == "thing"


def test_messages_say_what_is_there(tmp_path):
    with pytest.raises(ArtifactError, match="gone does not exist: run the stage"):
        load(tmp_path / "gone")
    with pytest.raises(ArtifactError, match="is not an artifact"):
        load(tmp_path)
    make(tmp_path / "a")
    with pytest.raises(ArtifactError, match="holds a thing, not a model"):
        load(tmp_path / "a", "model")


def test_an_exception_leaves_it_unfinished_and_the_next_run_goes_on(tmp_path):
    path = tmp_path / "a"
    with pytest.raises(ZeroDivisionError), writing(path, "thing", INPUTS) as draft:
        (draft.path / "half.txt").write_text("half")
        raise ZeroDivisionError
    with pytest.raises(ArtifactError, match="is unfinished"):
        load(path)
    with writing(path, "thing", INPUTS) as draft:
        assert draft.resumed
        assert (draft.path / "half.txt").read_text() == "half"
    assert load(path).made["resumed"] is True
    assert set(load(path).files) == {"half.txt"}


@pytest.mark.parametrize(("kind", "inputs"), [("thing", {"steps": 4}), ("other", INPUTS)])
def test_unfinished_work_of_other_inputs_is_cleared(tmp_path, kind, inputs):
    with pytest.raises(KeyboardInterrupt), writing(tmp_path / "a", "thing", INPUTS) as draft:
        (draft.path / "half.txt").write_text("half")
        raise KeyboardInterrupt
    with writing(tmp_path / "a", kind, inputs) as draft:
        assert not draft.resumed
        assert not (draft.path / "half.txt").exists()


def test_finished_work_of_other_inputs_is_cleared(tmp_path):
    make(tmp_path / "a")
    with writing(tmp_path / "a", "thing", {"steps": 4}) as draft:
        assert not draft.resumed
        assert [p.name for p in draft.path.iterdir()] == ["started.json"]
    assert load(tmp_path / "a").files == {}


def test_what_was_finished_is_kept_until_its_successor_is(tmp_path):
    before = make(tmp_path / "a")
    aside = tmp_path / ".a.before"
    with pytest.raises(KeyboardInterrupt), writing(tmp_path / "a", "thing", {"steps": 4}) as draft:
        (draft.path / "half.txt").write_text("half")
        raise KeyboardInterrupt
    assert load(aside) == before  # with every file
    with pytest.raises(ArtifactError, match=r"a is unfinished: .* \(again\); what it held before lies in .*\.a\.before$"):
        load(tmp_path / "a")
    # Another start that fails does not put the unfinished in its place, and one that goes on leaves it where it is.
    with pytest.raises(ZeroDivisionError), writing(tmp_path / "a", "thing", {"steps": 5}) as draft:
        raise ZeroDivisionError
    with writing(tmp_path / "a", "thing", {"steps": 5}) as draft:
        assert draft.resumed
        assert load(aside) == before
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert load(tmp_path / "a").inputs == {"steps": 5}


def test_a_crash_between_moving_and_starting_loses_nothing(tmp_path, monkeypatch):
    before = make(tmp_path / "a")
    with monkeypatch.context() as broken, pytest.raises(OSError, match="No space"):
        broken.setattr(artifacts, "write_json", full)
        make(tmp_path / "a", {"steps": 4})
    assert load(tmp_path / ".a.before") == before
    with pytest.raises(ArtifactError, match=r"; what it held before lies in .*\.a\.before$"):
        load(tmp_path / "a")
    make(tmp_path / "a", {"steps": 4})
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_crash_before_tidying_up_is_made_good_by_the_next(tmp_path, monkeypatch):
    make(tmp_path / "a")
    with monkeypatch.context() as broken, pytest.raises(OSError, match="No space"):
        removed = artifacts.shutil.rmtree
        broken.setattr(artifacts.shutil, "rmtree", lambda path: full() if path.name == ".a.before" else removed(path))
        make(tmp_path / "a", {"steps": 4})
    second = load(tmp_path / "a")
    assert second.inputs == {"steps": 4}
    with pytest.raises(KeyboardInterrupt), writing(tmp_path / "a", "thing", {"steps": 5}):
        assert load(tmp_path / ".a.before") == second  # not what it replaced
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    "name, text",
    [
        ("thesis.txt", "years of work"),
        ("manifest.json", '{"name": "my web page", "icons": []}'),  # what web pages and browser extensions call theirs
        ("manifest.json", '{"files": {"index.html": "abc"}}'),
        ("manifest.json", "\xff not JSON"),
        ("started.json", '["a list"]'),
        ("started.json", '{"at": "noon"}'),
    ],
)
def test_a_folder_of_the_users_own_is_never_touched(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="latin-1")
    (tmp_path / "photo.png").write_bytes(b"x")
    with pytest.raises(ArtifactError, match="was not made by hardwon; choose another folder"), writing(tmp_path, "thing", {}):
        pytest.fail("never reached")
    assert (tmp_path / name).read_text(encoding="latin-1") == text
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, "photo.png"])


def test_a_file_in_the_way_and_an_empty_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match="is a file; choose another folder"), writing(tmp_path / "file", "thing", {}):
        pytest.fail("never reached")
    (tmp_path / "empty").mkdir()
    assert make(tmp_path / "empty").kind == "thing"
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    with pytest.raises(ArtifactError, match="is a link; choose another folder"), writing(tmp_path / "link", "thing", {}):
        pytest.fail("never reached")
    assert load(tmp_path / "empty").inputs == INPUTS


def test_temporary_files_are_no_part_of_an_artifact(tmp_path):
    with writing(tmp_path / "a", "thing", {}) as draft:
        (draft.path / "x.tmp").write_text("x")
    assert load(tmp_path / "a").files == {}


def test_stats_that_json_does_not_know_are_refused(tmp_path):
    with pytest.raises(TypeError, match="object has no place in a manifest"), writing(tmp_path / "a", "thing", {}) as draft:
        draft.stats["x"] = object()
    assert finished(tmp_path / "a", "thing", {}) is None


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    artifacts.write_atomically(path, "old")

    for step in ("fsync", "replace"):
        with monkeypatch.context() as broken, pytest.raises(OSError, match="No space"):
            broken.setattr(os, step, full)
            artifacts.write_atomically(path, "new")
        assert path.read_text() == "old"
        assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    artifacts.write_atomically(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    artifacts.write_json(path, {"b": Path("x/y"), "a": "\ud800"})  # text that a broken file name may hold
    assert list(json.loads(path.read_text(errors="surrogatepass"))) == ["a", "b"]


@given(st.dictionaries(st.text(max_size=4), values, min_size=2, max_size=5))
def test_the_order_of_keys_plays_no_part(row):
    backwards = dict(reversed(row.items()))
    assert list(backwards) != list(row)
    assert fingerprint(row) == fingerprint(backwards)
    assert fingerprint([row]) != fingerprint(row)
    assert fingerprint(row) == fingerprint(json.loads(json.dumps(row)))


def test_fingerprints_tell_things_apart():
    told = [None, 0, "0", [], {}, [0], [[0]], "", {"a": 1}, {"a": 2}, {"b": 1}, [1, 2], [2, 1], Point(1), Other(1), Point(2)]
    assert len({fingerprint(value) for value in told}) == len(told)
    assert len(fingerprint(None)) == 32
    assert fingerprint((1, 2)) == fingerprint([1, 2])
    assert fingerprint({3, 1, 2}) == fingerprint([1, 2, 3])


def test_plain_is_what_json_knows():
    assert plain({"p": Point(1), 2: (Path("c"), {"z", "y"})}) == {
        "p": {"type": "Point", "x": 1, "where": "a/b"},
        "2": ["c", ["y", "z"]],
    }
    with pytest.raises(TypeError, match="bytes has no place in a manifest"):
        plain([b"x"])
    with pytest.raises(TypeError, match="type has no place"):
        plain(Point)


def test_environment_says_what_this_ran_on():
    import numpy as np

    found = artifacts.environment()
    assert found["versions"]["numpy"] == np.__version__
    assert {"hardwon", "torch", "python"} <= set(found["versions"])
    assert found["hardware"]["cores"] == os.cpu_count()
    assert found["at"].endswith("+00:00")
    assert plain(found) == found


def test_two_writers_of_one_file(tmp_path):
    """As two processes would: the second begins and ends while the first is in the middle."""
    path = tmp_path / "a"
    with artifacts.replacing(path) as first:
        first.write_bytes(b"fi")
        artifacts.write_atomically(path, "second")
        assert (first.read_bytes(), path.read_text()) == (b"fi", "second")
        first.write_bytes(b"first")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]
