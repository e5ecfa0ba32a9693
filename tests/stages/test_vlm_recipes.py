"""The recipes for large models, run whole on tiny ones of the same architecture."""

import json
import runpy
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import processes
import pytest
import vlms

from hardwon.items import Item
from hardwon.losses import JudgeAlignment
from hardwon.models import Embedder, ListwiseReranker, Question, Reranker, load_reranker
from hardwon.search import Index
from hardwon.stages import Workspace
from hardwon.stages.recipes import load

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def data(tmp_path, pictures):
    """A folder with `pairs.jsonl` and `pictures`."""
    (tmp_path / "pictures").mkdir()
    rows = []
    for caption, picture in pictures.items():
        copy = shutil.copy(picture, tmp_path / "pictures")
        rows.append({"query": f"find the {caption}", "positive_image": f"pictures/{Path(copy).name}"})
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def smaller(stage, model):
    """A stage of the recipe as it is, but for what makes it large."""
    settings = getattr(stage, "settings", None)
    if stage.verb == "train":
        start = {"model": str(model)} if "/model" not in stage.model else {}
        return replace(stage, steps=3, settings=replace(settings, batch_size=4, precision="fp32"), **start)
    if stage.verb == "mine":
        judged = {"judge": str(stage.judge), "precision": "fp32"}
        return replace(stage, settings=replace(settings, depth=8, keep=4, min_auc=0.0, beta=0.0), **judged)
    return stage


def test_qwen3_vl_2b(data, tmp_path_factory, monkeypatch):
    model = vlms.DECODERS["qwen3-vl"](tmp_path_factory.mktemp("qwen3") / "vlm")
    monkeypatch.chdir(data)
    stages = [smaller(stage, vlms.bare(model)) for stage in load(str(RECIPES / "qwen3_vl_2b.py"))]
    # Only the instruction, whose words the tiny model has room for, and the size of pictures differ.
    stages[0] = replace(stages[0], options=replace(stages[0].options, max_pixels=32 * 32))
    Workspace(data / "run").run_all(stages)
    assert [stage.verb for stage in stages] == ["train", "mine", "train", "mine", "train", "index"]
    assert isinstance(stages[-2].loss.parts[0][1], JudgeAlignment)
    for name in ("round1", "round2"):
        made = Embedder.load(data / "run" / name / "model", device="cpu")
        assert made.body.model.default_prompt_name == "instruction"
        assert made.body.model[0].processor.image_processor.size["longest_edge"] == 32 * 32
        assert {str(p.dtype) for p in made.module.parameters()} == {"torch.bfloat16"}
        assert not (data / "run" / name / "model" / "adapter_config.json").exists()  # merged
        card = (data / "run" / name / "model" / "README.md").read_text()
        assert "| data | pairs: 20 |" in card
        assert "rank=16" in card
    found = Index.load(data / "run" / "index" / "index", made).search(Item("find the red square"), k=3)
    assert len(found) == 3


@pytest.mark.parametrize(("function", "kind"), [("recipe", ListwiseReranker), ("pairwise", Reranker)])
def test_vlm_reranker(function, kind, data, tmp_path_factory, monkeypatch):
    model = vlms.DECODERS["qwen3-vl"](tmp_path_factory.mktemp("qwen3") / "vlm")
    monkeypatch.chdir(data)
    mining, stage = load(f"{RECIPES / 'vlm_reranker.py'}:{function}")
    mining = replace(mining, model=str(model), settings=replace(mining.settings, depth=8, keep=4))
    stage = smaller(stage, vlms.bare(model))
    # So small a model has no room for our own words, and its pictures are small already.
    stage = replace(stage, question=Question("Fits? {yes} or {no}."), options=replace(stage.options, max_pixels=32 * 32))
    if stage.listing:
        stage = replace(stage, listing=replace(stage.listing, wording="Which?"))
    Workspace(data / "run").run_all([mining, stage])
    made = load_reranker(data / "run" / "reranker" / "model", device="cpu")
    assert type(made) is kind
    assert not (data / "run" / "reranker" / "model" / "adapter_config.json").exists()  # merged
    assert "| data | pairs: 20 |" in (data / "run" / "reranker" / "model" / "README.md").read_text()
    items = [Item(images=(picture,)) for picture in sorted((data / "pictures").iterdir())[:6]]
    (scores,) = made.score_lists([Item("find the red square")], [items])
    assert np.isfinite(scores).all()
    assert len(set(scores.tolist())) > 1


def test_llava_onevision_7b(data, tmp_path_factory, monkeypatch):
    """One process and two, as torchrun starts them, learn the same."""
    model = vlms.DECODERS["llava-onevision"](tmp_path_factory.mktemp("llava") / "vlm")
    program = str(RECIPES / "llava_onevision_7b.py")

    def command(name):
        return (program, str(data / "pairs.jsonl"), str(data / name), "--steps", "2", "--model", str(model))

    monkeypatch.setattr(sys, "argv", [*command("one")])
    runpy.run_path(program, run_name="__main__")
    processes.together(2, data / "made", (processes.program, *command("two")))
    items = [Item("red square"), Item(images=(next((data / "pictures").iterdir()),))]
    before, one, two = (
        Embedder.load(folder, device="cpu").encode(items) for folder in (model, data / "one" / "model", data / "two" / "model")
    )
    assert min(np.abs(made - before).max() for made in (one, two)) > 1e-4
    logs = [[json.loads(line) for line in (data / name / "metrics.jsonl").read_text().splitlines()] for name in ("one", "two")]
    alone, together = ([(row["loss"], row["gradient_norm"]) for row in log if "loss" in row] for log in logs)
    assert len(alone) == len(together) == 2
    np.testing.assert_allclose(together, alone, rtol=0.005)  # bfloat16, in chunks that hold other items
