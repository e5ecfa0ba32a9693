import numpy as np
import pytest
import torch

from hardwon.errors import BadItems, ModelError
from hardwon.items import Item
from hardwon.models import Embedder, Encoder, Scorer


@pytest.fixture
def mixed(pictures):
    """Items of every kind, of different lengths."""
    red, blue = pictures["red square"], pictures["blue circle"]
    return [
        Item(text="red square"),
        Item(images=(red,)),
        Item(text="the circle is blue and the square is red", instruction="find it"),
        Item(images=(blue,), text="what is it"),
        Item(images=(red, blue), text="a"),
        Item(images=(blue.read_bytes(),), instruction="find the"),
        Item(text="x" * 500),
    ]


@pytest.fixture
def counted(vlm, monkeypatch):
    """The embedder, and the numbers of rows of its forward passes."""
    rows = []

    def forward(items):
        rows.append(len(items))
        return Embedder.forward(vlm, items)

    monkeypatch.setattr(vlm, "forward", forward)
    return vlm, rows


def test_is_an_encoder_and_a_scorer(vlm):
    assert isinstance(vlm, Encoder)
    assert isinstance(vlm, Scorer)
    assert vlm.dim == 32


def test_unit_vectors_in_single_precision(vlm, mixed):
    vectors = vlm.encode(mixed)
    assert vectors.shape == (len(mixed), vlm.dim)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_order_is_that_of_the_items_and_batches_do_not_matter(vlm, mixed):
    together = vlm.encode(mixed)
    alone = np.concatenate([vlm.encode([item]) for item in mixed])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(vlm.encode(mixed[::-1]), together[::-1], atol=1e-5)
    distances = np.linalg.norm(together[:, None] - together[None], axis=-1) + np.eye(len(mixed))
    assert distances.min() > 1e-3  # no two of them could have been swapped unnoticed


def test_identical_items_are_encoded_once(counted, mixed):
    model, rows = counted
    copies = [*mixed, *mixed[::-1], mixed[0], Item(text="red square")]
    vectors = model.encode(copies)
    assert sum(rows) == len(mixed)
    np.testing.assert_array_equal(vectors[: len(mixed)], vectors[len(mixed) : 2 * len(mixed)][::-1])
    np.testing.assert_array_equal(vectors[0], vectors[-1])


def test_a_batch_is_filled_by_tokens(counted, monkeypatch):
    model, rows = counted
    monkeypatch.setattr("hardwon.models.outputs.ENCODE_TOKENS", 40)
    items = [Item(text="red " * n) for n in range(1, 12)]
    model.encode(items)
    assert len(rows) > 1
    assert max(rows) * min(model.cost(item) for item in items) <= 40


def test_nothing_to_encode(vlm):
    assert vlm.encode([]).shape == (0, vlm.dim)
    assert vlm.score_pairs([]).shape == (0,)


def test_encoding_uses_no_dropout_and_leaves_the_mode_alone(vlm, mixed):
    calm = vlm.encode(mixed)
    vlm.module.train()
    state = torch.random.get_rng_state()
    np.testing.assert_array_equal(vlm.encode(mixed), calm)
    assert vlm.module.training
    assert torch.equal(torch.random.get_rng_state(), state)


def test_forward_has_a_graph(vlm, mixed):
    vectors = vlm.forward(mixed[:4])
    vectors[:, 0].sum().backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in vlm.module.parameters())
    np.testing.assert_allclose(vectors.detach().numpy(), vlm.encode(mixed[:4]), atol=1e-5)


def test_scores_are_cosines(vlm, mixed):
    pairs = [(mixed[0], mixed[1]), (mixed[2], mixed[3]), (mixed[0], mixed[0])]
    vectors = vlm.encode(mixed)
    np.testing.assert_allclose(vlm.score_pairs(pairs), [vectors[0] @ vectors[1], vectors[2] @ vectors[3], 1], atol=1e-6)


@pytest.mark.parametrize(
    "text",
    ["http://127.0.0.1:9/x.png", "/etc/passwd", "file:///etc/passwd", "data:image/png;base64,iVBORw0KGgo=", "<image>",
     "<image> red <image>", "[SEP] [CLS] [PAD][MASK]", "{{ messages }} {% for x in y %}", "\x00", "red.png"],
)  # fmt: skip
def test_text_stays_text(vlm, text_model, pictures, text):
    neighbours = [Item(text="red square"), Item(images=(pictures["red square"],)), Item(text="blue", instruction="find")]
    alone = vlm.encode(neighbours)
    mixed = vlm.encode([neighbours[0], Item(text=text), *neighbours[1:], Item(text=text, images=neighbours[1].images)])
    np.testing.assert_allclose(mixed[[0, 2, 3]], alone, atol=1e-5)
    assert np.isfinite(mixed).all()
    assert np.isfinite(text_model.encode([Item(text=text), neighbours[0]])).all()


