"""Samples of what reliability.md asks of inputs (A1, A2, A5 to A10) and of models (B1, B4, B7). `trials.py` says how large."""

import json
import random
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
import torch
import vlms
from damage import mutated
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import encoded
from transformers import PreTrainedTokenizerBase
from trials import trials

from hardwon.data import read
from hardwon.errors import BadItems, BadMedia, ModelError
from hardwon.items import Item
from hardwon.losses import InfoNCE
from hardwon.models import Embedder, Reranker
from hardwon.models.loading import UNREAD
from hardwon.pictures import open_picture
from hardwon.training import Settings, train


def test_a1_damaged_files_from_reading_to_training(vlm, pictures, tmp_path):
    rng = random.Random(1)
    originals = [
        encoded(tiny.draw(colour, shape), kind)
        for colour, shape, kind in zip(
            ("red", "blue", "green", "black", "yellow", "red"),
            ("square", "bar", "circle", "triangle", "bar", "circle"),
            ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"),
            strict=True,
        )
    ]
    rows = []
    for n in range(trials(60)):
        data = mutated(rng, originals[n % 6], originals[(n + 1) % 6])
        (tmp_path / f"{n}.png").write_bytes(data)
        rows.append({"query": f"picture {n}", "positive_image": f"{n}.png"})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def broken(path):
        start = time.perf_counter()
        try:
            open_picture(path)
        except BadMedia:
            return True
        finally:
            assert time.perf_counter() - start < 2
        return False

    truth = {n for n in range(len(rows)) if broken(tmp_path / f"{n}.png")}
    assert 0.3 < len(truth) / len(rows) < 0.95
    whole = read(tmp_path / "rows.jsonl", on_error="skip", max_bad_fraction=1.0, decode_pictures=True)
    assert {row.line - 1 for row in whole.bad} == truth
    data = read(tmp_path / "rows.jsonl", on_error="skip", max_bad_fraction=1.0)
    data.write_quarantine(tmp_path / "quarantine.parquet")
    refused = {row["line"] - 1 for row in pq.read_table(tmp_path / "quarantine.parquet").to_pylist()}
    assert refused < truth  # damage inside is left for those who decode

    items = [e.gold[0] for e in data]
    with pytest.raises(BadItems) as caught:
        vlm.encode(items)
    hidden = [entry.item for entry in caught.value.items]
    assert {int(item.images[0].stem) for item in hidden} == truth - refused
    assert np.isfinite(vlm.encode([item for item in items if item not in hidden])).all()

    skip = Settings(batch_size=4, on_error="skip", max_bad_fraction=1.0)
    train(vlm, data, InfoNCE(0.1), steps=2, settings=skip, out=tmp_path / "out")
    logged = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert sum(row.get("event") == "left out" for row in logged) == len(hidden)


