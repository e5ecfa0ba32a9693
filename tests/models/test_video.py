"""Items with a video: shown as one where the model reads video, else as pictures in order."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
import vlms
from PIL import Image

from hardwon.errors import BadItems, ModelError
from hardwon.items import Candidate, Example, Item
from hardwon.losses import InfoNCE
from hardwon.models import Embedder, Reranker
from hardwon.models.length import VideoTokens
from hardwon.models.preflight import refusal
from hardwon.pictures import open_picture
from hardwon.training.batches import shared
from hardwon.training.step import Memory, embedder_step

LOSS = InfoNCE(0.1)
EVERY = {"video": {"do_sample_frames": False}}  # what plain sentence-transformers has to be told to see all frames
READERS = ("llava-onevision", "qwen2-vl", "qwen2.5-vl", "qwen3-vl")


@pytest.fixture(scope="session")
def frames(tmp_path_factory):
    """Paths of 33 small frames that all differ."""
    home = tmp_path_factory.mktemp("frames")
    drawn = [tiny.draw(colour, shape, 32) for colour in tiny.COLOURS for shape in tiny.SHAPES]
    for n, picture in enumerate([*drawn, *(p.rotate(90) for p in drawn)][:33]):
        picture.putpixel((n % 32, n // 32), (n, 0, 0))
        picture.save(home / f"{n:02}.png")
    return tuple(sorted(home.glob("*.png")))


@pytest.fixture(scope="session")
def reading(tmp_path_factory):
    """Folder, hardwon's and sentence-transformers' model by architecture, made when first asked for. Not to be changed."""
    from sentence_transformers import SentenceTransformer

    class Made(dict):
        def __missing__(self, name):
            folder = vlms.DECODERS[name](tmp_path_factory.mktemp("video") / name)
            ours, plain = Embedder.load(folder, device="cpu"), SentenceTransformer(str(folder), device="cpu")
            self[name] = SimpleNamespace(folder=folder, ours=ours, theirs=plain)
            return self[name]

    return Made()


@pytest.fixture(params=READERS)
def reader(request, reading):
    return reading[request.param]


@pytest.fixture
def items(frames):
    """Items of every kind."""
    return [
        Item(text="a red square"),
        Item(video=frames[:2]),
        Item(images=frames[:1]),
        Item(video=frames[:5], text="what is it", instruction="find it"),
        Item(video=frames[7:8]),
        Item(images=frames[3:5], video=frames[5:12], text="a"),
        Item(video=frames[2:7]),
        Item(text="the fox is above the yellow bar"),
    ]


def plainly(item):
    """An item as a user of sentence-transformers writes it."""
    parts = {"image": item.images, "video": item.video * (2 if len(item.video) == 1 else 1)}
    words = " ".join(part for part in (item.instruction, item.text) if part)
    made = {name: [open_picture(path) for path in paths] for name, paths in parts.items() if paths}
    return made | ({"text": words} if words else {})


def tokens(model, item):
    (ids,) = model.body.features([[item]])["input_ids"].tolist()
    return ids


class TestReader:
    def test_vectors_are_those_of_sentence_transformers(self, reader, items, frames):
        assert "video" in reader.ours.body.modalities
        items = [item for item in items if len(item.video) != 1]
        items += [Item(video=frames[:count]) for count in (3, 33)]
        theirs = reader.theirs.encode([plainly(item) for item in items], batch_size=1, processing_kwargs=EVERY)
        np.testing.assert_allclose(np.concatenate([reader.ours.encode([item]) for item in items]), theirs, atol=1e-6)

    def test_a_video_of_one_frame(self, reader, frames):
        one, two, other = (Item(video=part) for part in (frames[:1], frames[:1] * 2, frames[1:2]))
        made = reader.ours.encode([one, two, other])
        assert np.linalg.norm(made[0] - made[2]) > 1e-3
        if reader.ours.body.video_tokens.stacked:
            (truth,) = reader.theirs.encode([{"video": [open_picture(frames[0])]}])
        else:  # frames are read by twos
            truth = made[1]
        np.testing.assert_allclose(made[0], truth, atol=1e-6)

    def test_a_tokenizer_that_was_saved_with_a_length(self, reader, frames, tmp_path):
        """As sentence-transformers saves one that has been used; the length of a video is asked for all the same."""
        folder = Path(shutil.copytree(reader.folder, tmp_path / "model"))
        kept = json.loads((folder / "tokenizer.json").read_text())
        kept["truncation"] = {"direction": "Right", "max_length": 256, "strategy": "LongestFirst", "stride": 0}
        (folder / "tokenizer.json").write_text(json.dumps(kept))
        item = Item(video=frames[:6])
        assert Embedder.load(folder, device="cpu").cost(item) == reader.ours.cost(item)

    def test_every_frame_and_the_order_of_frames_count(self, reader, frames):
        whole = reader.ours.encode([Item(video=frames)])[0]
        for n in (1, 14, 32):
            other = reader.ours.encode([Item(video=(*frames[:n], frames[0], *frames[n + 1 :]))])[0]
            assert np.linalg.norm(whole - other) > 1e-5, n
        assert np.linalg.norm(whole - reader.ours.encode([Item(video=frames[::-1])])[0]) > 1e-3

    def test_a_saved_copy_sees_every_frame_too(self, reader, frames, tmp_path):
        from sentence_transformers import SentenceTransformer

        reader.ours.save(tmp_path)
        item = Item(video=frames)
        made = SentenceTransformer(str(tmp_path), device="cpu").encode([plainly(item)])
        np.testing.assert_allclose(made, reader.ours.encode([item]), atol=1e-6)
        assert Embedder.load(tmp_path, device="cpu").fingerprint == reader.ours.fingerprint

    def test_how_frames_are_prepared_counts_in_the_fingerprint(self, reader):
        model = Embedder.load(reader.folder, device="cpu")
        model.body.model[0].processor.video_processor.image_mean = [0.1, 0.2, 0.3]
        assert model.body.identity() != reader.ours.body.identity()

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_a_mixed_batch_is_as_good_as_one(self, reader, items, side):
        alone = np.concatenate([reader.ours.encode([item]) for item in items])
        model = Embedder.load(reader.folder, device="cpu")
        model.body.tokenizer.padding_side = side
        np.testing.assert_allclose(model.forward(items).detach().numpy(), alone, atol=1e-6)
        np.testing.assert_allclose(model.encode(items[::-1]), alone[::-1], atol=1e-6)

    def test_tokens_are_known_beforehand(self, reader, frames):
        body = reader.ours.body
        around = len(tokens(reader.ours, Item(text="a"))) - 1
        for video in (frames[:1], frames[:2], frames[:5], frames):
            assert body.video_tokens.known(video) == len(tokens(reader.ours, Item(video=video))) - around

    def test_the_cost_of_an_item_is_its_tokens(self, reader, items):
        for item in items:
            count = len(tokens(reader.ours, item))
            assert count / 2 <= reader.ours.cost(item) <= 2 * count + 8, item

    def test_long_text_is_cut_and_the_video_stays_whole(self, reader, frames):
        body = reader.ours.body
        short, long = (tokens(reader.ours, Item(text=text, video=frames)) for text in ("red", "red " * 5000))
        film = body.model[0].processor.video_token_id
        assert short.count(film) == long.count(film) > 0
        assert short[-2:] == long[-2:]
        assert body.model.max_seq_length - 3 <= len(long) <= body.model.max_seq_length

    @pytest.mark.parametrize("text", ["", "what"])
    def test_more_frames_than_fit_are_an_error_that_names_the_item(self, reader, frames, text):
        item = Item(text=text, video=frames * 5)
        message = f"item {item.key[:12]} comes to .* tokens of frames, but the model takes 256 in all: make the frames smaller"
        with pytest.raises(ModelError, match=message):
            reader.ours.encode([item])

    def test_frames_of_different_sizes_are_an_error_that_names_the_item(self, reader, frames, pictures):
        item = Item(video=(*frames[:2], pictures["red square"]))
        with pytest.raises(ModelError, match=rf"item {item.key[:12]} holds a video with frames of 32 x 32 and of 64 x 64 pix"):
            reader.ours.encode([item])

    @pytest.mark.parametrize("memory", [Memory(100), Memory(100, 0)], ids=repr)
    def test_gradient(self, reader, frames, memory):
        model = Embedder.load(reader.folder, device="cpu")
        films = [frames[:2], frames[4:9], frames[9:11], frames[20:21]]
        rows = [Example(Item(text=f"film {n}"), (Candidate(Item(video=film), 1.0, "gold"),)) for n, film in enumerate(films)]
        batch = shared(rows, 0)
        sides = [torch.cat([model.forward([item]) for item in side]) for side in (batch.queries, batch.candidates)]
        LOSS(sides[0] @ sides[1].T, batch.targets[:]).backward()
        truth = tiny.gradient_of(model)
        embedder_step(model, LOSS, batch, memory)
        assert any(p.grad is not None and p.grad.any() for name, p in model.module.named_parameters() if "vis" in name)
        made = tiny.gradient_of(model)
        assert made.isfinite().all()
        assert float((made - truth).norm() / truth.norm()) < 2e-5


@pytest.mark.parametrize("name", ["llava-onevision", "qwen2-vl"])
def test_a_reranker_reads_videos(reading, frames, name):
    model = Reranker.start_from(reading[name].ours)
    pairs = [(Item(text="what"), Item(video=frames[:4])), (Item(video=frames[:2]), Item(video=frames[5:7], text="a"))]
    made = model.score_pairs(pairs)
    np.testing.assert_allclose(made, [model.score(*(query, [item]))[0] for query, item in pairs], atol=1e-5)
    assert abs(made[0] - model.score(pairs[0][0], [Item(video=frames[3::-1])])[0]) > 1e-6


def test_a_pair_of_videos_of_different_lengths(reading, frames):
    """Only where the processor stacks videos, which LLaVA-OneVision's does."""
    one, two = Item(video=frames[:2]), Item(video=frames[:3], text="a")
    assert np.isfinite(Reranker.start_from(reading["qwen2-vl"].ours).score(one, [two])).all()
    model = Reranker.start_from(reading["llava-onevision"].ours)
    message = f"item {one.key[:12]} and item {two.key[:12]} hold videos of 2 and 3 frames, but this model reads videos together"
    with pytest.raises(ModelError, match=message):
        model.score(one, [two])
    assert message in refusal(model.body, (one, two))  # so that a training may leave the pair out
    assert not refusal(model.body, (one, Item(video=frames[5:7])))


