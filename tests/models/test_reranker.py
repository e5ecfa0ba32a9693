import warnings
from collections import Counter

import numpy as np
import pytest
import torch

from hardwon.errors import ModelError
from hardwon.items import Item
from hardwon.models import Embedder, Reranker, Scorer


@pytest.fixture
def seeing(vlm):
    return Reranker.start_from(vlm, seed=1)


@pytest.fixture
def reading(text_model):
    return Reranker.start_from(text_model, seed=1)


@pytest.fixture
def pairs(pictures):
    """Text, pictures and both, on either side."""
    red, blue = pictures["red square"], pictures["blue circle"]
    items = [
        Item(text="red square"),
        Item(images=(red,)),
        Item(text="a circle", images=(blue,)),
        Item(text="the circle is blue and the square is red", instruction="find it"),
    ]
    return [(query, item) for query in items for item in items if query is not item]


def test_is_a_scorer(seeing):
    assert isinstance(seeing, Scorer)


def test_batches_and_order_do_not_matter(seeing, pairs):
    together = seeing.score_pairs(pairs)
    assert together.shape == (len(pairs),)
    assert together.dtype == np.float32
    alone = np.concatenate([seeing.score_pairs([pair]) for pair in pairs])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(seeing.score_pairs(pairs[::-1]), together[::-1], atol=1e-5)
    assert len(np.unique(together.round(4))) == len(pairs)


def test_reads_both_sides_and_which_is_which(reading):
    red, blue, green = (Item(text=word) for word in ("red", "blue", "green"))
    score = reading.score_pairs([(red, blue), (red, green), (green, blue), (blue, red)])
    assert len(np.unique(score.round(5))) == 4


def test_identical_pairs_are_scored_once(seeing, pairs, monkeypatch):
    rows = []

    def forward(some):
        rows.append(len(some))
        return Reranker.forward(seeing, some)

    monkeypatch.setattr(seeing, "forward", forward)
    scores = seeing.score_pairs([*pairs, *pairs])
    assert sum(rows) == len(pairs)
    np.testing.assert_array_equal(scores[: len(pairs)], scores[len(pairs) :])


def test_scores_one_query_against_many(seeing, pairs):
    query, items = pairs[0][0], [item for _, item in pairs[:3]]
    np.testing.assert_allclose(seeing.score(query, items), seeing.score_pairs(pairs[:3]), atol=1e-6)
    assert seeing.score_pairs([]).shape == (0,)


@pytest.mark.parametrize("text", ["http://127.0.0.1:9/x.png", "/etc/passwd", "<image>", "[SEP] [SEP]", "[CLS] <image> red"])
def test_text_stays_text(seeing, reading, pairs, text):
    odd = Item(text=text)
    alone = seeing.score_pairs(pairs[:4])
    mixed = seeing.score_pairs([*pairs[:2], (odd, pairs[0][1]), (pairs[1][1], odd), *pairs[2:4]])
    np.testing.assert_allclose(mixed[[0, 1, 4, 5]], alone, atol=1e-5)
    assert np.isfinite(mixed).all()
    assert np.isfinite(reading.score_pairs([(odd, Item(text="red")), (Item(text="red"), odd)])).all()


def test_features_of_the_tower_make_no_difference(vlm, tiny_vlm, pairs, tmp_path):
    cached = Reranker.start_from(Embedder.load(tiny_vlm, device="cpu", vision_cache=tmp_path), seed=1)
    assert cached.body.vision is not None
    assert cached.body.vision.home == tmp_path
    generic = Reranker.start_from(vlm, seed=1)
    assert generic.body.vision is None
    np.testing.assert_allclose(cached.score_pairs(pairs), generic.score_pairs(pairs), atol=1e-5)


class TestStartFrom:
    def test_is_a_copy(self, vlm, pairs):
        items = [item for pair in pairs for item in pair]
        before = vlm.encode(items)
        reranker = Reranker.start_from(vlm)
        with torch.no_grad():
            for parameter in reranker.module.parameters():
                parameter.zero_()
        np.testing.assert_array_equal(vlm.encode(items), before)

    def test_seed_says_where_it_starts(self, vlm):
        one, same, other = (Reranker.start_from(vlm, seed=seed) for seed in (3, 3, 4))
        assert one.fingerprint == same.fingerprint != other.fingerprint

    def test_keeps_the_lowest_layers(self, vlm, text_model, pairs):
        for model, inner in ((vlm, "language_model"), (text_model, None)):
            whole, cut = Reranker.start_from(model), Reranker.start_from(model, layers=1)
            language = getattr(cut.body.transformer, inner) if inner else cut.body.transformer
            source = getattr(model.body.transformer, inner) if inner else model.body.transformer
            assert len(language.encoder.layer) == language.config.num_hidden_layers == 1
            assert torch.equal(language.encoder.layer[0].output.dense.weight, source.encoder.layer[0].output.dense.weight)
            assert len(source.encoder.layer) == 2
            texts = [(Item(text="red"), Item(text="blue"))]
            assert whole.score_pairs(texts) != cut.score_pairs(texts)

    def test_a_cut_one_is_saved_with_its_layers(self, vlm, pairs, tmp_path):
        cut = Reranker.start_from(vlm, layers=1)
        cut.save(tmp_path / "cut")
        loaded = Reranker.load(tmp_path / "cut", device="cpu")
        assert len(loaded.body.transformer.language_model.encoder.layer) == 1
        assert loaded.fingerprint == cut.fingerprint
        np.testing.assert_allclose(loaded.score_pairs(pairs), cut.score_pairs(pairs), atol=1e-6)

    @pytest.mark.parametrize("layers", [0, 3, -1])
    def test_layers_out_of_range(self, text_model, layers):
        with pytest.raises(ModelError, match=f"layers must lie between 1 and 2, got {layers}"):
            Reranker.start_from(text_model, layers=layers)

    def test_layers_of_another_architecture(self, text_model, monkeypatch):
        monkeypatch.setattr("hardwon.models.reranker.getattr", lambda *_: None, raising=False)
        with pytest.raises(ModelError, match="cannot cut the layers of a NoneType: leave layers at None"):
            Reranker.start_from(text_model, layers=1)


