"""Several processes learn what one learns: real ones, connected by gloo."""

import datetime
import json
import os

import processes
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import relative

from hardwon import distributed, losses
from hardwon.distributed import World
from hardwon.errors import RecipeError
from hardwon.losses.targets import Composable, parts_of
from hardwon.models import Embedder, Reranker

ROUNDING = 2e-6  # float32, of the norm
# The softmax of attention does not see the bias of the keys: its gradient is rounding alone, of which Adam makes whole steps.
UNSEEN = "self.key.bias"
NAMES = [*processes.CASES, *(f"lists, {name}" for name in processes.LISTS)]


@pytest.fixture(scope="module")
def models(tiny_text, tmp_path_factory):
    """Folders of an embedder and of a reranker."""
    reranker = tmp_path_factory.mktemp("reranker") / "model"
    Reranker.start_from(Embedder.load(tiny_text, device="cpu"), layers=1).save(reranker)
    return str(tiny_text), str(reranker)


@pytest.fixture(scope="module")
def two(models, tmp_path_factory):
    """By process: gradients of all cases, what is refused, and sums."""
    works = [(processes.steps, *models), (processes.refusals, models[0])]
    works += [(processes.sums, 1 << 24), (processes.sums, 3), (processes.starting, models[0]), (processes.cramped, models[0])]
    works += [(processes.choosing, models[0], gains) for gains in ((1.0, 2.0), (2.0, 1.0))]
    works.append((processes.untracked, models[0], str(tmp_path_factory.mktemp("untracked"))))
    works.append((processes.grouped, models[0]))
    return processes.together(2, tmp_path_factory.mktemp("two"), *works)


@pytest.fixture(scope="module")
def alone(models):
    return processes.steps(*models)


@pytest.fixture(scope="module")
def four(models, tmp_path_factory):
    """By process: gradients of two queries, of which two processes get none; no graph is kept."""
    return processes.together(4, tmp_path_factory.mktemp("four"), (processes.steps, *models, 2, 0))


@pytest.fixture(scope="module")
def couple(models):
    return processes.steps(*models, 2, 0)


def check_same(made, truth):
    assert float(truth["gradient"].norm()) > 1e-2
    assert float(made["value"]) == pytest.approx(float(truth["value"]), rel=1e-6)
    assert relative(made["gradient"], truth["gradient"]) < ROUNDING
    assert ("temperature" in made) == ("temperature" in truth)
    if "temperature" in truth:
        assert float(made["temperature"]) == pytest.approx(float(truth["temperature"]), rel=1e-5)


class TestGradients:
    def test_every_loss_is_among_the_cases(self):
        kinds = {kind for kind in vars(losses).values() if isinstance(kind, type) and issubclass(kind, Composable)}
        cases = [*processes.CASES.values(), *processes.LISTS.values()]
        assert {type(part) for loss, _ in cases for _, part in parts_of(loss)} == kinds - {losses.Weighted}

    def test_the_batch_is_an_awkward_one(self):
        made = processes.examples()
        queries, candidates = {e.query.key for e in made}, {c.item.key for e in made for c in e.candidates}
        assert len(made) % 2 == 1
        assert queries & candidates
        assert len({len(e.candidates) for e in made}) > 1

    @pytest.mark.parametrize("name", NAMES)
    def test_of_two_processes_are_those_of_one(self, two, alone, name):
        for made in two:
            check_same(made[0][name], alone[name])
        assert torch.equal(two[0][0][name]["gradient"], two[1][0][name]["gradient"])

    @pytest.mark.parametrize("name", NAMES)
    def test_of_four_of_which_two_have_no_queries(self, four, couple, name):
        for made in four:
            check_same(made[0][name], couple[name])

    @pytest.mark.parametrize(("name", "plain"), [("rules", "hardness"), ("widths", "hardness"), ("lists, rules", "lists, sum")])
    def test_the_choices_around_a_loss_matter_here(self, alone, name, plain):
        assert relative(alone[name]["gradient"], alone[plain]["gradient"]) > 1e-2


def test_ten_minutes_in_a_step_and_a_day_elsewhere(monkeypatch):
    """To embed or look at a large training set takes hours; a step does not."""
    told = {}
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, **settings: told.update(settings))
    monkeypatch.setattr(distributed, "_patient", lambda group: None)
    met = torch.distributed.HashStore()
    met.set("hardwon 0", "here")
    monkeypatch.setattr(distributed, "rendezvous", lambda where, timeout: told.update(meeting=timeout) or iter([(met, 1, 2)]))
    monkeypatch.delenv("HARDWON_TIMEOUT_S", raising=False)
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    World.current()
    assert told["timeout"] == datetime.timedelta(minutes=10)
    assert distributed.PATIENCE >= datetime.timedelta(hours=12)
    monkeypatch.setenv("HARDWON_TIMEOUT_S", "7.5")
    World.current()
    assert told["timeout"] == datetime.timedelta(seconds=7.5)
    assert told["meeting"] == datetime.timedelta(minutes=10)  # they start apart, however short a step is
    for wrong in ("0", "-1", "ten", "inf"):
        monkeypatch.setenv("HARDWON_TIMEOUT_S", wrong)
        with pytest.raises(RecipeError, match="HARDWON_TIMEOUT_S must be a number of seconds"):
            World.current()