class TestLength:
    def test_a_processor_that_wants_data_is_given_some(self, reader, frames, monkeypatch):
        truth, asked = reader.ours.body.video_tokens.known(frames[:5]), []
        tokens = VideoTokens(reader.ours.body.model)
        preprocess = tokens.model.preprocess

        def looking(rows, **settings):
            film = rows[0].get("video")
            if film is not None:
                asked.append(film.device.type)
                film.sum().item()
            return preprocess(rows, **settings)

        monkeypatch.setattr(tokens.model, "preprocess", looking)
        assert tokens.known(frames[:5]) == truth
        assert asked == ["meta", "cpu"]

    @pytest.mark.parametrize("error", [KeyError("pixels"), AttributeError("no such thing")], ids=repr)
    def test_an_error_that_is_no_refusal_comes_through(self, reader, frames, monkeypatch, error):
        tokens = VideoTokens(reader.ours.body.model)

        def breaks(rows, **_):
            raise error

        monkeypatch.setattr(tokens.model, "preprocess", breaks)
        with pytest.raises(type(error)):
            tokens.known(frames[:2])

    @pytest.mark.parametrize("name", ["qwen2-vl", "qwen3-vl"])
    def test_a_shape_that_the_processor_refuses(self, reading, name, tmp_path):
        Image.new("RGB", (402, 2)).save(tmp_path / "line.png")
        item = Item(text="a", video=(tmp_path / "line.png",) * 2)
        with pytest.raises(BadItems, match="refuses a video of 2 frames of 402 x 2 pixels: absolute aspect ratio"):
            reading[name].ours.encode([Item(text="red"), item])


