"""Memory that runs out while encoding and scoring, and gradient checkpointing."""

import gc
import weakref

import numpy as np
import pytest
import tiny
import torch
import vlms
from hypothesis import given
from hypothesis import strategies as st

from hardwon.errors import ModelError
from hardwon.items import Candidate, Example, Item
from hardwon.losses import InfoNCE, Pairwise
from hardwon.models import Embedder, Reranker
from hardwon.models.memory import Room, attempted, checkpointed, out_of_memory
from hardwon.training import Memory, Settings, train
from hardwon.training.batches import listed, shared
from hardwon.training.loop import without_dropout
from hardwon.training.step import embedder_step, reranker_step

pytestmark = pytest.mark.usefixtures("little_garbage")


class TestOutOfMemory:
    def test_what_torch_and_numpy_really_raise(self):
        for make in (lambda: torch.empty(2**46), lambda: np.empty(2**50), lambda: bytearray(2**60)):
            with pytest.raises((RuntimeError, MemoryError)) as caught:
                make()
            assert out_of_memory(caught.value)

    @pytest.mark.parametrize(
        ("error", "truth"),
        [
            (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
            (MemoryError(), True),
            (RuntimeError("CUDA error: out of memory"), True),
            (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4 bytes."), True),
            (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
            (RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 2x3)"), False),
            (ValueError("out of memory"), False),
            (ModelError("does not fit into memory"), False),
        ],
        ids=str,
    )
    def test_errors(self, error, truth):
        assert out_of_memory(error) is truth


class TestAttempted:
    def test_what_work_returns(self):
        assert attempted(lambda: 3) == [3]
        assert attempted(lambda: None) == [None]

    def test_what_failed_work_held_is_free(self):
        alive = []

        def work():
            held = torch.zeros(3)
            alive.append(weakref.ref(held))
            knot = [held]
            knot.append(knot)  # only the collector of garbage finds this
            raise torch.OutOfMemoryError("CUDA out of memory.")

        gc.disable()
        try:
            assert attempted(work) == []
            assert alive[0]() is None
        finally:
            gc.enable()

    def test_other_errors_pass(self):
        with pytest.raises(ZeroDivisionError):
            attempted(lambda: 1 / 0)
        with pytest.raises(RuntimeError, match="size"):
            attempted(lambda: torch.zeros(2) @ torch.zeros(3))


class TestRoom:
    @given(costs=st.lists(st.integers(1, 20), max_size=30), tokens=st.integers(1, 100), limit=st.integers(20, 100))
    def test_everything_is_done_once_within_the_limit(self, costs, tokens, limit):
        room, failed, done = Room(tokens), [], []

        def work(rows):
            size = len(rows) * max(costs[n] for n in rows)
            if size > limit:
                failed.append(size)
                raise MemoryError
            return [n * n for n in rows]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("hardwon.models.memory.gc.collect", lambda: 0)  # takes long
            for rows, made in room.each(range(len(costs)), costs, work, str):
                assert made == [n * n for n in rows]
                done += rows
        assert sorted(done) == list(range(len(costs)))
        assert failed == sorted(failed, reverse=True)
        assert len(failed) <= 3  # 100 tokens are halved until 20 are left
        assert room.tokens == (tokens if not failed else failed[-1] // 2)

    def test_other_memory_is_given_up_first(self):
        spare, said = [1, 1], []

        def work(rows):
            if spare:
                raise MemoryError
            return rows

        def give_up():
            said.append(len(spare))
            return bool(spare and spare.pop())

        assert [rows for rows, _ in Room(6).each(range(3), [2, 2, 2], work, str, give_up)] == [[0, 1, 2]]
        assert said == [2, 1]

    def test_tells_once_and_only_if_there_is_something_to_tell(self):
        room = Room(8)
        room.tell("quiet")
        room.shrink([0, 1], [4, 4], str)
        assert room.tokens == 4
        with pytest.warns(UserWarning, match="loud"):
            room.tell("loud")
        room.shrink([0, 1], [2, 2], str)
        room.tell("quiet")

    def test_a_single_item(self):
        with pytest.raises(
            ModelError, match=r"^item 1 comes to about 9 tokens and does not fit into memory by itself: make its"
        ):
            Room(8).shrink([1], [4, 9], lambda n: f"item {n}")


@pytest.fixture
def items(pictures):
    paths = list(pictures.values())
    words = [Item(text="red square " * n) for n in range(1, 12)]
    return [*words, *(Item(images=(path,)) for path in paths[:3]), Item(images=(paths[3],), text="what is it")]


def limited(model, monkeypatch, rows):
    """Passes of more than `rows` rows fail; returns the sizes of all passes."""
    passes = []

    def forward(inputs):
        passes.append(len(inputs))
        if len(inputs) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return type(model).forward(model, inputs)

    monkeypatch.setattr(model, "forward", forward)
    return passes


class TestEncoding:
    def test_vectors_are_the_same(self, vlm, items, monkeypatch):
        truth = vlm.encode(items)
        passes = limited(vlm, monkeypatch, 2)
        with pytest.warns(UserWarning, match="memory ran out while encoding: went on with chunks of") as told:
            np.testing.assert_allclose(vlm.encode([*items, items[0]]), [*truth, truth[0]], atol=1e-6)
        assert len(told) == 1
        assert sum(rows for rows in passes if rows <= 2) == len(items)

    def test_scores_are_the_same(self, vlm, items, monkeypatch):
        model = Reranker.start_from(vlm)
        pairs = list(zip(items, items[3:] + items[:3], strict=True))
        truth = model.score_pairs(pairs)
        passes = limited(model, monkeypatch, 3)
        with pytest.warns(UserWarning, match="memory ran out while scoring: went on with chunks of") as told:
            np.testing.assert_allclose(model.score_pairs(pairs), truth, atol=1e-6)
        assert len(told) == 1
        assert sum(rows for rows in passes if rows <= 3) == len(pairs)

    def test_an_item_that_never_fits(self, vlm, items, monkeypatch):
        limited(vlm, monkeypatch, 0)
        longest = max(items, key=vlm.cost)
        with pytest.raises(ModelError, match=f"^item {longest.key[:12]} .* about {vlm.cost(longest)} tokens and does not fit"):
            vlm.encode(items)

    def test_a_pair_that_never_fits(self, vlm, items, monkeypatch):
        model = Reranker.start_from(vlm)
        limited(model, monkeypatch, 0)
        with pytest.raises(
            ModelError, match=f"^the pair of items {items[0].key[:12]} .* and {items[1].key[:12]} .* does not fit"
        ):
            model.score_pairs([(items[0], items[1])])


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """Folder of a Qwen3-VL."""
    return vlms.build_qwen3_vl(tmp_path_factory.mktemp("vlms") / "qwen")


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    """Folder of a LLaVA-OneVision."""
    return vlms.build_llava_onevision(tmp_path_factory.mktemp("vlms") / "llava")


def seeing_batch(pictures):
    paths = list(pictures.values())
    sides = (
        (Item(text="a red square"), Item(images=(paths[0],))),
        (Item(text="what is it", images=(paths[5],)), Item(text="a blue circle")),
        (Item(text="a blue circle and a yellow bar"), Item(images=(paths[9],))),
    )
    return shared([Example(query, (Candidate(gold, origin="gold"),)) for query, gold in sides], 0)


def gradients(model, take, batch, memory=None):
    """By name, the gradients of a step."""
    loss = InfoNCE(0.1) if take is embedder_step else Pairwise()
    model.body.train()
    take(model, loss, batch, memory or Memory())
    made = {name: p.grad for name, p in model.module.named_parameters() if p.grad is not None}
    model.module.zero_grad(set_to_none=True)
    model.module.eval()
    return made


def check_equal(made, truth):
    assert made.keys() == truth.keys()
    whole = torch.stack([value.norm() for value in truth.values()]).norm()
    assert whole > 1e-2
    for name, value in truth.items():
        assert float((made[name] - value).norm() / whole) < 1e-6, name


def counted_layers(model):
    """Calls of each layer that can be checkpointed, by name."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    calls = {}
    for name, layer in model.module.named_modules():
        if isinstance(layer, GradientCheckpointingLayer):
            calls[name] = 0
            # The layer itself is called once; what is inside runs again.
            inner = next(part for part in layer.modules() if isinstance(part, torch.nn.Linear))
            inner.register_forward_hook(lambda *_, name=name: calls.__setitem__(name, calls[name] + 1))
    return calls


class TestCheckpointing:
    @pytest.mark.parametrize("name", ["qwen", "llava"])
    def test_vision_language_models(self, request, pictures, name):
        model, batch = Embedder.load(request.getfixturevalue(name), device="cpu"), seeing_batch(pictures)
        learned = []
        for freeze in ((), ("vision",), ("words",), ("vision", "words")):
            model.module.requires_grad_(True)
            model.freeze(freeze)
            truth = gradients(model, embedder_step, batch)
            learned.append(len(truth))
            with checkpointed(model.body.transformer):
                check_equal(gradients(model, embedder_step, batch), truth)
                check_equal(gradients(model, embedder_step, batch, Memory(60, 0)), truth)
        assert learned[0] > max(learned[1:3])
        assert learned[3] < min(learned[1:3])

    @pytest.mark.parametrize("kind", ["embedder", "reranker"])
    def test_bert_with_dropout(self, text_model, kind):
        model, take, batch = text_model, embedder_step, shared(tiny.texts()[:6], 0)
        if kind == "reranker":
            model, take, batch = Reranker.start_from(text_model), reranker_step, listed(tiny.texts()[:6], 0)
        for freeze in ((), ("words",)):
            model.freeze(freeze)
            made = []
            for on in (False, True):
                torch.manual_seed(4)
                with checkpointed(model.body.transformer, on):
                    made.append(gradients(model, take, batch))
            check_equal(made[1], made[0])

    def test_the_built_in_architecture(self, vlm, pictures):
        batch = shared(tiny.examples(pictures)[:4], 0)
        without_dropout(vlm.module)
        truth = gradients(vlm, embedder_step, batch)
        with checkpointed(vlm.body.transformer):
            check_equal(gradients(vlm, embedder_step, batch), truth)

    @pytest.mark.parametrize("name", ["bert", "qwen"])
    def test_layers_run_twice_in_training_only(self, request, pictures, name):
        model = request.getfixturevalue("text_model") if name == "bert" else Embedder.load(request.getfixturevalue(name))
        items = [Item(text="red"), Item(text="blue")] if name == "bert" else [Item(images=(p,)) for p in pictures.values()][:2]
        calls = counted_layers(model)
        assert len(calls) == (2 if name == "bert" else 4)  # also those of a vision tower
        with checkpointed(model.body.transformer):
            model.body.train()
            model.forward(items)[:, 0].sum().backward()
            assert set(calls.values()) == {2}
            model.encode(items)
            assert set(calls.values()) == {3}
        model.forward(items)[:, 0].sum().backward()
        assert set(calls.values()) == {4}

    def test_off_again_after_a_training(self, text_model):
        calls = counted_layers(text_model)
        settings = Settings(batch_size=8, freeze=("words",), memory=Memory(gradient_checkpointing=True))
        train(text_model, tiny.texts()[:8], InfoNCE(0.1), steps=1, settings=settings)
        assert set(calls.values()) == {3}  # once more in a trial of the model before the first step
        text_model.body.train()
        text_model.forward([tiny.texts()[0].query]).sum().backward()
        assert set(calls.values()) == {4}
        words = text_model.body.transformer.get_input_embeddings()
        assert not words(torch.tensor([1])).requires_grad  # transformers would leave it so

    def test_what_the_user_switched_on_stays(self, text_model):
        layer = text_model.body.transformer.encoder.layer[0]
        with checkpointed(text_model.body.transformer):
            with checkpointed(text_model.body.transformer):
                pass
            assert layer.gradient_checkpointing
        assert not layer.gradient_checkpointing

    def test_an_architecture_that_cannot(self, text_model, monkeypatch):
        monkeypatch.setattr(type(text_model.body.transformer), "supports_gradient_checkpointing", False)
        with pytest.raises(ModelError, match="gradient checkpointing does not work on a BertModel: set Memory"):
            train(text_model, tiny.texts(), InfoNCE(), steps=1, settings=Settings(memory=Memory(gradient_checkpointing=True)))

    def test_no_transformer(self):
        with (
            pytest.raises(ModelError, match="does not work on a model that is not of transformers: set Memory"),
            checkpointed(None),
        ):
            pass
        with checkpointed(None, False):
            pass