class TestRefusals:
    def test_everyone_stops_for_the_same_reason(self, two):
        for _, says, *_ in two:
            assert says["foreign"].startswith("ValueError: on several processes a loss must be one of hardwon.losses")
            assert says["one process"].startswith("Diverged: scores or grades overflow at step 4")
            assert says["vectors"].startswith("Diverged: 20 vectors are not finite at step 4")


def test_a_reranker_starts_from_an_embedder_in_every_process(two):
    assert [made[4] for made in two] == ["fine", "fine"]


def test_one_process_may_run_out_of_memory(two, alone):
    for rank, made in enumerate(two):
        check_same(made[5], alone["sum"])
        assert made[5]["failures"] == ({"forward", "backward"} if rank else set())
        assert made[5]["told"] == rank


def test_a_tracker_that_cannot_start_stops_all(two):
    said = [process[8] for process in two]
    assert said[0].startswith("FileExistsError")
    assert said[1] == "RuntimeError: opening the log of metrics broke down in another process: its message says why"


def test_the_first_process_chooses_the_precision_of_all(two):
    """Each would choose by its own measurement, and float32 here would be added to bfloat16 there."""
    weights = []
    for work in (6, 7):
        first, second = two[0][work], two[1][work]
        check_equal(first["weights"], first["truth"])
        check_equal(second["weights"], first["truth"])
        weights.append(first["weights"])
    assert any(not torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert [made[6]["asked"] for made in two] == [1, 0]  # only the first measures


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where trainings write: "one" of one process, "two" of two."""
    return tmp_path_factory.mktemp("trainings")


@pytest.fixture(scope="module")
def pair(models, tiny_vlm, pictures, folder):
    """By process: trainings, a training with pictures, and interrupted ones without and with dropout."""
    works = [(processes.trainings, *models, str(folder / "two"))]
    works += [(processes.looking, str(tiny_vlm), pictures, str(folder / "two"))]
    works += [(processes.interrupted, models[0], str(folder / f"dropout {dropout}"), dropout) for dropout in (False, True)]
    works.append((processes.skipping, str(tiny_vlm), pictures))
    return processes.together(2, folder / "results", *works)


@pytest.fixture(scope="module")
def single(models, tiny_vlm, pictures, folder):
    """The same trainings by this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hardwon.training.run.SAVE_EVERY_S", 0.0)
        vectors_and_lists = processes.trainings(*models, str(folder / "one"))
        return vectors_and_lists, processes.looking(str(tiny_vlm), pictures, str(folder / "one"))


def check_trained(made, truth):
    torch.testing.assert_close(made["outputs"], truth["outputs"], rtol=1e-5, atol=2e-6)
    for name, value in truth["weights"].items():
        if UNSEEN not in name:
            # A step is 1e-3 long. Of a gradient next to nothing Adam makes a step as well: a single weight may stray.
            assert float((made["weights"][name] - value).square().mean().sqrt()) < 5e-6, name


def check_equal(made, truth):
    assert made.keys() == truth.keys()
    for name, value in truth.items():
        assert torch.equal(made[name], value), name


class TestTrain:
    @pytest.mark.parametrize("name", ["vectors", "lists"])
    def test_weights_are_those_of_one_process(self, pair, single, name):
        check_trained(pair[0][0][name], single[0][name])
        check_equal(pair[1][0][name]["weights"], pair[0][0][name]["weights"])

    def test_behind_a_frozen_tower_as_well(self, pair, single):
        check_trained(pair[0][1], single[1])
        check_equal(pair[1][1]["weights"], pair[0][1]["weights"])

    @pytest.mark.parametrize("name", ["learning", "frozen"])
    def test_all_leave_out_the_same_and_say_the_same(self, pair, tiny_vlm, pictures, name):
        alone = processes.skipping(str(tiny_vlm), pictures)[name]
        assert "2 items of 20 examples" in alone["said"]
        assert [made[-1][name]["said"] for made in pair] == [alone["said"]] * 2
        check_equal(pair[1][-1][name]["weights"], pair[0][-1][name]["weights"])
        for key, value in alone["weights"].items():
            if UNSEEN not in key:
                assert float((pair[0][-1][name]["weights"][key] - value).abs().max()) < 3e-5, key

    def test_only_the_first_looks_at_pictures(self, pair, single):
        assert single[1]["looks"] == 20
        assert [made[1]["looks"] for made in pair] == [20, 0]

    def test_only_the_first_writes(self, pair, single, folder):
        assert sorted(path.name for path in (folder / "two").iterdir()) == ["features", "process-0", "run"]

    @pytest.mark.parametrize("name", ["vectors", "lists"])
    def test_what_it_writes_is_what_one_process_would_have(self, pair, single, folder, name):
        own, truth = (folder / place / "process-0" / name for place in ("two", "one"))
        saved = [sorted(path.name for path in (place / "checkpoint").iterdir()) for place in (own, truth)]
        assert saved[0] == saved[1] != []
        assert (own / "tensorboard").exists() == (name == "lists")
        rows, expected = (
            [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()] for place in (own, truth)
        )
        for row, other in zip(rows, expected, strict=True):
            assert row.keys() == other.keys()
            assert row.pop("source", "") == other.pop("source", "")
            for timing in ("seconds", "items_per_second", "memory_mib"):
                row.pop(timing, None), other.pop(timing, None)
            assert row.pop("gradient", {}) == pytest.approx(other.pop("gradient", {}), rel=1e-4, abs=2e-6)
            assert row == pytest.approx(other, rel=1e-4, abs=2e-6)

    def test_one_interrupted_in_any_process_goes_on_as_if_nothing_had_been(self, pair):
        for made in pair:
            assert made[2]["steps"] == {"whole": 6, "before": 3, "parts": 3}
            check_equal(made[2]["parts"], made[2]["whole"])

    def test_with_dropout_as_well(self, pair):
        without, (whole, parts) = pair[0][2]["whole"], (pair[0][3][name] for name in ("whole", "parts"))
        assert any(not torch.equal(value, without[name]) for name, value in whole.items())  # it was on
        check_equal(parts, whole)


class TestSums:
    @pytest.mark.parametrize("work", [2, 3], ids=["all at once", "one by one"])
    def test_a_process_that_did_not_use_a_parameter_counts_as_zero(self, two, work):
        for made in two:
            both, one, _ = made[work]["gradients"]
            assert both.tolist() == [[3.0, 6.0], [9.0, 12.0]]
            assert one.tolist() == [5.0, 6.0, 7.0]

    def test_what_nobody_used_has_no_gradient(self, two):
        """As in one process, where the optimizer leaves such a parameter alone: not even its weight decays."""
        assert [made[2]["gradients"][2] for made in two] == [None, None]

    def test_numbers(self, two):
        for rank, made in enumerate(two):
            assert made[2]["world"] == (rank, 2, rank == 0)
            assert made[2]["sum"].tolist() == [1.0, -1.0]
            assert made[2]["largest"].tolist() == [1.0, 0.0]
            assert made[2]["given"].tolist() == [rank, -rank]  # what goes in stays as it was
            assert [value.tolist() for value in made[2]["same"]] == [[3.0], [[0.0]]]


class TestWorld:
    @settings(deadline=None)
    @given(st.lists(st.integers(0, 500), max_size=40), st.integers(1, 6))
    def test_shares_are_a_partition_of_about_equal_cost(self, costs, size):
        shares = [World(rank, size).share(costs) for rank in range(size)]
        assert sorted(n for share in shares for n in share) == list(range(len(costs)))
        assert all(share == sorted(share) for share in shares)
        loads = [sum(costs[n] for n in share) for share in shares]
        assert max(loads) - min(loads) <= max(costs, default=0)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1

    @settings(deadline=None)
    @given(st.integers(0, 100), st.integers(1, 7))
    def test_rows_are_a_partition_in_order(self, count, size):
        rows = [range(count)[World(rank, size).rows(count)] for rank in range(size)]
        assert [n for part in rows for n in part] == list(range(count))
        assert max(map(len, rows)) - min(map(len, rows)) <= 1

    def test_one_process_has_nothing_to_do(self):
        world, parameter = World(), torch.nn.Parameter(torch.ones(2))
        numbers = torch.tensor([1.0, 2.0])
        assert world.first
        assert world.sum(numbers) is numbers
        assert world.largest(numbers) is numbers
        assert world.share([3, 1, 2]) == [0, 1, 2]
        assert world.rows(5) == slice(0, 5)
        world.sum_gradients([parameter])
        world.same([parameter])
        world.wait()
        assert parameter.grad is None
        assert parameter.tolist() == [1.0, 1.0]

    @pytest.mark.parametrize("environment", [{}, {"WORLD_SIZE": "1", "RANK": "0"}, {"WORLD_SIZE": "4"}], ids=str)
    def test_one_process_unless_others_are_there(self, environment, monkeypatch):
        for name in ("WORLD_SIZE", "RANK"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setitem(os.environ, name, value)
        assert World.current() == World(0, 1)
        assert not torch.distributed.is_initialized()

    def test_a_world_that_is_there_is_found(self, tmp_path):
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
        try:
            assert World.current() == World(0, 1)
        finally:
            torch.distributed.destroy_process_group()


def test_the_first_process_groups_for_all(two, models):
    first, second = two[0][9], two[1][9]
    truth = processes.grouped(models[0])
    assert first["groups"] == second["groups"] == truth["groups"]
    assert len(set(truth["groups"])) < len(truth["groups"])
    assert (first["asked"], second["asked"]) == (2, 0)
    check_equal(second["weights"], first["weights"])