def as_pictures(item):
    return Item(item.text, item.pictures, item.instruction)


class TestWithoutVideo:
    def test_frames_are_pictures_in_order(self, reading, items):
        model = reading["llava"].ours
        assert "video" not in model.body.modalities
        np.testing.assert_array_equal(model.encode(items), model.encode([as_pictures(item) for item in items]))
        assert [model.cost(item) for item in items] == [model.cost(as_pictures(item)) for item in items]

    def test_of_any_size(self, reading, frames, pictures):
        film = Item(video=(frames[0], pictures["red square"]))
        np.testing.assert_array_equal(reading["llava"].ours.encode([film]), reading["llava"].ours.encode([as_pictures(film)]))

    @pytest.mark.parametrize("cached", [False, True])
    def test_the_built_in_model(self, tiny_vlm, items, frames, cached, tmp_path):
        model = Embedder.load(tiny_vlm, device="cpu", vision_cache=tmp_path if cached else None)
        if cached:
            model.body.prepare([[item] for item in items], True)
            assert len(model.body.vision.rows) == 12  # each frame once
        np.testing.assert_array_equal(model.encode(items), model.encode([as_pictures(item) for item in items]))
        for item in (Item(video=frames), Item("words", video=frames)):
            with pytest.raises(ModelError, match=f"item {item.key[:12]} comes to 132 tokens of frames, but the model takes 64"):
                model.forward([Item(text="red"), item])

    def test_a_dual_encoder(self, tmp_path, frames):
        model = Embedder.load(vlms.build_clip(tmp_path / "clip"), device="cpu")
        item = Item(video=frames[:2])
        with pytest.raises(ModelError, match=f"item {item.key[:12]} holds a video, but this model has one encoder"):
            model.encode([Item(text="red"), item])

    def test_a_model_of_text(self, text_model, frames):
        item = Item(video=frames[:2], text="red")
        with pytest.raises(ModelError, match=f"this model reads text only, but item {item.key[:12]} holds a video"):
            text_model.encode([item])
