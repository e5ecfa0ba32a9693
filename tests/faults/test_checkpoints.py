"""Checkpoints that are damaged, or that there is no room for: the newest whole one is used, and what is wrong is said."""

import os
import random
import shutil
import stat
import subprocess

import faulting
import pytest
import tiny
import torch
from trials import trials

from hardwon import artifacts
from hardwon.errors import ArtifactError
from hardwon.losses import InfoNCE
from hardwon.models import Embedder
from hardwon.training import checkpoint, run, train

STATE, MANIFEST = checkpoint.STATE, artifacts.MANIFEST


def cut(share):
    return lambda path: path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def flip(place):
    def damage(path):
        data = bytearray(path.read_bytes())
        data[int(place * (len(data) - 1))] ^= 1 << (len(data) % 8)
        path.write_bytes(data)

    return damage


def a_link(path):
    path.unlink()
    path.symlink_to("/dev/null")


DAMAGES = {
    "missing": lambda path: path.unlink(),
    "empty": cut(0),
    "half": cut(0.5),
    "99 %": cut(0.99),
    "first byte": flip(0),
    "middle byte": flip(0.5),
    "last byte but one": flip(0.97),
    "a link elsewhere": a_link,
}
CASES = [(file, name) for file in (STATE, MANIFEST) for name in DAMAGES]


@pytest.fixture(scope="module")
def trained(tiny_text, tmp_path_factory):
    """Folder of a run with two checkpoints, its weights and losses at the end."""
    out = tmp_path_factory.mktemp("trained")
    digest = faulting.learn(str(tiny_text), str(out))
    assert sorted(path.name for path in (out / "checkpoint").iterdir()) == ["step-0000011", "step-0000012"]
    return out, digest, faulting.losses(out)


def learned(model):
    return {name: parameter for name, parameter in model.module.named_parameters() if parameter.requires_grad}


def state_of(folder):
    _, tensors, damaged = checkpoint.read(folder)
    return {name: value.numpy().tobytes() for name, value in tensors.items()}, damaged


@pytest.mark.parametrize(("file", "name"), CASES, ids=lambda value: value)
def test_the_newest_whole_one_is_read(file, name, trained, tmp_path):
    folder = tmp_path / "checkpoint"
    shutil.copytree(trained[0] / "checkpoint", folder)
    newest = state_of(folder)[0]
    DAMAGES[name](folder / "step-0000012" / file)
    step, tensors, damaged = checkpoint.read(folder)
    if step == 12:  # a bit of what the manifest tells of the machine, say: the weights are those that were written
        assert (file, damaged) == (MANIFEST, [])
        assert state_of(folder)[0] == newest
        return
    assert step == 11
    (problem,) = damaged
    assert "step-0000012" in problem
    assert len(tensors) == len(newest)


@pytest.mark.parametrize("file", [STATE, MANIFEST])
def test_any_bit_may_flip(file, trained, tmp_path):
    """Either it is found, or what is read is what was written."""
    folder, rng = tmp_path / "checkpoint", random.Random(file)
    shutil.copytree(trained[0] / "checkpoint", folder)
    path = folder / "step-0000012" / file
    data, newest = path.read_bytes(), state_of(folder)[0]
    for _ in range(trials(25)):
        place = rng.randrange(len(data))
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :])
        made, damaged = state_of(folder)
        assert made == newest or len(damaged) == 1
        assert not (file == STATE and made == newest)


def test_one_of_another_step_is_not_taken_for_it(trained, tmp_path):
    shutil.copytree(trained[0] / "checkpoint" / "step-0000011", tmp_path / "step-0000012")
    assert checkpoint.read(tmp_path)[0] == 0
    assert "is of another checkpoint" in checkpoint.read(tmp_path)[2][0]


def test_weights_that_are_not_finite_are_not_kept(tiny_text, tmp_path):
    model = Embedder.load(tiny_text, device="cpu")
    parameters, optimizer = learned(model), run.optimizer_for(model.module, faulting.SETTINGS)
    checkpoint.save(tmp_path, 3, parameters, optimizer)
    name, broken = next(iter(parameters.items()))
    broken.data[0] = float("nan")
    with pytest.raises(ArtifactError, match=rf"after step 4, weight.{name} is not finite.*The last good.*step-0000003"):
        checkpoint.save(tmp_path, 4, parameters, optimizer)
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000003"]


