"""Steps that run out of memory: in the first pass, between kept graphs, in replay and in the middle of a backward pass."""

import warnings
import weakref
from functools import partial
from types import SimpleNamespace

import pytest
import tiny
import torch
from torch.autograd.graph import saved_tensors_hooks

from hardwon.errors import ModelError
from hardwon.losses import InfoNCE, JudgeAlignment, Listwise, Pairwise
from hardwon.models import Embedder, Reranker
from hardwon.models.memory import Room
from hardwon.training import Memory, Settings, train
from hardwon.training.batches import listed, shared
from hardwon.training.loop import without_dropout
from hardwon.training.step import embedder_step, reranker_step

RANOUT = "memory ran out in a training step"


pytestmark = pytest.mark.usefixtures("little_garbage")


@pytest.fixture(scope="module", params=["embedder", "seeing embedder", "reranker"])
def case(request, tiny_text, tiny_vlm, pictures):
    """A model, a function that takes a step and gives the loss and the gradient, and what comes of it undisturbed."""
    model = Embedder.load(tiny_vlm if request.param == "seeing embedder" else tiny_text, device="cpu")
    examples = tiny.examples(pictures)[:6] if request.param == "seeing embedder" else tiny.texts()[:8]
    take, batch, loss = embedder_step, shared(examples, 0), InfoNCE(0.1, hardness=2.0) + 0.5 * JudgeAlignment(0.2)
    if request.param == "reranker":
        model = Reranker.start_from(model)
        take, batch, loss = reranker_step, listed(examples, 0), Pairwise() + 0.5 * Listwise()
    model.body.settle_vision()
    model.body.train()
    without_dropout(model.module)

    def step(memory):
        value = take(model, loss, batch, memory)
        made = [p.grad.flatten() if p.grad is not None else torch.zeros(p.numel()) for p in model.module.parameters()]
        model.module.zero_grad(set_to_none=True)
        return float(value), torch.cat(made)

    inputs = len(batch.pairs) if request.param == "reranker" else len({i.key for i in (*batch.queries, *batch.candidates)})
    return SimpleNamespace(model=model, step=step, truth=step(Memory(100_000)), inputs=inputs)


class Held:
    """A tensor that a graph holds on to."""

    def __init__(self, tensor):
        self.tensor = tensor.detach()  # of an output it would otherwise hold the graph that holds it


class Space:
    """Memory of a size: what graphs hold on to is counted until it is set free; too much is refused with torch's error.

    Args:
        model: an embedder or reranker.
        monkeypatch: takes everything back.
        held: bytes of all graphs together; None: not limited.
        rows: of one pass; with a graph also of the graph alone, see `graphs_only`.
        graphs_only: passes without a graph are not limited.
    """

    def __init__(self, model, monkeypatch, held=None, rows=None, graphs_only=False):
        self.held, self.rows, self.graphs_only = held, rows, graphs_only
        self.used, self.most, self.refused, self.passes = 0, 0, 0, []
        self.weights = {p.data_ptr() for p in model.module.parameters()}
        forward = partial(type(model).forward, model)  # not that of a space before

        def limited(inputs):
            self.passes.append((len(inputs), torch.is_grad_enabled()))
            if self.rows and len(inputs) > self.rows and (torch.is_grad_enabled() or not self.graphs_only):
                self.refuse()
            with saved_tensors_hooks(self.pack, lambda held: held.tensor):
                return forward(inputs)

        monkeypatch.setattr(model, "forward", limited)

    def refuse(self):
        self.refused += 1
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def pack(self, tensor):
        size = 0 if tensor.data_ptr() in self.weights else tensor.nbytes
        if self.held is not None and self.used + size > self.held:
            self.refuse()
        self.used += size
        self.most = max(self.most, self.used)
        held = Held(tensor)
        weakref.finalize(held, self.free, size)
        return held

    def free(self, size):
        self.used -= size


def check_same(made, truth):
    assert made[0] == pytest.approx(truth[0], rel=1e-6)
    assert float(truth[1].norm()) > 1e-2
    assert float((made[1] - truth[1]).norm() / truth[1].norm()) < 3e-6


