from dataclasses import replace
from pathlib import Path

import pytest

from hardwon.artifacts import Draft
from hardwon.errors import RecipeError
from hardwon.items import Candidate, Example, Item
from hardwon.losses import InfoNCE, Listwise
from hardwon.models import Options
from hardwon.stages import Train, Workspace, learn
from hardwon.stages.learn import of_sources, shown
from hardwon.training import Settings


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


def test_a_run_without_a_whole_checkpoint_is_aligned(tiny_text, tmp_path, monkeypatch):
    """One that was killed while its first checkpoint was written begins anew: from a model that is not aligned yet."""
    (tmp_path / "pairs.jsonl").write_text('{"query": "a", "positive": "b"}\n{"query": "c", "positive": "d"}\n')
    aligned = []
    monkeypatch.setattr(learn, "align", lambda model, examples, *, steps, **told: aligned.append(steps))
    few = Settings(batch_size=2)
    stage = Train("out", str(tiny_text), str(tmp_path / "pairs.jsonl"), InfoNCE(0.1), steps=1, settings=few, align=3)
    for n, manifest in enumerate((False, True)):
        torn = tmp_path / f"out{n}/checkpoint/step-0000001"
        torn.mkdir(parents=True)
        if manifest:
            (torn / "manifest.json").write_text("{}")
        stage.make(Workspace(tmp_path / "run"), Draft(torn.parents[1], True, {}))
    assert aligned == [3]  # the first of them alone
