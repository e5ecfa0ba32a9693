"""What a run ends with: the command that opens the search page on what it has made."""

import shlex
from pathlib import Path

from typer.testing import CliRunner

from hardwon import cli
from hardwon.stages import serving, summary
from hardwon.stages.recipes import load
from hardwon.stages.summary import page_command

DEMO = Path(__file__).parents[2] / "recipes" / "demo.py"


def test_the_demo_names_the_command_of_its_page(tmp_path, monkeypatch):
    stages = load(f"{DEMO}:quick")
    index = next(stage for stage in stages if stage.kind == "index")
    monkeypatch.setattr(summary, "program", lambda: "hardwon")
    told = shlex.split(page_command(Path("runs/demo"), index, stages))
    assert told[:7] == [
        "hardwon", "serve", "runs/demo/index", "--rerank", "runs/demo/reranker/model", "--negatives", "runs/demo/negatives",
    ]  # fmt: skip
    assert told[-1] == "--open" and "Find a picture of this." in told
    asked = {}
    monkeypatch.setattr(serving, "serve", lambda place, **more: asked.update(more, place=place))
    done = CliRunner().invoke(cli.app, told[1:])  # the command line takes it as it stands
    assert done.exit_code == 0, done.output
    assert asked["place"] == "runs/demo/index" and asked["negatives"] == Path("runs/demo/negatives")
    assert asked["instructions"][0] == "Find a picture of this." and len(asked["instructions"]) == 3
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    asked["ready"]("http://127.0.0.1:1")
    assert opened == ["http://127.0.0.1:1/"]


def test_without_reranker_and_negatives(monkeypatch):
    monkeypatch.setattr(summary, "program", lambda: "hardwon")
    index = next(stage for stage in load(f"{DEMO}:quick") if stage.kind == "index")
    assert page_command(Path("a b"), index, [index]) == "hardwon serve 'a b/index' --open"