class TestTheGradientIsTheSame:
    @pytest.mark.parametrize("keep", [None, 130])
    @pytest.mark.parametrize("rows", [1, 3])
    def test_when_a_chunk_is_too_large(self, case, monkeypatch, keep, rows):
        space = Space(case.model, monkeypatch, rows=rows)
        with pytest.warns(UserWarning, match=RANOUT) as told:
            check_same(case.step(Memory(100_000, keep)), case.truth)
        assert space.refused > 1
        assert len(told) == 1
        assert space.used == 0

    def test_when_a_chunk_is_too_large_with_its_graph_only(self, case, monkeypatch):
        space = Space(case.model, monkeypatch, rows=4, graphs_only=True)
        with pytest.warns(UserWarning, match=RANOUT):
            check_same(case.step(Memory(100_000, 0)), case.truth)
        assert space.passes[0] == (case.inputs, False)  # fits
        assert space.passes[1] == (case.inputs, True)  # does not
        assert sum(rows for rows, graph in space.passes if graph and rows <= 4) == case.inputs

    @pytest.mark.parametrize("share", [0.8, 0.4, 0.0])
    def test_when_graphs_that_are_kept_fill_memory(self, case, monkeypatch, share):
        alone = Space(case.model, monkeypatch)
        case.step(Memory(60, 0))
        everything = Space(case.model, monkeypatch)
        case.step(Memory(60))
        assert everything.used == 0
        space = Space(case.model, monkeypatch, held=alone.most + int(share * (everything.most - alone.most)))
        room = Memory(60).room()
        with pytest.warns(UserWarning, match=RANOUT):
            check_same(case.step(room), case.truth)
        assert room.tokens == 60  # chunks were not what filled it
        assert room.keep is not None
        assert space.most > 0.5 * space.held
        # Besides the passes that failed, no chunk is encoded more than twice.
        assert len(space.passes) <= 2 * len(everything.passes) + space.refused
        check_same(case.step(room), case.truth)

    @pytest.mark.parametrize("call", [1, 3])
    @pytest.mark.parametrize("keep", [None, 0])
    def test_in_the_middle_of_a_backward_pass(self, case, keep, call):
        calls = []

        def breaks(gradient):
            calls.append(len(gradient))
            if len(calls) == call:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

        # Low in the model: gradients of what lies above have been added by then.
        low = (p for n, p in case.model.module.named_parameters() if "layer.0.attention.self.query.weight" in n)
        handle = next(low).register_hook(breaks)
        with pytest.warns(UserWarning, match=RANOUT):
            check_same(case.step(Memory(40, keep)), case.truth)
        handle.remove()
        assert len(calls) > call

    def test_when_nothing_but_single_items_fits(self, case, monkeypatch):
        measured = Space(case.model, monkeypatch)
        case.step(Memory(1, 0))
        space = Space(case.model, monkeypatch, held=measured.most)
        with pytest.warns(UserWarning, match=RANOUT):
            check_same(case.step(Memory(100_000)), case.truth)
        assert space.used == 0


