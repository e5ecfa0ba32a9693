"""`hardwon train` under launchers: the same recipe on one process and on several, artifacts written once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import faulting
import processes
import pytest
import torch
from safetensors.torch import load_file

from hardwon import artifacts

RECIPE = """
import os
from pathlib import Path

from hardwon.losses import InfoNCE
from hardwon.stages import Train
from hardwon.training import Groups, Settings

def recipe():
    Path(__file__).with_name("process-" + os.environ.get("RANK", "alone")).touch()
    settings = Settings(batch_size=7, negatives=1, learning_rate=1e-3, groups=Groups(size=2, skip=0))
    return (Train("embedder", model={model!r}, data={data!r}, loss=InfoNCE(0.1, hardness=2.0), steps=6, settings=settings),)
"""


@pytest.fixture(scope="module")
def recipe(tiny_text, tmp_path_factory):
    """A recipe of one training on twenty pairs."""
    folder = tmp_path_factory.mktemp("recipe")
    rows = [
        {"query": e.query.text, "positive": e.gold[0].text, "negatives": [item.item.text for item in e.negatives]}
        for e in processes.tiny.texts()
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.py").write_text(RECIPE.format(model=str(tiny_text), data=str(folder / "pairs.jsonl")))
    return folder / "recipe.py"


@pytest.fixture(scope="module")
def truth(recipe, tmp_path_factory):
    """The artifact of one process."""
    out = tmp_path_factory.mktemp("one") / "run"
    (end,) = faulting.Team(1, out.parent / "team", faulting.command_line, "train", str(recipe), "--out", str(out)).ended()
    assert end.code == 0, end.said
    return out / "embedder"


def check(made: Path, truth: Path) -> None:
    manifest = artifacts.load(made)  # with all its checksums
    assert sorted(manifest.files) == sorted(artifacts.load(truth).files)
    assert not list(made.rglob("*.tmp"))
    assert [loss for _, loss, _ in faulting.losses(made)] == pytest.approx(
        [loss for _, loss, _ in faulting.losses(truth)], abs=1e-5
    )
    found, expected = (load_file(next(folder.rglob("model.safetensors"))) for folder in (made, truth))
    for name, value in expected.items():
        if "self.key.bias" not in name:  # see test_gradients
            torch.testing.assert_close(found[name], value, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("size", "more"), [(2, ()), (4, ("--set", "embedder.settings.shard=True"))], ids=["two", "four, divided"]
)
def test_the_artifact_is_that_of_one_process(size, more, recipe, truth, tmp_path):
    """Processes with the variables that launchers set."""
    arguments = ("train", str(recipe), "--out", str(tmp_path / "run"), *more)
    ended = faulting.Team(size, tmp_path / "team", faulting.command_line, *arguments).ended(150)
    assert [(end.code, end.said) for end in ended] == [(0, "SystemExit: 0")] * size
    check(tmp_path / "run" / "embedder", truth)
    ended = faulting.Team(size, tmp_path / "team", faulting.command_line, "run", *arguments[1:]).ended(150)
    assert [end.code for end in ended] == [0] * size  # done before


LAUNCHERS = {  # with --cpu, accelerate starts one process
    "torchrun": ("torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "hardwon.cli"),
    "accelerate": (
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "-m",
        "hardwon.cli",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAUNCHERS)
def test_by_a_real_launcher(name, recipe, truth, tmp_path):
    for path in recipe.parent.glob("process-*"):
        path.unlink()
    port = ("--main_process_port", str(processes._free_port())) if name == "accelerate" else ()
    module, *options = LAUNCHERS[name]
    command = [sys.executable, "-m", module, *port, *options, "train", str(recipe), "--out", str(tmp_path / "run")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in recipe.parent.glob("process-*")} == {"process-0", "process-1"}
    check(tmp_path / "run" / "embedder", truth)


def test_to_resume_what_was_not_begun(recipe, truth, tmp_path):
    """One process; that of which nothing is there is refused, and what is done is done."""
    for out, code in ((tmp_path / "run", 1), (truth.parent, 0)):
        arguments = ("train", str(recipe), "--out", str(out), "--resume")
        (end,) = faulting.Team(1, tmp_path / "team", faulting.command_line, *arguments).ended()
        assert end.code == code
    assert not (tmp_path / "run").exists()
