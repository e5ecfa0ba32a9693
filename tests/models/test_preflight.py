"""What cannot be used is found before the first forward pass, all of it at once, with its item and its file."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import vlms
from PIL import Image
from tiny import encoded

from hardwon.errors import BadItems, BadMedia, DataError, ModelError
from hardwon.items import Item
from hardwon.models import Embedder, Reranker, preflight
from hardwon.models.length import GUESS, PictureTokens
from hardwon.models.preflight import problems


def noise(side=96):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8))


def broken_inside(kind="PNG"):
    """Header and end are those of a whole picture."""
    data = bytearray(encoded(noise(), kind))
    middle = len(data) // 2
    data[middle : middle + 400] = bytes(400)
    return bytes(data)


@pytest.fixture
def bad(tmp_path):
    """Pictures that cannot be used, by what is wrong with them."""
    whole = encoded(noise())
    files = {
        "cut": whole[: len(whole) // 2],
        "empty": b"",
        "page": b"<!DOCTYPE html><title>404</title>",
        "inside": broken_inside(),
    }
    for name, data in files.items():
        (tmp_path / f"{name}.png").write_bytes(data)
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for ever
    return {name: tmp_path / f"{name}.png" for name in [*files, "pipe", "missing"]}


class TestProblems:
    def test_every_kind_has_its_reason(self, vlm, bad, pictures):
        good = [Item(text="red"), Item(text="a", images=(pictures["red square"],))]
        items = [good[0], *(Item(text=f"the {name}", images=(path,)) for name, path in bad.items()), good[1]]
        found = problems(vlm.body, items)
        assert list(found) == items[1:-1]
        reasons = dict(zip(bad, found.values(), strict=True))
        for name, words in {
            "cut": "truncated",
            "empty": r"is empty \(0 bytes\)",
            "page": "is a web page",
            "inside": "broken or truncated",
            "pipe": "is not a file",
            "missing": "does not exist",
        }.items():
            assert words.replace("\\", "") in reasons[name]
            assert str(bad[name]) in reasons[name]

    def test_headers_alone_do_not_tell_of_damage_inside(self, vlm, bad):
        items = [Item(images=(path,)) for path in bad.values()]
        assert [item.images[0].stem for item in problems(vlm.body, items, decode=False)] == [n for n in bad if n != "inside"]

    def test_every_picture_is_decoded_once(self, vlm, pictures, monkeypatch):
        looked = []
        monkeypatch.setattr(preflight, "open_picture", looked.append)
        one, two = pictures["red square"], pictures["blue bar"]
        problems(vlm.body, [Item(images=(one,)), Item(text="a", images=(two, one)), Item(images=(one,))])
        assert sorted(looked) == sorted([one, two])

    def test_many_pictures_are_handed_out_in_parts(self, vlm, pictures, bad, monkeypatch, capsys):
        monkeypatch.setattr(preflight, "AHEAD", 3)
        paths = [*pictures.values(), bad["inside"]]
        found = problems(vlm.body, [Item(images=(path,)) for path in paths], progress="looking")
        assert [item.images[0] for item in found] == [bad["inside"]]
        assert "looking: 21/21 pictures" in capsys.readouterr().err

    def test_a_picture_for_a_model_of_text(self, text_model, pictures):
        item = Item(images=(pictures["red square"],))
        reason = problems(text_model.body, [Item(text="red"), item])[item]
        assert reason == f"this model reads text only, but item {item.key[:12]} holds a picture"

    @pytest.mark.parametrize("name", vlms.DUAL)
    def test_what_a_dual_encoder_cannot_read_together(self, models, pictures, name):
        red, blue = pictures["red square"], pictures["blue bar"]
        items = [Item(images=(red,)), Item(text="a", images=(red,)), Item(images=(red, blue)), Item(text="b")]
        assert list(problems(models[name].ours.body, items)) == items[1:3]

    def test_more_pictures_than_the_model_takes_with_or_without_text(self, decoder, pictures):
        many = (pictures["red square"],) * 64
        items = [Item(images=many), Item(text="a", images=many), Item(images=many[:1])]
        found = problems(decoder.ours.body, items)
        assert list(found) == items[:2]
        for item, reason in found.items():
            assert f"item {item.key[:12]} comes to" in reason
            assert "tokens of pictures, but the model takes 256" in reason

    @pytest.mark.parametrize("name", ["qwen2-vl", "qwen2.5-vl", "qwen3-vl", "qwen2-vl without video"])
    def test_a_shape_that_the_processor_refuses(self, models, name, tmp_path):
        Image.new("RGB", (402, 2)).save(tmp_path / "line.png")
        item = Item(text="a", images=(tmp_path / "line.png",))
        reason = problems(models[name].ours.body, [item], decode=False)[item]
        assert f"the model's processor refuses {tmp_path / 'line.png'} of 402 x 2 pixels: absolute aspect ratio" in reason
        with pytest.raises(ModelError, match="aspect ratio"):
            models[name].ours.forward([item])

    @pytest.mark.parametrize("name", ["clip", "llava"])
    def test_a_strip_that_the_processor_would_blow_up(self, models, name):
        """CLIP's scales the short side to its own size, before it cuts off most of the long one."""
        model = models[name].ours
        strips = [Item(images=(encoded(Image.new("RGB", size)),)) for size in ((1, 3000), (1, 200), (201, 1), (20_000, 99))]
        with pytest.raises(BadItems, match=r"1 x 3000 pixels is too thin: .* the aspect ratio must be at most 200") as bad:
            model.encode(strips)
        assert [entry.item for entry in bad.value.items] == [strips[0], strips[2], strips[3]]
        assert np.isfinite(model.encode(strips[1:2])).all()


