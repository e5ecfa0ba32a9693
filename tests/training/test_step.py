import pytest
import torch
from tiny import gradient_of, relative
from torch.nn.functional import normalize

from hardwon.errors import Diverged
from hardwon.items import Candidate, Example, Item
from hardwon.losses import InfoNCE, JudgeAlignment, Listwise, Pairwise
from hardwon.models import Reranker
from hardwon.training.batches import listed, shared
from hardwon.training.step import Memory, embedder_step, reranker_step

LOSS = InfoNCE(0.1, hardness=2.0) + 0.5 * JudgeAlignment(0.2)
RERANK = Pairwise() + 0.5 * Listwise()
PLAIN = Memory(chunk_tokens=60)
OTHERS = {
    "replay": Memory(chunk_tokens=60, keep_tokens=0),
    "mixed": Memory(chunk_tokens=60, keep_tokens=130),
}


@pytest.fixture(params=["text", "seeing, tower frozen", "seeing, tower trained"])
def embedder(request):
    """An embedder and examples it can read."""
    if request.param == "text":
        return request.getfixturevalue("text_model"), request.getfixturevalue("texts")[:8]
    model = request.getfixturevalue("vlm")
    if "frozen" in request.param:
        model.freeze(["vision"])
    model.body.settle_vision()
    return model, request.getfixturevalue("shapes")[:6]


@pytest.fixture
def reranker(embedder):
    model, examples = embedder
    made = Reranker.start_from(model, layers=1)
    if model.body.vision is not None:
        made.freeze(["vision"])
    made.body.settle_vision()
    return made, [examples[0], examples[1].adding([Candidate(examples[0].gold[0])]), *examples[2:5]]


@pytest.mark.parametrize("memory", OTHERS.values(), ids=OTHERS)
class TestReplayWithDropout:
    """The graph of a chunk is kept or made again, with the same dropout: the gradient is the same."""

    def test_embedder(self, embedder, memory):
        model, examples = embedder
        batch = shared(examples, 0)
        made = []
        model.body.train()
        for how in (PLAIN, memory):
            torch.manual_seed(3)
            made.append((float(embedder_step(model, LOSS, batch, how)), gradient_of(model), torch.random.get_rng_state()))
        assert made[1][0] == pytest.approx(made[0][0], rel=1e-6)
        assert relative(made[1][1], made[0][1]) < 1e-5
        assert torch.equal(made[1][2], made[0][2])  # the next step draws the same, too

    def test_reranker(self, reranker, memory):
        model, examples = reranker
        batch = listed(examples, 0)
        made = []
        model.body.train()
        for how in (PLAIN, memory):
            torch.manual_seed(3)
            made.append((float(reranker_step(model, RERANK, batch, how)), gradient_of(model), torch.random.get_rng_state()))
        assert made[1][0] == pytest.approx(made[0][0], rel=1e-6)
        assert relative(made[1][1], made[0][1]) < 1e-5
        assert torch.equal(made[1][2], made[0][2])


def test_dropout_was_on(text_model, texts):
    text_model.body.train()
    values = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        values.append(float(embedder_step(text_model, LOSS, shared(texts[:8], 0), PLAIN)))
    assert abs(values[0] - values[1]) > 1e-3


@pytest.mark.parametrize("memory", [Memory(1), Memory(40), Memory(40, 0), Memory(100_000)], ids=repr)
class TestAgainstTheNaiveTwin:
    """One pass over everything, the whole score matrix, autograd: the truth."""

    def test_embedder(self, embedder, memory):
        model, examples = embedder
        model.module.eval()
        batch = shared(examples, 0)
        queries, candidates = model.forward(batch.queries), model.forward(batch.candidates)
        truth = LOSS(queries @ candidates.T, batch.targets[:])
        truth.backward()
        gradient = gradient_of(model)
        value = embedder_step(model, LOSS, batch, memory)
        assert float(value) == pytest.approx(float(truth.detach()), rel=1e-5)
        assert not value.requires_grad
        assert relative(gradient_of(model), gradient) < 2e-5

    def test_reranker(self, reranker, memory):
        model, examples = reranker
        model.module.eval()
        batch = listed(examples, 0)
        scores, rows = torch.zeros(batch.filled.shape), torch.nonzero(batch.filled)
        scores = scores.index_put(tuple(rows.T), model.forward(batch.pairs))
        truth = RERANK(scores, batch.targets)
        truth.backward()
        gradient = gradient_of(model)
        assert float(reranker_step(model, RERANK, batch, memory)) == pytest.approx(float(truth.detach()), rel=1e-5)
        assert relative(gradient_of(model), gradient) < 2e-5


def test_an_item_on_both_sides_is_encoded_once(text_model, monkeypatch):
    word = Item(text="red")
    examples = (
        Example(Item(text="blue"), (Candidate(word, origin="gold"),)),
        Example(word, (Candidate(Item(text="green"), origin="gold"),)),
    )
    rows = []

    def forward(items):
        rows.extend(item.text for item in items)
        return normalize(type(text_model).forward(text_model, items), dim=-1)

    monkeypatch.setattr(text_model, "forward", forward)
    embedder_step(text_model, InfoNCE(0.1), shared(examples, 0), Memory())
    assert sorted(rows) == ["blue", "green", "red"]
    assert gradient_of(text_model).norm() > 0


def test_gradients_add_up(text_model, texts):
    text_model.module.eval()
    batch = shared(texts[:6], 0)
    embedder_step(text_model, LOSS, batch, PLAIN)
    once = gradient_of(text_model)
    for _ in range(2):
        embedder_step(text_model, LOSS, batch, PLAIN)
    assert relative(gradient_of(text_model), 2 * once) < 1e-6


class TestDiverged:
    def test_a_loss_that_is_not_a_number(self, text_model, texts):
        batch = shared(texts[:4], 12)
        with pytest.raises(Diverged, match="the loss is nan at step 12; no weight was changed") as caught:
            embedder_step(text_model, lambda scores, _: scores.sum() * torch.nan, batch, PLAIN)
        assert caught.value.step == 12
        assert caught.value.keys == tuple(query.key for query in batch.queries)
        assert all(p.grad is None for p in text_model.module.parameters())

    def test_scores_that_are_not_finite(self, text_model, texts):
        with torch.no_grad():
            text_model.body.transformer.encoder.layer[1].output.dense.bias[0] = torch.inf
        with pytest.raises(Diverged, match="12 vectors are not finite at step 5"):
            embedder_step(text_model, InfoNCE(), shared(texts[:4], 5), PLAIN)

    def test_nothing_to_compare(self, text_model):
        gold = (Candidate(Item(text="the same"), origin="gold"),)
        batch = shared([Example(Item(text=f"query {n}"), gold, "tones") for n in range(3)], 3)
        with pytest.raises(Diverged, match=r"nothing to compare .* at step 3; .*") as caught:
            embedder_step(text_model, InfoNCE(), batch, PLAIN)
        assert "Its 3 queries of source 'tones' share 1 candidates" in str(caught.value)
        assert "mine with a smaller beta" in str(caught.value) and len(caught.value.keys) == 3

    def test_a_reranker(self, text_model, texts):
        model, batch = Reranker.start_from(text_model), listed(texts[:3], 4)
        with pytest.raises(Diverged, match="the loss is inf at step 4") as caught:
            reranker_step(model, lambda scores, _: scores.sum() * 0 + torch.inf, batch, PLAIN)
        assert caught.value.keys == batch.keys
        assert all(p.grad is None for p in model.module.parameters())