def test_a2_a_flipped_bit_gives_another_key(pictures):
    rng, whole = random.Random(2), pictures["red square"].read_bytes()
    truth = Item(images=(pictures["red square"],)).key
    for _ in range(trials(50)):
        flipped = bytearray(whole)
        flipped[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        assert Item(images=(bytes(flipped),)).key != truth
    assert Item(images=(whole,)).key == truth


def test_a5_extreme_shapes(any_model):
    rng = random.Random(5)
    shapes = [(1, 1), (1, 3000), (3000, 1), (20_000, 20), (2, 401), (1, 199)]
    while len(shapes) < trials(12):
        shapes.append((rng.randint(1, 2 ** rng.randint(0, 9)), rng.randint(1, 2 ** rng.randint(0, 9))))
    body, read_by_it = any_model.ours.body, 0
    for size in shapes:
        item = Item(images=(encoded(Image.new("RGB", size, "teal")),))
        try:
            vector = any_model.ours.encode([item])
        except BadItems as error:
            assert any_model.name.startswith(("qwen", "clip")) or any_model.name == "llava"  # the others scale to a square
            assert max(size) / min(size) > 200
            assert f"{size[0]} x {size[1]} pixels" in str(error)
            assert "aspect ratio" in str(error)
            continue
        read_by_it += 1
        assert np.isfinite(vector).all()
        if any_model.name not in vlms.DUAL:
            (ids,) = body.features([[item]])["input_ids"].tolist()
            assert len(ids) <= body.model.max_seq_length
    assert read_by_it >= len(shapes) / 2


CLASSICS = [
    "", " ", "\n\t", "\x00", "a\x00b", "\ud83d", "\udfff half", "\u200b", "\ufeff", "\u202e turned", "e\u0301" * 50,
    "\U0001f441\ufe0f\u200d\U0001f5e8\ufe0f", "\u0645\u0631\u062d\u0628", "\u0e4c" * 40, "\u4e2d\u6587", "\N{KITE}" * 400,
    "NaN", "/etc/passwd", "http://127.0.0.1:9/x.png", "file:///etc/passwd", "data:image/png;base64,iVBORw0KGgo=", "<image>",
    "[SEP][CLS]", "<|im_end|>", "{{ 7*7 }} {% raw %}", "%s%n%x", "'; DROP TABLE items; --", "\\", "\r\n", "x" * 100_000,
]  # fmt: skip


@pytest.fixture(scope="module", params=["tiny", "clip", "siglip", "llava", "qwen2-vl"])
def model(request, models, tiny_text):
    return Embedder.load(tiny_text, device="cpu") if request.param == "tiny" else models[request.param].ours


class TestText:
    """A6 and B7: whatever the text, a unit vector."""

    @settings(
        max_examples=trials(12), deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @example(texts=CLASSICS, dtype="fp32")
    @example(texts=CLASSICS, dtype="bf16")
    @example(texts=CLASSICS, dtype="fp16")
    @given(
        texts=st.lists(st.text(st.characters(), max_size=60), min_size=1, max_size=8),
        dtype=st.sampled_from(["fp32", "bf16", "fp16"]),
    )
    def test_any_text_gives_a_unit_vector(self, model, texts, dtype):
        items = [Item(text=text) for text in texts if text] or [Item(text=" ")]
        narrow = torch.float16 if dtype == "fp16" else torch.bfloat16
        with torch.autocast("cpu", narrow, enabled=dtype != "fp32"), torch.no_grad():
            vectors = model.forward(items).float().numpy()
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)

    def test_a7_of_a_million_letters_few_reach_the_tokenizer(self, model, monkeypatch):
        read, call = [], PreTrainedTokenizerBase.__call__

        def count(tokenizer, text=None, *rest, **settings):
            read.extend([text] if isinstance(text, str) else text)
            return call(tokenizer, text, *rest, **settings)

        monkeypatch.setattr(PreTrainedTokenizerBase, "__call__", count)
        for word in ("red square ", "x", "\N{KITE}"):
            read.clear()
            assert np.isfinite(model.encode([Item(text=word * (1_000_000 // len(word)))])).all()
            assert 0 < sum(map(len, read)) < 50_000


def test_a8_special_tokens_do_nothing_to_neighbours(any_model):
    """The same number of tokens in every row, so that the neighbours' vectors must be equal to the bit."""
    rng, body = random.Random(8), any_model.ours.body
    neighbours = [Item(text="a red square"), Item(text="the fox"), Item(text="blue", instruction="find it")]
    long = ["red"] * body.model.max_seq_length
    control = set(body.tokenizer.added_tokens_decoder)

    def read(words):
        items = [*neighbours, Item(text=" ".join(words))]
        (ids,) = body.features([[items[-1]]])["input_ids"].tolist()
        with torch.no_grad():
            return any_model.ours.forward(items)[:3], len(ids), sum(n in control for n in ids)

    truth, length, controls = read(long)
    for token in body.special:
        for _ in range(trials(1)):
            words = list(long)
            for place in (0, *rng.sample(range(len(words)), 3)):
                words[place] = token * rng.randint(1, 2) + rng.choice(("", "red"))
            vectors, tokens, found = read(words)
            assert (tokens, found) == (length, controls), token
            assert torch.equal(vectors, truth), token


TOUCHING = ("open", "socket.connect", "socket.getaddrinfo", "urllib.Request")
watches: list[list[str]] = []


def note_touching(event, details):
    for seen in watches if event in TOUCHING else ():
        seen.append(f"{event} {details}")


@pytest.fixture(scope="session")
def watch():
    """Call it with work to do; returns what the work opened, and where it connected to."""
    sys.addaudithook(note_touching)  # for ever: there is no way to take it off

    def watched(work):
        watches.append(seen := [])
        try:
            work()
        finally:
            watches.clear()
        return seen

    return watched


def test_texts_that_look_like_places_are_not_gone_to(any_model, pictures, watch):
    picture = pictures["red square"]
    places = [
        str(picture),
        picture.as_uri(),
        "http://127.0.0.1:9/x.png",
        "//127.0.0.1/x.png",
        "data:image/png;base64,iVBORw0KGgo=",
    ]
    items = [Item(text=place, instruction=place * (n % 2)) for n, place in enumerate(places)]
    model = any_model.ours
    assert watch(lambda: model.encode([Item(images=(picture,))]))  # a picture that is handed over as one is seen
    assert watch(lambda: model.encode(items)) == []
    if any_model.name in ("llava", "qwen2-vl"):
        judge = Reranker.start_from(model)
        assert watch(lambda: judge.score_pairs(list(zip(items, items[::-1], strict=True)))) == []


def test_a9_text_is_cut_and_pictures_never(decoder):
    model = Embedder.load(decoder.folder, device="cpu")
    body, rng = model.body, random.Random(9)
    token, refused = body.model[0].processor.image_token_id, 0
    for _ in range(trials(20)):
        body.model.max_seq_length = limit = rng.randint(body._frame + 4, 256)
        sizes = [(rng.randint(1, 200), rng.randint(1, 200)) for _ in range(rng.randint(0, 3))]
        pictures = tuple(encoded(Image.new("RGB", size, "teal")) for size in sizes if max(size) / min(size) <= 200)
        text = "red fox " * rng.choice((0 if pictures else 1, 1, 5, 40, 200))
        item = Item(text=text, images=pictures, instruction=rng.choice(("", "find it")))
        seen = body.picture_tokens.of(pictures)
        fits = not pictures or seen + body._frame + 2 * len(pictures) <= limit
        if not fits:
            refused += 1
            with pytest.raises(BadItems, match=f"comes to {seen} tokens of pictures, but the model takes {limit}"):
                model.encode([item])
            continue
        (ids,) = body.features([[item]])["input_ids"].tolist()
        assert len(ids) <= limit
        assert ids.count(token) == seen
        assert np.isfinite(model.encode([item])).all()
    assert 0 < refused < trials(20)


@pytest.fixture(scope="module")
def bad(pictures, tmp_path_factory):
    home = tmp_path_factory.mktemp("bad")
    whole = pictures["red square"].read_bytes()
    place = whole.index(b"IDAT") + 8
    for name, data in {
        "cut": whole[:-30],
        "empty": b"",
        "inside": whole[:place] + bytes(20) + whole[place + 20 :],
        "line": encoded(Image.new("RGB", (1, 402))),
    }.items():
        (home / f"{name}.png").write_bytes(data)
    return [home / f"{name}.png" for name in ("cut", "empty", "inside", "missing", "line")]


@pytest.mark.parametrize("name", ["qwen2-vl", "llava"])
def test_a10_one_bad_item_among_32(models, bad, pictures, name):
    """It is named, and the vectors of the others are what they are without it."""
    model, rng = models[name].ours, random.Random(10)
    seen = list(pictures.values())
    good = [Item(text=f"red {n}") for n in range(15)] + [Item(images=(path,)) for path in seen[:12]]
    good += [Item(text="what", images=tuple(seen[n : n + 2])) for n in range(4)]
    truth = model.encode(good)
    kinds = [Item(text="a", images=(path,)) for path in bad if name != "llava" or path.stem != "line"]
    kinds.append(Item(text="many", images=tuple(seen[:20]) * 2))
    for n in range(trials(len(kinds))):
        items = list(good)
        items.insert(rng.randrange(32), kinds[n % len(kinds)])
        with pytest.raises(BadItems, match="1 item of 32 cannot be used") as caught:
            model.encode(items)
        named = [entry.item for entry in caught.value.items]
        assert named == [kinds[n % len(kinds)]]
        if n % len(kinds) == 0:
            np.testing.assert_array_equal(model.encode([item for item in items if item not in named]), truth)


@pytest.fixture(scope="module")
def items(pictures):
    rng, seen = random.Random(11), list(pictures.values())
    made = [Item(text=" ".join(rng.choices(("red", "fox", "bar", "above", "it"), k=rng.randint(1, 40)))) for _ in range(11)]
    return made + [Item(text="what" * (n % 2), images=tuple(rng.sample(seen, 1 + n % 2))) for n in range(trials(5))]


@pytest.mark.parametrize("side", ["left", "right"])
def test_b1_vectors_are_those_of_single_items(decoder, items, side):
    """Neither the batch, nor the side of the padding, nor half the digits turn a vector."""
    model = Embedder.load(decoder.folder, device="cpu")
    model.body.tokenizer.padding_side = side
    for dtype, least in (("fp32", 0.99999), ("bf16", 0.999)):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"), torch.no_grad():
            alone = torch.cat([model.forward([item]) for item in items])
            for size in (2, 7, 32) if dtype == "fp32" else (7,):
                made = torch.cat([model.forward(items[n : n + size]) for n in range(0, len(items), size)])
                assert float((made * alone).sum(dim=1).min()) >= least, (dtype, size)
                if dtype == "fp32":
                    assert_same_best(made.double() @ made.double().T, alone.double() @ alone.double().T)


def assert_same_best(made, truth, k=10):
    """The best k of each row are the same; what is alike to seven digits may change places."""
    for scores, row in zip(made, truth, strict=True):
        last = row.topk(k).values[-1]
        assert row[scores.topk(k).indices].min() >= last - 1e-6


class TestWeights:
    """B4: a weight that is missing or has another name is an error at loading, whichever it is."""

    def check(self, folder, load, rng, count):
        (file,) = folder.glob("model.safetensors")
        tensors = load_file(file)
        names = [name for name in sorted(tensors) if not any(part in name for part in UNREAD)]
        for name in rng.sample(names, min(count, len(names))):
            damaged = dict(tensors)
            value = damaged.pop(name)
            if rng.random() < 0.5:
                damaged[name.replace(".", "_")] = value
            save_file(damaged, file, {"format": "pt"})
            with pytest.raises(ModelError, match=r"lacks 1 of \d+ weights"):
                load(folder, device="cpu")

    def test_of_every_architecture(self, any_model, tmp_path):
        folder = Path(shutil.copytree(any_model.folder, tmp_path / "model"))
        self.check(folder, Embedder.load, random.Random(4), trials(2))

    def test_statistics_of_a_convolutional_tower_are_weights(self, tiny_vlm, tmp_path):
        folder = Path(shutil.copytree(tiny_vlm, tmp_path / "model"))
        tensors = load_file(folder / "model.safetensors")
        tensors.pop("vision_tower.encoder.top_bn.running_mean")
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(ModelError, match=r"lacks 1 of \d+ weights \(vision_tower.encoder.top_bn.running_mean\)"):
            Embedder.load(folder, device="cpu")

    def test_of_the_built_in_backbone(self, tiny_vlm, tmp_path):
        self.check(Path(shutil.copytree(tiny_vlm, tmp_path / "model")), Embedder.load, random.Random(5), trials(6))

    def test_of_a_reranker(self, vlm, tmp_path):
        Reranker.start_from(vlm).save(tmp_path / "model")
        self.check(tmp_path / "model", Reranker.load, random.Random(6), trials(3))

    def test_the_head_of_a_new_cross_encoder_may_be_missing(self, tiny_text):
        bare = tiny_text.with_name(tiny_text.name + "-parts")  # a language model, as people start a cross-encoder from
        assert np.isfinite(Reranker.load(bare, device="cpu").score(Item(text="red"), [Item(text="blue")])).all()