def test_a_picture_given_as_text_is_not_opened(vlm, pictures):
    path = pictures["red square"]
    text, picture = vlm.encode([Item(text=str(path)), Item(images=(path,))])
    assert np.abs(text - picture).max() > 0.01


def test_special_tokens_in_text_reach_no_special_row(vlm):
    words = vlm.body.tokenizer
    (ids,) = vlm.body.features([[Item(text="<image> red [SEP] [MASK] [PAD]", instruction="[CLS] [UNK]")]])["input_ids"].tolist()
    special = {words.convert_tokens_to_ids(token) for token in words.all_special_tokens}
    assert [n for n in ids if n in special] == [words.cls_token_id, words.sep_token_id]


def test_a_picture_for_a_model_of_text_is_refused(text_model, pictures):
    item = Item(images=(pictures["red square"],))
    with pytest.raises(ModelError, match=f"this model reads text only, but item {item.key[:12]} holds a picture"):
        text_model.encode([Item(text="red"), item])


def test_vectors_that_are_not_finite_are_refused(text_model):
    with torch.no_grad():
        text_model.body.transformer.get_input_embeddings().weight[text_model.body.tokenizer.vocab["red"]] = torch.nan
    items = [Item(text="blue square"), Item(text="red square"), Item(text="a red bar")]
    with pytest.raises(
        BadItems, match=r"2 items of 3 cannot be used:\n  'red square': the model gives numbers that are not"
    ) as error:
        text_model.encode(items)
    assert [row.item for row in error.value.items] == items[1:]


def test_progress_names_the_work(vlm, mixed, capsys):
    vlm.encode(mixed)
    assert "reading" not in capsys.readouterr().err
    vlm.encode(mixed, progress="reading the shapes")
    assert "reading the shapes: 7/7 items" in capsys.readouterr().err


class TestFingerprint:
    def test_survives_saving_and_encoding(self, vlm, mixed, tmp_path):
        before = vlm.fingerprint
        vlm.encode(mixed)
        vlm.save(tmp_path / "saved", {"made": "by a test"})
        assert vlm.fingerprint == before
        loaded = Embedder.load(tmp_path / "saved", device="cpu")
        assert loaded.fingerprint == before
        np.testing.assert_allclose(loaded.encode(mixed), vlm.encode(mixed), atol=1e-6)
        assert (tmp_path / "saved" / "hardwon.json").read_text() == '{\n "made": "by a test"\n}'

    def test_is_that_of_the_vectors_not_of_the_cache(self, vlm, tiny_vlm, tmp_path):
        assert Embedder.load(tiny_vlm, device="cpu", vision_cache=tmp_path).fingerprint == vlm.fingerprint

    def test_changes_with_one_weight(self, vlm):
        before = vlm.fingerprint
        weight = next(p for name, p in vlm.module.named_parameters() if name.endswith("layer.1.output.dense.weight"))
        with torch.no_grad():
            weight[3, 5] += 1e-3
        changed = vlm.fingerprint
        assert changed != before
        with torch.no_grad():
            weight[3, 5] -= 1e-3
        assert vlm.fingerprint != changed

    def test_changes_with_an_update(self, text_model):
        before = text_model.fingerprint
        text_model.forward([Item(text="red")]).sum().backward()
        torch.optim.SGD(text_model.module.parameters(), lr=0.1).step()
        assert text_model.fingerprint != before

    def test_changes_with_the_longest_text(self, text_model):
        before = text_model.fingerprint
        text_model.body.model.max_seq_length = 16
        assert text_model.fingerprint != before

    def test_differs_between_models(self, vlm, text_model):
        assert vlm.fingerprint != text_model.fingerprint


@pytest.mark.parametrize("name", ["vlm", "text_model"])
def test_a_saved_copy_does_not_depend_on_what_was_encoded_last(name, request, tmp_path):
    """A tokenizer keeps the length of its last call, and would be saved with it: texts were cut there for ever."""
    from sentence_transformers import SentenceTransformer

    model = request.getfixturevalue(name)
    text = Item(text="one two three four five six seven eight " * 3)
    fresh = model.encode([text])
    model.save(tmp_path / "fresh")
    own = model.body.model.max_seq_length
    model.body.model.max_seq_length = 20
    model.encode([text])
    model.body.model.max_seq_length = own
    model.save(tmp_path / "used")
    assert (tmp_path / "used" / "tokenizer.json").read_bytes() == (tmp_path / "fresh" / "tokenizer.json").read_bytes()
    plain = SentenceTransformer(str(tmp_path / "used"), device="cpu")
    np.testing.assert_allclose(plain.encode([{"text": text.text}]), fresh, atol=1e-6)
    np.testing.assert_allclose(model.encode([text]), fresh, atol=1e-6)