def test_a_picture_for_a_model_of_text_is_refused(reading, pictures):
    with pytest.raises(ModelError, match="this model reads text only"):
        reading.score_pairs([(Item(text="red"), Item(images=(pictures["red square"],)))])


def test_fingerprint_survives_saving_and_scoring(seeing, pairs, tmp_path):
    before = seeing.fingerprint
    scores = seeing.score_pairs(pairs)
    seeing.save(tmp_path / "saved", {"steps": 3})
    loaded = Reranker.load(tmp_path / "saved", device="cpu")
    assert seeing.fingerprint == before == loaded.fingerprint
    np.testing.assert_allclose(loaded.score_pairs(pairs), scores, atol=1e-6)
    with torch.no_grad():
        loaded.body.model[2].linear.bias += 1e-3
    assert loaded.fingerprint != before


def test_differs_from_its_embedder(vlm, seeing):
    assert vlm.fingerprint != seeing.fingerprint


def test_lower_precision_stays_close(seeing, pairs, tmp_path):
    seeing.save(tmp_path / "saved")
    fast = Reranker.load(tmp_path / "saved", device="cpu", precision="bf16")
    exact, close = seeing.score_pairs(pairs), fast.score_pairs(pairs)
    assert close.dtype == np.float32
    assert 0 < np.abs(exact - close).max() < 0.05
    assert all(p.dtype == torch.float32 for p in fast.module.parameters())


def test_freeze(seeing):
    assert seeing.freeze(["vision"]) is seeing
    assert not any(p.requires_grad for p in seeing.body.transformer.vision_tower.parameters())
    with pytest.raises(ModelError, match="no parameter belongs to 'tail'"):
        seeing.freeze(["tail"])


def test_odds_that_are_not_finite_are_refused(reading):
    with torch.no_grad():
        reading.body.transformer.get_input_embeddings().weight[reading.body.tokenizer.vocab["red"]] = torch.nan
    blue, red = Item(text="blue square"), Item(text="red square")
    with pytest.raises(ModelError, match=rf"not finite, first for the pair of items {blue.key[:12]} .* and {red.key[:12]}"):
        reading.score(blue, [blue, red])


def counted(model, pair):
    """How often each word stands in what the model is shown of a pair of texts."""
    rows = model.body.features([list(pair)])["input_ids"]
    return Counter(model.body.tokenizer.convert_ids_to_tokens(rows[0].tolist()))


@pytest.mark.parametrize("name", ["seeing", "reading"])
def test_long_texts_leave_each_other_room(name, request, pictures):
    model = request.getfixturevalue(name)
    long, other, short = Item(text="red " * 300), Item(text="blue " * 300), Item(text="green square")
    with pytest.warns(UserWarning, match=r"come to more than the 64 tokens .*equal shares, here of (29|30) tokens"):
        both = counted(model, (long, other))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        first, second = counted(model, (long, short)), counted(model, (short, other))
        scores = model.score(long, [short, other])
    assert abs(both["red"] - both["blue"]) <= 1
    assert min(both["red"], both["blue"]) >= 29
    for found, word in ((first, "red"), (second, "blue")):  # what a short text leaves, the long one has
        assert (found["green"], found["square"]) == (1, 1)
        assert found[word] >= 57
    assert scores[0] != scores[1]
    if name == "seeing":
        shown = (Item(text="red " * 9, images=(pictures["red bar"],)), Item(text="blue " * 99, images=(pictures["blue bar"],)))
        found = counted(model, shown)
        assert (found["<image>"], found["red"]) == (8, 9)
        assert found["blue"] >= 30


@pytest.mark.parametrize("name", ["text_model", "vlm"])
def test_an_embedder_is_no_reranker(name, request, tmp_path):
    """Sentence-transformers would give it a score of random weights."""
    request.getfixturevalue(name).save(tmp_path / "embedder")
    with pytest.raises(ModelError, match=r"embedder is an embedder and gives no score of a pair: Reranker\.start_from"):
        Reranker.load(tmp_path / "embedder", device="cpu")