class TestEncode:
    @pytest.mark.parametrize("kept", [False, True])
    def test_lists_all_of_them_before_anything_is_computed(self, vlm, bad, pictures, monkeypatch, kept):
        if kept:
            vlm.freeze(["vision"]).body.settle_vision()
        monkeypatch.setattr(Embedder, "forward", lambda *_: pytest.fail("something was computed"))
        items = [Item(text="red"), *(Item(images=(path,)) for name, path in bad.items() if name != "inside")]
        with pytest.raises(BadItems, match=r"5 items of 6 cannot be used") as caught:
            vlm.encode(items)
        assert [entry.item for entry in caught.value.items] == items[1:]
        assert "<page.png>" in str(caught.value)
        assert isinstance(caught.value, DataError)
        assert isinstance(caught.value, ModelError)

    @pytest.mark.parametrize("kept", [False, True])
    @pytest.mark.parametrize("progress", ["", "reading"])
    def test_damage_inside_is_listed_when_it_is_met(self, vlm, bad, pictures, tmp_path, kept, progress):
        if kept:
            vlm.freeze(["vision"]).body.settle_vision()
        shutil.copy(bad["inside"], tmp_path / "again.png")
        items = [Item(images=(path,)) for path in (pictures["red square"], bad["inside"])]
        items.append(Item(text="a", images=(tmp_path / "again.png",)))
        with pytest.raises(BadItems) as caught:
            vlm.encode(items, progress=progress)
        assert [entry.item for entry in caught.value.items] == items[1:]

    def test_what_is_left_can_be_encoded(self, vlm, bad, pictures):
        good = [Item(images=(path,)) for path in pictures.values()]
        with pytest.raises(BadItems) as caught:
            vlm.encode([*good, Item(images=(bad["cut"],))])
        left = [item for item in [*good, Item(images=(bad["cut"],))] if item not in [e.item for e in caught.value.items]]
        np.testing.assert_array_equal(vlm.encode(left), vlm.encode(good))

    def test_a_picture_that_vanishes_meanwhile(self, vlm, pictures, tmp_path, monkeypatch):
        path = Path(shutil.copy(pictures["red square"], tmp_path / "red.png"))
        item = Item(text="what is it", images=(path,))
        vlm.forward([item])
        path.unlink()
        with pytest.raises(BadMedia, match=r"red\.png does not exist.* \(in '<red\.png> what is it'\)"):
            vlm.forward([item])
        with pytest.raises(BadMedia, match=r"red\.png does not exist.* \(in '<red\.png> what is it'\)"):
            _ = item.key

    def test_pairs(self, vlm, bad, pictures):
        reranker = Reranker.start_from(vlm)
        query, red = Item(text="red"), Item(images=(pictures["red square"],))
        with pytest.raises(BadItems, match="1 item of 3 cannot be used") as caught:
            reranker.score(query, [red, Item(images=(bad["cut"],))])
        assert caught.value.items[0].item.images == (bad["cut"],)
        with pytest.raises(BadItems, match=r"inside\.png is broken"):
            reranker.score(query, [red, Item(images=(bad["inside"],))])