class TestDropout:
    def test_graphs_that_are_given_up_are_made_again_with_the_same_masks(self, text_model, texts, monkeypatch):
        text_model.body.train()
        made, spaces = [], [Space(text_model, monkeypatch)]
        for limited in (False, True):
            torch.manual_seed(3)
            if limited:
                spaces.append(Space(text_model, monkeypatch, held=spaces[0].most * 2 // 3))
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                value = embedder_step(text_model, InfoNCE(0.1), shared(texts[:8], 0), Memory(60))
            assert len(told) == limited
            gradient = torch.cat([p.grad.flatten() for p in text_model.module.parameters() if p.grad is not None])
            text_model.module.zero_grad(set_to_none=True)
            made.append(((float(value), gradient), torch.random.get_rng_state()))
        check_same(made[1][0], made[0][0])
        assert torch.equal(made[1][1], made[0][1])  # the next step draws the same, too


class TestRemembered:
    def test_later_steps_do_not_run_into_it_again(self, case, monkeypatch):
        space = Space(case.model, monkeypatch, rows=3)
        room = Memory(100_000).room()
        with pytest.warns(UserWarning, match=RANOUT) as told:
            case.step(room)
        assert f"Memory(chunk_tokens={room.tokens}, keep_tokens={room.keep})" in str(told[0].message)
        refused = space.refused
        for _ in range(2):
            check_same(case.step(room), case.truth)  # a warning would be an error
        assert space.refused == refused
        # What the user is told to set is free of trouble from the start.
        check_same(case.step(Memory(room.tokens, room.keep)), case.truth)
        assert space.refused == refused

    def test_in_a_training(self, fresh_text, texts, weights, monkeypatch):
        trained, refused = [], 0
        settings = Settings(batch_size=8, negatives=1, learning_rate=1e-3, memory=Memory(100_000))
        for limited in (False, True):
            model = fresh_text()
            space = Space(model, monkeypatch, rows=3 if limited else None)
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                train(model, texts, InfoNCE(0.1), steps=4, settings=settings)
            assert len([warning for warning in told if RANOUT in str(warning.message)]) == limited
            trained.append(weights(model))
            refused = space.refused
        for name, value in trained[0].items():
            if "key.bias" not in name:  # its gradient is rounding alone, and Adam's steps are as long for that
                torch.testing.assert_close(trained[1][name], value, rtol=0, atol=5e-5)
        assert 1 < refused < 6  # all in the first step


class TestNoWayOut:
    def test_an_item_that_never_fits(self, case, monkeypatch):
        space = Space(case.model, monkeypatch, held=100)
        with pytest.raises(
            ModelError, match=r"^(item|the pair of items) \w+ \('.*'\).* comes to about \d+ tokens and does not fit"
        ):
            case.step(Memory(100_000))
        assert space.used == 0
        assert all(p.grad is None for p in case.model.module.parameters())

    def test_an_item_that_never_fits_is_named(self, text_model, texts, monkeypatch):
        def forward(items):
            if any(item.text == "blue bar" for item in items):
                raise MemoryError
            return type(text_model).forward(text_model, items)

        monkeypatch.setattr(text_model, "forward", forward)
        (item,) = (example.query for example in texts if example.query.text == "blue bar")
        message = (
            rf"^item {item.key[:12]} \('blue bar'\) comes to about {text_model.cost(item)} tokens and does not .*max_pixels"
        )
        with pytest.raises(ModelError, match=message):
            embedder_step(text_model, InfoNCE(0.1), shared(texts[:12], 0), Memory(100_000))

    def test_in_replay(self, case, monkeypatch):
        Space(case.model, monkeypatch, held=100)
        with pytest.raises(ModelError, match="does not fit into memory by itself"):
            case.step(Memory(100_000, 0))
        assert all(p.grad is None for p in case.model.module.parameters())

    def test_gradients_from_before(self, text_model, texts):
        text_model.module.eval()
        embedder_step(text_model, InfoNCE(0.1), shared(texts[:4], 0), Memory())

        def breaks(_):
            raise torch.OutOfMemoryError("CUDA out of memory.")

        next(p for p in text_model.module.parameters() if p.grad is not None).register_hook(breaks)
        with pytest.raises(ModelError, match="gradients of an earlier one, which are spoilt now: clear them with zero_grad"):
            embedder_step(text_model, InfoNCE(0.1), shared(texts[:4], 0), Memory())

    def test_other_errors_are_not_retried(self, text_model, texts, monkeypatch):
        calls = []

        def forward(items):
            calls.append(len(items))
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

        monkeypatch.setattr(text_model, "forward", forward)
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            embedder_step(text_model, InfoNCE(0.1), shared(texts[:4], 0), Memory())
        assert len(calls) == 1


def test_a_room_is_what_was_asked_for():
    room = Memory(7, 5).room()
    assert isinstance(room, Room)
    assert (room.tokens, room.keep) == (7, 5)