@pytest.mark.parametrize("left", ["begun", "damaged"])
def test_what_is_not_whole_takes_no_place_of_one_that_is(left, tiny_text, tmp_path):
    """Two runs were killed while they wrote step 30 and 25, or both were damaged afterwards: the third has saved step 20."""
    model = Embedder.load(tiny_text, device="cpu")
    parameters, optimizer = learned(model), run.optimizer_for(model.module, faulting.SETTINGS)
    for step in (25, 30):
        checkpoint.save(tmp_path, step, parameters, optimizer)
        spoilt = tmp_path / f"step-00000{step}"
        (spoilt / MANIFEST).unlink() if left == "begun" else cut(0.5)(spoilt / STATE)
    for step, kept in ((20, [20]), (22, [20, 22]), (24, [22, 24])):
        checkpoint.save(tmp_path, step, parameters, optimizer)
        assert checkpoint.read(tmp_path)[0] == step
        assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{n:07d}" for n in kept]


def test_a_name_that_is_the_end_of_another_one(tmp_path):
    module = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2)})})
    parameters = dict(module.named_parameters())
    optimizer = torch.optim.AdamW(parameters.values())
    sum(parameter.square().sum() for parameter in parameters.values()).backward()
    optimizer.step()
    checkpoint.save(tmp_path, 1, parameters, optimizer)
    before = {name: sorted(optimizer.state[parameter]) for name, parameter in parameters.items()}
    assert checkpoint.restore(tmp_path, parameters, optimizer) == (1, [])
    assert {name: sorted(optimizer.state[parameter]) for name, parameter in parameters.items()} == before


def fails_to_save(model, out, monkeypatch, make_room):
    """A run whose disk is full after the third step, and what it says; then there is room, and it goes on."""
    save, steps = checkpoint.write, []

    def saving(folder, step, tensors):
        steps.append(step)
        with make_room() if step == 4 else faulting.contextlib.nullcontext():
            save(folder, step, tensors)

    monkeypatch.setattr(checkpoint, "write", saving)
    with pytest.raises(ArtifactError) as told:
        train(model, tiny.texts(), InfoNCE(0.1), steps=faulting.STEPS, settings=faulting.SETTINGS, out=out)
    assert steps[-1] == 4
    assert checkpoint.newest(out / "checkpoint").name == "step-0000003"
    assert sorted(path.name for path in (out / "checkpoint").iterdir()) == ["step-0000002", "step-0000003"]
    return str(told.value)


def test_no_room_for_a_checkpoint(trained, tiny_text, tmp_path, monkeypatch):
    """A small disk of its own where there may be one (root), else a limit to the size of files."""
    with faulting.small_disk(tmp_path / "disk", 8) as mounted:
        for n in range(trials(1)):
            out = tmp_path / "disk" / str(n)
            rng = random.Random(n)

            @faulting.contextlib.contextmanager
            def full(out=out, rng=rng):
                size = sum(path.stat().st_size for path in (out / "checkpoint" / "step-0000003").iterdir())
                if not mounted:
                    with faulting.files_below(rng.randrange(1, size)):
                        yield
                    return
                free = shutil.disk_usage(out).free
                (out / "filler").write_bytes(bytes(max(free - rng.randrange(size), 0)))
                yield

            with monkeypatch.context() as patch:
                told = fails_to_save(Embedder.load(tiny_text, device="cpu"), out, patch, full)
            assert told.startswith("the checkpoint of step 4 cannot be written to")
            assert "The last good checkpoint:" in told
            (out / "filler").unlink(missing_ok=True)
            assert faulting.learn(str(tiny_text), str(out)) == trained[1]
            assert faulting.losses(out) == trained[2]
            shutil.rmtree(out)


def test_a_folder_that_cannot_be_written(tiny_text, tmp_path, monkeypatch):
    folder = tmp_path / "checkpoint"
    with faulting.small_disk(folder) as mounted:

        @faulting.contextlib.contextmanager
        def closed():
            if mounted:  # root may write wherever the file system lets anybody
                subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
            else:
                folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
            try:
                yield
            finally:
                if mounted:
                    subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)
                else:
                    folder.chmod(stat.S_IRWXU)

        if os.geteuid() == 0 and not mounted:
            pytest.skip("root may write everywhere, and may not mount here")
        told = fails_to_save(Embedder.load(tiny_text, device="cpu"), tmp_path, monkeypatch, closed)
    assert "Read-only file system" in told or "Permission denied" in told