@pytest.mark.parametrize("kept", [False, True])
class TestPairs:
    @pytest.fixture
    def reranker(self, vlm, kept, tmp_path, tiny_vlm):
        return Reranker.start_from(Embedder.load(tiny_vlm, device="cpu", vision_cache=tmp_path) if kept else vlm)

    @pytest.mark.filterwarnings("ignore:query and candidate come to more than")
    def test_a_long_text_leaves_the_other_ones_picture_whole(self, reranker, pictures, kept):
        long, red = Item(text="red " * 300), Item(images=(pictures["red square"],))
        token = reranker.body.model[0].processor.image_token_id
        for pair in ((long, red), (red, long), (long, Item(text="blue " * 300, images=red.images * 3))):
            (ids,) = reranker.body.features([pair])["input_ids"].tolist()
            assert ids.count(token) == 4 * sum(len(item.images) for item in pair)
            assert len(ids) <= reranker.body.model.max_seq_length
            assert ids.count(reranker.body.tokenizer.sep_token_id) == 2
        assert np.isfinite(reranker.score(long, [red, long])).all()

    def test_too_many_pictures_together_are_an_error_that_names_both(self, reranker, pictures, kept):
        one, two = (Item(images=(pictures["red square"],) * n) for n in (8, 9))
        assert np.isfinite(reranker.score(one, [Item(text="red")])).all()
        with pytest.raises(ModelError, match=f"item {one.key[:12]} and item {two.key[:12]} comes to 68 tokens"):
            reranker.score(one, [two])


class TestPictureTokens:
    SIZES = ((1, 1), (64, 64), (120, 40), (30, 90), (150, 1), (300, 220))

    def test_asking_by_size_is_right(self, decoder, monkeypatch):
        """Against the processor at work, which is also what answers where the quick ways are missing."""
        processor = decoder.ours.body.model[0].processor
        quick = PictureTokens(processor, None)
        truth = [quick._counted((size,)) for size in self.SIZES]
        monkeypatch.setattr(PictureTokens, "_counted", lambda *_: pytest.fail("the quick ways are gone"))
        assert [quick.known(encoded(Image.new("RGB", size))) for size in self.SIZES] == truth

    def test_pictures_together(self, decoder, pictures):
        """LLaVA-OneVision's own processor gives pictures that are not alone fewer tokens."""
        body = decoder.ours.body
        token, seen = body.model[0].processor.image_token_id, list(pictures.values())
        for count in (1, 2):
            (ids,) = body.features([[Item(images=tuple(seen[:count]))]])["input_ids"].tolist()
            assert body.picture_tokens.of(seen[:count]) == ids.count(token) > 0
        assert body.picture_tokens._additive == (decoder.name != "llava-onevision")

    def test_a_processor_without_the_quick_ways_is_asked_for_real(self, decoder):
        processor = decoder.ours.body.model[0].processor

        class Plain:
            image_token, image_token_id = processor.image_token, processor.image_token_id
            asked = 0

            def __call__(self, **inputs):
                Plain.asked += 1
                return processor(**inputs)

        plain, quick = PictureTokens(Plain(), None), PictureTokens(processor, None)
        pictures = [encoded(Image.new("RGB", size, colour)) for size in self.SIZES for colour in ("red", "blue")]
        assert [plain.known(p) for p in pictures] == [quick.known(p) for p in pictures]
        assert Plain.asked == len(self.SIZES)  # once a size

    def test_a_dual_encoder_puts_no_pictures_among_words(self, dual):
        tokens = dual.ours.body.picture_tokens
        assert tokens.known(encoded(noise())) is None
        item = Item(images=(encoded(noise()),))
        assert dual.ours.cost(item) - dual.ours.cost(Item(text="a")) == GUESS

    def test_an_error_that_is_no_refusal_comes_through(self):
        class Changed:
            def _get_num_multimodal_tokens(self, image_sizes):
                raise AttributeError("no such thing")

        with pytest.raises(AttributeError, match="no such thing"):
            PictureTokens(Changed(), None).known(encoded(noise()))


class TestTemplates:
    """A model without its chat template is told of, at loading or with the first item that needs it."""

    @pytest.fixture
    def without(self, models, tmp_path):
        def copy(name, bare):
            folder = models[name].folder
            made = Path(shutil.copytree(vlms.bare(folder) if bare else folder, tmp_path / "model"))
            for file in made.rglob("chat_template*"):
                file.unlink()
            return made

        return copy

    @pytest.mark.parametrize("name", ["llava", "qwen3-vl"])
    def test_of_a_model_that_reads_messages(self, without, name):
        with pytest.raises(ModelError, match=r"has no chat template: copy chat_template\.jinja"):
            Embedder.load(without(name, bare=False), device="cpu")

    @pytest.mark.parametrize("name", ["llava", "qwen3-vl"])
    def test_of_a_bare_model_that_reads_text_all_the_same(self, without, name, pictures):
        model = Embedder.load(without(name, bare=True), device="cpu")
        item = Item(images=(pictures["red square"],))
        assert np.isfinite(model.encode([Item(text="red")])).all()
        assert "no chat template that says where it goes" in problems(model.body, [item])[item]
