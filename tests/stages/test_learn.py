from dataclasses import replace
from pathlib import Path

import pytest

from hardwon.errors import RecipeError
from hardwon.items import Candidate, Example, Item
from hardwon.losses import Listwise
from hardwon.models import Options
from hardwon.stages import Train, Workspace
from hardwon.stages.learn import of_sources, shown


def test_an_item_in_one_line():
    red, blue = Path("far/away/red.png"), Path("blue.png")
    assert shown(Item("as blue", (red, b"x"), "Change it.")) == "<red.png> <picture> Change it. as blue"
    assert shown(Item(images=(blue,), video=(red, blue, blue))) == "<blue.png> <3 frames from red.png>"


def test_some_sources_only():
    gold = (Candidate(Item("gold"), origin="gold"),)
    examples = [Example(Item(f"q{n}"), gold, source) for n, source in enumerate(["tone", "place", "tone", "name"])]
    assert [e.query.text for e in of_sources(examples, ("tone", "name"))] == ["q0", "q2", "q3"]
    with pytest.raises(RecipeError, match="unknown source 'tones': did you mean 'tone'"):
        of_sources(examples, ("tones",))


def test_what_is_trained(tmp_path):
    (tmp_path / "pairs.jsonl").write_text('{"query": "a", "positive": "b"}\n{"query": "c", "positive": "d"}\n')
    (tmp_path / "model").mkdir()
    stage = Train("out", model=str(tmp_path / "model"), data=str(tmp_path / "pairs.jsonl"), loss=Listwise(), steps=1)
    workspace = Workspace(tmp_path / "run")
    typo = replace(stage)
    object.__setattr__(typo, "task", "listwize")  # as a recipe can say it, where no test checks types
    with pytest.raises(RecipeError, match=r"listwize.*listwise"):
        workspace.run_all([typo])
    with pytest.raises(RecipeError, match="pooling is about embedders"):
        workspace.run_all([replace(stage, task="pairwise", options=Options(pooling="last"))])
