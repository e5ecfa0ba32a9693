"""Trackers: tensorboard for real; trackio and wandb by fakes that take what the packages do (0.43, 0.31) and nothing else."""

import json
import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

import pytest
import tiny
import torch

from hardwon.errors import Diverged, MissingExtra, RecipeError
from hardwon.losses import InfoNCE
from hardwon.training import LearnedTemperature, Settings, trackers, train
from hardwon.training.trackers import SHOWN, shown, tracking

STEPS = 6
ALL = ("tensorboard", "trackio", "wandb")
SETTINGS = Settings(
    batch_size=8, negatives=1, dropout=True, learning_rate=1e-3, report_every=2, temperature=LearnedTemperature(0.05, 0.2)
)
TIMING = ("items_per_second", "memory_mib")  # differ from run to run


class Server:
    """What a fake service was sent, by run: rows of (step, values), and how it ended."""

    def __init__(self):
        self.begun, self.rows, self.ended, self.fails_at = [], {}, [], None

    def log(self, run, values, step):
        rows = self.rows.setdefault(run, [])
        if self.fails_at is not None and step >= self.fails_at:
            raise ConnectionError("network gone")
        assert all(type(value) is float for value in values.values())
        assert not rows or step >= rows[-1][0], "went back"
        rows.append((step, dict(values)))


class FakeRun:
    def __init__(self, server, name):
        self.server, self.name = server, name

    def log(self, metrics, step=None):
        self.server.log(self.name, metrics, step)

    def finish(self, exit_code=None):
        self.server.ended.append((self.name, exit_code))


def fake(monkeypatch, name):
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None, origin="a fake")
    monkeypatch.setitem(sys.modules, name, module)
    return module


@pytest.fixture
def wandb(monkeypatch):
    server, module = Server(), fake(monkeypatch, "wandb")
    for variable in ("WANDB_PROJECT", "WANDB_NAME"):
        monkeypatch.delenv(variable, raising=False)

    def init(*, project, name, id, resume, reinit):
        assert resume == "allow"
        assert reinit == "create_new"  # a run that the caller has open is left alone
        server.begun.append((project, name, id))
        return FakeRun(server, id)

    module.init = init
    return server


@pytest.fixture
def trackio(monkeypatch):
    server, module, current = Server(), fake(monkeypatch, "trackio"), []

    def init(project, name, resume):
        assert resume == "allow"
        server.begun.append((project, name))
        current.append(FakeRun(server, name))
        return current[-1]

    module.init, module.finish = init, lambda: current.pop().finish()
    return server


def run(model, out, validate=None, track=ALL, settings=SETTINGS, **how):
    return train(
        model,
        tiny.texts(),
        InfoNCE(0.1),
        steps=STEPS,
        settings=replace(settings, track=track),
        out=out,
        validate=validate,
        **how,
    )


