import dataclasses

import pytest

from hardwon import artifacts
from hardwon.errors import ArtifactError, RecipeError
from hardwon.stages import Stage, Workspace
from hardwon.stages.base import describe


def text(workspace, name):
    return (workspace.root / name / "note.txt").read_text()


def test_a_stage_is_made_once(workspace, note, capsys):
    stages = (note("a"), note("b", parents=("a/note.txt",)))
    first = workspace.run_all(stages)
    assert text(workspace, "b") == "hello+hello"
    assert [m.stats["result"] for m in first] == ["[/wrote] hello"] * 2  # what looks like markup is shown as it is
    second = workspace.run_all(stages)
    assert note.made == ["a", "b"]
    assert second == first
    told = capsys.readouterr().err
    assert "1/2 a" in told
    assert told.count("done before") == 2
    assert told.count("[/wrote] hello") == 4


def test_a_manifest_says_what_made_it(workspace, note):
    made = workspace.run_all((note("a"), note("b", parents=("a/note.txt",), count=5)))
    assert made[1].inputs["stage"]["type"] == "Note"
    assert made[1].inputs["stage"]["count"] == 5
    assert made[1].inputs["parents"] == {"a/note.txt": made[0].fingerprint}


def test_what_a_change_reaches_is_made_again(workspace, note):
    a, b, c = note("a"), note("b", parents=("a/note.txt",)), note("c")
    workspace.run_all((a, b, c))
    workspace.run_all((a, b, dataclasses.replace(c, count=4)))
    assert note.made == ["a", "b", "c", "c"]
    workspace.run_all((dataclasses.replace(a, text="bye"), b, dataclasses.replace(c, count=4)))
    assert note.made == ["a", "b", "c", "c", "a", "b"]
    assert text(workspace, "b") == "bye+hello"
    # A parent made again with the same content changes nothing further down.
    workspace.run_all((dataclasses.replace(a, text="bye", count=9), b))
    assert note.made[-1] == "a"


def test_what_was_damaged_is_made_again(workspace, note):
    stages = (note("a"), note("b", parents=("a/note.txt",)))
    workspace.run_all(stages)
    (workspace.root / "b" / "note.txt").write_text("changed by hand")
    workspace.run_all(stages)
    assert note.made == ["a", "b", "b"]
    assert text(workspace, "b") == "hello+hello"


def test_a_stage_that_fails_is_unfinished_and_goes_on(workspace, note):
    with pytest.raises(RuntimeError, match="lights"):
        workspace.run(note("a", fails=True))
    with pytest.raises(ArtifactError, match="a is unfinished: run the stage that makes it"):
        workspace.run(note("b", parents=("a/note.txt",)))
    assert note.made == ["a"]
    assert workspace.run(note("a")).made["resumed"] is False  # other inputs: `fails` is one of them


@pytest.mark.parametrize("name", ["a/note.txt", "nowhere.jsonl", "a/deep/model", "/no/such/file"])
def test_parents_that_are_missing_are_refused_before_anything_is_written(workspace, note, name):
    with pytest.raises(ArtifactError, match=r"does not exist: run the stage that makes it, or mend the path in the recipe"):
        workspace.run(note("b", parents=(name,)))
    assert note.made == []
    assert not (workspace.root / "b").exists()


def test_a_missing_model_of_a_stage_is_no_name_on_the_hub(workspace, note):
    with pytest.raises(ArtifactError, match="round1/model does not exist"):
        workspace.run(note("b", model="round1/model"))
    assert workspace.inputs(note("b", model="Qwen/Qwen3-VL-2B"))["parents"] == {"Qwen/Qwen3-VL-2B": "hub:Qwen/Qwen3-VL-2B"}
    # As it is, so that the loader of models sees the name; only models may be such names.
    assert str(workspace.path("Qwen/Qwen3-VL-2B")) == "Qwen/Qwen3-VL-2B"
    with pytest.raises(ArtifactError):
        workspace.inputs(note("b", parents=("Qwen/Qwen3-VL-2B",)))
    workspace.run(note("Qwen"))
    with pytest.raises(ArtifactError, match="does not exist"):
        workspace.inputs(note("b", model="Qwen/Qwen3-VL-2B"))  # now it is a folder of this workspace


def test_two_stages_of_one_folder_are_refused(workspace, note):
    with pytest.raises(RecipeError, match="two stages write to a, c"):
        workspace.run_all((note("a"), note("b"), note("a", count=4), note("c"), note("c")))
    assert note.made == []


def test_paths_of_the_user(workspace, note, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.txt").write_text("one")
    (tmp_path / "here").mkdir()
    (tmp_path / "sibling").mkdir()
    (tmp_path / "sibling" / "x.txt").write_text("two")
    stages = (note("b", parents=("pairs.txt", str(tmp_path / "pairs.txt"))),)
    workspace.run_all(stages)
    assert text(workspace, "b") == "one+one+hello"
    workspace.run_all(stages)
    (tmp_path / "pairs.txt").write_text("new")
    workspace.run_all(stages)
    assert note.made == ["b", "b"]
    assert text(workspace, "b") == "new+new+hello"
    # What the workspace holds goes before what lies beside it.
    (workspace.root / "pairs.txt").write_text("inside")
    assert workspace.path("pairs.txt").read_text() == "inside"
    monkeypatch.chdir(tmp_path / "here")
    assert workspace.path("../sibling/x.txt").read_text() == "two"


def test_a_folder_of_the_user_is_known_by_its_files(workspace, note, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"1")
    before = workspace.identity(str(folder))
    assert workspace.identity(str(folder)) == before
    (folder / "b.png").write_bytes(b"1")
    assert workspace.identity(str(folder)) != before


def test_an_artifact_is_known_wherever_in_it_one_looks(workspace, note):
    made = workspace.run(note("a"))
    with pytest.raises(ArtifactError, match=r"a/other\.txt does not exist"):
        workspace.identity("a/other.txt")
    assert workspace.identity("a") == workspace.identity("a/note.txt") == made.fingerprint
    assert artifacts.load(workspace.root / "a", "note") == made


def test_a_user_folder_in_the_place_of_a_stage_is_left_alone(workspace, note):
    (workspace.root / "a").mkdir(parents=True)
    (workspace.root / "a" / "thesis.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="was not made by hardwon"):
        workspace.run(note("a"))
    assert (workspace.root / "a" / "thesis.txt").read_text() == "mine"


def test_a_relative_workspace_can_be_moved(tmp_path, note, monkeypatch):
    from pathlib import Path

    monkeypatch.chdir(tmp_path)
    stages = (note("a"), note("b", parents=("a/note.txt",)))
    Workspace(Path("runs/x")).run_all(stages)
    (tmp_path / "runs" / "x").rename(tmp_path / "moved")
    Workspace(tmp_path / "moved").run_all(stages)
    assert note.made == ["a", "b"]


def test_what_is_shown_of_a_stage(note):
    assert describe(note("a", text="[/]", count=5, flag=True)) == "write: text=[/], flag=True, count=5"
    assert isinstance(note("a"), Stage)
