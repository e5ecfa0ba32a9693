import pytest
import torch

from hardwon.errors import DataError, ModelError
from hardwon.items import Candidate, Example, Item
from hardwon.training import align
from hardwon.training.align import _loss, captions


@pytest.fixture
def ready(fresh_vlm):
    def make():
        model = fresh_vlm().freeze(["vision"])
        model.body.settle_vision()
        return model

    return make


def test_the_loss_falls_and_only_the_projector_learns(ready, shapes, weights):
    model = ready()
    first = align(ready(), shapes, steps=1)
    before = weights(model)
    last = align(model, shapes, steps=60, rate=3e-3)
    assert last < 0.6 * first
    after = weights(model)
    moved = {name for name in before if not torch.equal(after[name], before[name])}
    assert moved
    assert all("multi_modal_projector" in name for name in moved)


def test_pictures_come_to_mean_the_words_of_their_caption(ready, shapes):
    model = ready()
    align(model, shapes, steps=100, rate=3e-3)
    words = model.body.transformer.get_input_embeddings().weight.detach()
    features = model.body.vision.features([e.gold[0].images[0] for e in shapes])
    with torch.no_grad():
        seen = model.body.transformer.multi_modal_projector(features).mean(dim=1)
    ids = model.body.tokenizer([e.query.text for e in shapes], add_special_tokens=False)["input_ids"]
    meant = torch.stack([words[row].mean(dim=0) for row in ids])
    centre = meant.mean(dim=0)
    nearest = torch.nn.functional.cosine_similarity((seen - centre)[:, None], (meant - centre)[None], dim=-1).argmax(dim=1)
    assert (nearest == torch.arange(len(shapes))).float().mean() > 0.5  # chance is 0.05


def test_two_pictures_of_one_caption_are_not_pushed_apart():
    words = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    assert float(_loss(words, words, torch.zeros(2))) < 1e-6  # log(2) each if they were
    other = torch.tensor([[1.0, 0.0], [0.9, 0.1], [-1.0, 0.0]])
    assert float(_loss(other, other, torch.zeros(2))) > 0.1


def test_the_seed_says_how(ready, shapes, weights):
    made = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(made))  # the state of the caller plays no part
        model = ready()
        align(model, shapes, steps=3, seed=seed)
        made.append(weights(model))
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    assert any(not torch.equal(made[0][name], made[2][name]) for name in made[0])


def test_only_the_named_sources(ready, shapes):
    with pytest.raises(DataError, match="align needs pairs of one picture and text"):
        align(ready(), shapes, steps=1, sources=("elsewhere",))
    assert align(ready(), shapes, steps=1, sources=("shapes",)) > 0


def test_captions_are_bare_pictures_with_bare_text(pictures):
    red, blue = (Item(images=(pictures[name],)) for name in ("red square", "blue bar"))

    def example(query, *golds):
        return Example(query, (*(Candidate(gold, origin="gold") for gold in golds), Candidate(Item(text="no"), 0.1)))

    found = captions(
        (
            example(Item(text="a red square", instruction="find"), red),
            example(blue, Item(text="a bar"), Item(text="something blue")),
            example(red, blue),
            example(Item(text="both", images=red.images), Item(text="text")),
            example(Item(text="two"), Item(images=(*red.images, *blue.images))),
            example(Item(text="words"), Item(text="other words")),
            example(Item(images=red.images, video=blue.images), Item(text="more than a picture")),
            example(red, Item(text="a film", video=blue.images)),
        )
    )
    assert found == [
        (red.images[0], "a red square"),
        (blue.images[0], "a bar"),
        (blue.images[0], "something blue"),
    ]


@pytest.mark.parametrize("frozen", [True, False])
def test_without_a_projector_behind_a_frozen_tower(frozen, text_model, vlm, shapes):
    model = text_model if frozen else vlm
    model.body.settle_vision()
    with pytest.raises(ModelError, match=r"align needs a model with a projector .* frozen: freeze=\('vision',\)"):
        align(model, shapes, steps=1)


def test_without_pairs(ready, texts):
    with pytest.raises(DataError, match="align needs pairs of one picture and text"):
        align(ready(), texts, steps=1)