def rows_of(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def events_of(out):
    """{name: [(step, value)]} of what tensorboard would show."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def curves(rows):
    """The same of (step, values)."""
    made = {}
    for step, values in rows:
        for name, value in values.items():
            made.setdefault(name, []).append((step, value))
    return made


def logged(out):
    """The same of `metrics.jsonl`."""
    return curves((row["step"], shown(row)) for row in rows_of(out))


def check_same(made, truth, timing=True):
    assert made.keys() == truth.keys()
    for name, points in truth.items():
        assert [step for step, _ in made[name]] == [step for step, _ in points], name
        if timing or name not in TIMING:
            assert [value for _, value in made[name]] == pytest.approx([value for _, value in points], rel=1e-6), name


class Stop(Exception):
    pass


def validation(stop_at=None, error=Stop):
    """Validation after every step, which stops the run in the middle of one."""
    calls = []

    def check():
        calls.append(1)
        if len(calls) == stop_at:
            raise error
        return 0.25 * len(calls)

    return 1, check


def constant():
    return 1, lambda: 0.5


@pytest.fixture
def often(monkeypatch):
    """A checkpoint after every step."""
    monkeypatch.setattr("hardwon.training.run.SAVE_EVERY_S", 0.0)


class TestWhatIsShown:
    def test_tensorboard_shows_the_log(self, text_model, tmp_path):
        run(text_model, tmp_path, validation(), track=("tensorboard",))
        made = events_of(tmp_path)
        check_same(made, logged(tmp_path))
        assert {name for name in made if not name.startswith("gradient/")} == set(SHOWN)
        assert [step for step, _ in made["loss"]] == [step for step, _ in made["validation"]] == [1, 2, 3, 4, 5, 6]
        assert [step for step, _ in made["gradient/positive"]] == [1, 3, 5]

    def test_so_do_the_others(self, text_model, tmp_path, wandb, trackio):
        run(text_model, tmp_path, validation(), title="round 1")
        truth = logged(tmp_path)
        for server in (wandb, trackio):
            (rows,) = server.rows.values()
            assert curves(rows) == truth
        identity = (tmp_path / "run-id").read_text().strip()
        assert wandb.begun == [("hardwon", "round 1", identity)]
        assert trackio.begun == [("hardwon", f"round 1 {identity}")]
        assert wandb.ended == [(identity, 0)]
        assert trackio.ended == [(f"round 1 {identity}", None)]

    def test_only_what_was_asked_for_is_used(self, text_model, tmp_path, wandb, trackio):
        run(text_model, tmp_path, track=("trackio", "trackio"))
        assert len(trackio.begun) == 1
        assert wandb.begun == []
        assert not (tmp_path / "tensorboard").exists()

    def test_without_a_folder(self, text_model, wandb, trackio):
        for _ in range(2):
            run(text_model, None, track=("wandb", "trackio"))
        assert len({identity for *_, identity in wandb.begun}) == 2
        assert [len(rows) for rows in trackio.rows.values()] == [STEPS + 3] * 2

    def test_a_name_and_project_of_ones_own(self, text_model, wandb, monkeypatch):
        monkeypatch.setenv("WANDB_PROJECT", "emoji")
        monkeypatch.setenv("WANDB_NAME", "try 7")
        run(text_model, None, track=("wandb",))
        assert wandb.begun[0][:2] == ("emoji", "try 7")

    def test_a_row_is_flat_and_holds_numbers_only(self):
        row = {"step": 3, "gradient": {"positive": 0.5, "false_negatives": None}}
        assert shown(row) == {"gradient/positive": 0.5}
        assert shown({"step": 3, "gradient": None}) == {}
        assert shown({"event": "damaged checkpoint passed over", "problem": "x"}) == {}
        assert shown({"step": 3, "validation": 1, "seconds": 0.1}) == {"validation": 1.0}


class TestInterrupted:
    @pytest.mark.parametrize("stop", [4, 5])
    def test_goes_on_where_it_was(self, fresh_text, tmp_path, often, wandb, trackio, stop):
        """Stopped while validating: what was logged after the last checkpoint is logged again, and shown once."""
        whole, parts = tmp_path / "whole", tmp_path / "parts"
        run(fresh_text(), whole, constant())
        truth = logged(whole)
        with pytest.raises(Stop):
            run(fresh_text(), parts, (1, constant_until(stop)))
        run(fresh_text(), parts, constant())
        check_same(logged(parts), truth, timing=False)
        check_same(events_of(parts), truth, timing=False)
        identity = (parts / "run-id").read_text().strip()
        for server, name in ((wandb, identity), (trackio, f"training {identity}")):
            assert [begun[-1] for begun in server.begun[1:]] == [name, name]
            check_same(curves(server.rows[name]), truth, timing=False)

    def test_starts_anew_without_a_checkpoint(self, fresh_text, tmp_path, wandb):
        """What a run without a checkpoint showed is another run's, or was shown before: steps go up from 1."""
        with pytest.raises(Stop):
            run(fresh_text(), tmp_path, (1, constant_until(4)), track=("tensorboard", "wandb"))
        assert len(logged(tmp_path)["loss"]) == 4
        run(fresh_text(), tmp_path, constant(), track=("tensorboard", "wandb"))
        check_same(events_of(tmp_path), logged(tmp_path))
        first, second = (identity for *_, identity in wandb.begun)
        assert first != second
        assert len(wandb.rows[first]) < len(wandb.rows[second])
        check_same(curves(wandb.rows[second]), logged(tmp_path))

    @pytest.mark.parametrize("error", [KeyboardInterrupt, Stop])
    def test_is_closed_all_the_same(self, text_model, tmp_path, wandb, trackio, error):
        with pytest.raises(error):
            run(text_model, tmp_path, validation(2, error))
        assert [code for _, code in wandb.ended] == [1]
        assert len(trackio.ended) == 1
        assert [step for step, _ in events_of(tmp_path)["loss"]] == [1, 2]

    def test_one_that_diverges_too(self, text_model, tmp_path, wandb):
        def breaks(scores, targets):
            return scores.sum() * torch.nan

        settings = replace(SETTINGS, track=("wandb",), temperature=None)
        with pytest.raises(Diverged):
            train(text_model, tiny.texts(), breaks, steps=2, settings=settings, out=tmp_path)
        assert [code for _, code in wandb.ended] == [1]


def constant_until(stop):
    calls = []

    def check():
        calls.append(1)
        if len(calls) == stop:
            raise Stop
        return 0.5

    return check


class TestFailing:
    def test_changes_neither_losses_nor_weights(self, fresh_text, tmp_path, weights, wandb, trackio):
        whole, parts = fresh_text(), fresh_text()
        run(whole, tmp_path / "whole", track=())
        trackio.fails_at = 3
        with pytest.warns(
            UserWarning, match=r"trackio failed \(ConnectionError\('network gone'\)\): the training goes on"
        ) as told:
            run(parts, tmp_path / "parts")
        assert len(told) == 1
        a, b = weights(whole), weights(parts)
        assert all(torch.equal(a[name], b[name]) for name in a)
        check_same(logged(tmp_path / "parts"), logged(tmp_path / "whole"), timing=False)
        # It is closed, and the others have seen everything.
        assert len(trackio.ended) == 1
        (rows,) = trackio.rows.values()
        assert max(step for step, _ in rows) == 2
        (rows,) = wandb.rows.values()
        assert curves(rows) == logged(tmp_path / "parts")
        check_same(events_of(tmp_path / "parts"), logged(tmp_path / "parts"))

    def test_at_the_end_is_warned_of_and_hides_no_error(self, text_model, tmp_path, wandb, trackio, monkeypatch):
        def breaks():
            raise TimeoutError("no answer")

        monkeypatch.setattr(sys.modules["trackio"], "finish", breaks)
        with pytest.warns(UserWarning, match="trackio failed"):
            run(text_model, tmp_path, track=("wandb", "trackio"))
        with pytest.warns(UserWarning, match="trackio failed"), pytest.raises(Stop):
            run(text_model, tmp_path, validation(2), track=("wandb", "trackio"))
        assert [code for _, code in wandb.ended] == [0, 1]

    def test_to_start_is_an_error_before_the_first_step(self, text_model, tmp_path, weights, wandb, trackio, monkeypatch):
        def breaks(**_):
            raise PermissionError("log in first")

        before = weights(text_model)
        (tmp_path / "metrics.jsonl").write_text('{"step": 7, "loss": 1.0}\n')
        monkeypatch.setattr(sys.modules["wandb"], "init", breaks)
        with pytest.raises(PermissionError, match="log in first"):
            run(text_model, tmp_path, track=("trackio", "wandb"))
        assert len(trackio.ended) == 1
        assert [row["step"] for row in rows_of(tmp_path)] == [7]  # the log of before is as it was
        assert all(torch.equal(value, before[name]) for name, value in weights(text_model).items())

    def test_control_c_is_no_failure_of_a_tracker(self, wandb, trackio):
        def stops(run, values, step):
            raise KeyboardInterrupt

        wandb.log = stops
        with pytest.raises(KeyboardInterrupt), tracking(("wandb", "trackio"), title="x") as tell:
            tell({"step": 1, "loss": 0.5})
        assert len(wandb.ended) == len(trackio.ended) == 1


class TestRefused:
    def test_an_unknown_name(self):
        with pytest.raises(
            RecipeError, match="unknown tracker 'wandbb': did you mean 'wandb'\\? Valid: tensorboard, trackio, wandb"
        ):
            Settings(track=("trackio", "wandbb"))

    @pytest.mark.parametrize(
        ("name", "remedy"),
        [
            ("tensorboard", r"It comes with an extra: pip install 'hardwon\[track\]'"),
            ("trackio", "It is no part of hardwon: pip install trackio"),
            ("wandb", "It is no part of hardwon: pip install wandb"),
        ],
    )
    @pytest.mark.parametrize("folder", [False, True])
    def test_what_is_not_installed(self, text_model, tmp_path, weights, monkeypatch, name, remedy, folder):
        """A folder of that name in the working directory is no package, though Python takes it for one."""
        (tmp_path / name).mkdir()
        places = [str(tmp_path)] if folder else []
        monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: PathFinder.find_spec(name, places))
        assert (trackers.importlib.util.find_spec(name) is not None) == folder
        before = weights(text_model)
        with pytest.raises(MissingExtra, match=f"^{name} is not installed. {remedy}$"):
            run(text_model, tmp_path / "out", track=(name,))
        assert not (tmp_path / "out").exists()
        assert all(torch.equal(value, before[name]) for name, value in weights(text_model).items())

    def test_tensorboard_without_a_folder(self, text_model):
        with pytest.raises(RecipeError, match=r"the tracker 'tensorboard' writes files: give train a folder .* \(out=\.\.\.\)"):
            run(text_model, None, track=("tensorboard",))


def test_nothing_is_imported_unless_it_is_asked_for(text_model, tmp_path, monkeypatch):
    def refuse(name):
        raise AssertionError(name)

    monkeypatch.setattr(trackers.importlib, "import_module", refuse)
    monkeypatch.setattr(trackers.importlib.util, "find_spec", refuse)
    run(text_model, tmp_path, track=())
    assert not (tmp_path / "run-id").exists()
