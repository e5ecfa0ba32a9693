import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from hardwon.evaluation import Benchmark, Task, leakage
from hardwon.evaluation.fingers import Texts, normal
from hardwon.items import Candidate, Example, Item

WORDS = "red green small old kite river lamp stone window cloud paper horse garden bridge winter coffee table".split()


def scene(seed, side=96):
    """A picture that looks like no other one."""
    draw = np.random.default_rng(seed)
    image = Image.fromarray(draw.integers(0, 255, (4, 4, 3), dtype=np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(image)
    for _ in range(6):
        x, y, w, h = draw.integers(0, side, 4)
        pen.ellipse((x, y, x + w // 2, y + h // 2), fill=tuple(draw.integers(0, 255, 3).tolist()))
    return image


def encoded(image, kind="PNG", **how):
    out = io.BytesIO()
    image.save(out, kind, **how)
    return out.getvalue()


def sentence(seed, words=9):
    return " ".join(np.random.default_rng(seed).choice(WORDS, words))


def train(*items):
    return [Example(item, (Candidate(Item(text="label"), origin="gold"),), "s") for item in items]


def ask(*items, corpus=()):
    entries = tuple(corpus) or (Item(text="yes"),)
    return Benchmark("b", (Task("asked", "vqa", "ind", tuple(items), entries, ((0,),) * len(items)),))


def found(examples, benchmark):
    return {(leak.part, leak.row): (leak.kind, leak.training) for leak in leakage(examples, benchmark, progress=False).found}


CHANGES = {
    "jpeg": lambda image: encoded(image, "JPEG", quality=45),
    "webp": lambda image: encoded(image, "WEBP", quality=60),
    "smaller": lambda image: encoded(image.resize((61, 55), Image.Resampling.LANCZOS)),
    "larger": lambda image: encoded(image.resize((200, 180), Image.Resampling.BICUBIC), "JPEG", quality=80),
}


def test_a_picture_that_was_encoded_or_resized_again_is_found():
    examples = train(*(Item(images=(encoded(scene(n)),)) for n in range(60)))
    for name, change in CHANGES.items():
        leaks = found(examples, ask(*(Item("what is it?", (change(scene(n)),)) for n in range(60))))
        right = [n for n in range(60) if leaks.get(("query", n)) == ("picture", (n,))]
        assert len(right) >= 57, name
        assert len(leaks) <= 60


def test_other_pictures_and_the_same_question_are_no_leak():
    examples = train(*(Item("what is it called in English?", (encoded(scene(n)),)) for n in range(200)))
    others = [Item("what is it called in English?", (encoded(scene(1000 + n)),)) for n in range(400)]
    assert found(examples, ask(*others)) == {}


def test_the_same_content_is_exact_whatever_the_instruction():
    picture = encoded(scene(1))
    examples = train(Item(text=sentence(1)), Item("a", (picture,)), Item(text=sentence(2)), Item("a", (picture,)))
    asked = ask(
        Item(text=sentence(1), instruction="Find it."), Item("a", (picture,)), Item("b", (picture,)), Item(text=sentence(3)),
        corpus=(Item(text="label"), Item(text=sentence(2)), Item(images=(encoded(scene(2)),))),
    )  # fmt: skip
    assert found(examples, asked) == {
        ("query", 0): ("exact", (0,)),
        ("query", 1): ("exact", (1, 3)),
        ("query", 2): ("picture", (1, 3)),
        ("corpus", 1): ("exact", (2,)),
    }


def test_texts_with_a_word_changed_are_found_and_others_are_not():
    examples = train(*(Item(text=sentence(n, 12)) for n in range(300)))
    changed = [sentence(n, 12).split() for n in range(100)]
    asked = [" ".join([*words[:5], "purple", *words[6:]]).upper() + "!" for words in changed]
    leaks = found(examples, ask(*(Item(text=text) for text in asked)))
    assert sum(leaks.get(("query", n)) == ("text", (n,)) for n in range(100)) >= 85
    assert found(examples, ask(*(Item(text=sentence(5000 + n, 12)) for n in range(500)))) == {}
    assert normal("Ｔhe  Cat’s—hat!") == "the cat s hat"
    assert Texts([]).find("anything at all") == []


def test_sentences_without_spaces_are_looked_for():
    kite = "一只红色的风筝在海面上飞翔，旁边有一个孩子和一只狗"
    tea = "きのうの夜に友だちと古い喫茶店で長い時間話をしました"
    examples = train(*(Item(text=text) for text in (kite, tea)))
    asked = [Item(text=text) for text in (kite, tea + "。", "他昨天坐火车去了北京看望他的祖父母")]
    assert found(examples, ask(*asked)) == {("query", 0): ("exact", (0,)), ("query", 1): ("text", (1,))}


def test_a_few_words_leak_only_as_the_same_query():
    label = Candidate(Item(text="a tabby cat"), origin="gold")
    examples = [Example(Item(text=text), (label,), "s") for text in ("Red kite", "金毛寻回犬")]
    asked = [Item(text=text) for text in ("red kite!", "red kites", "金毛寻回犬", "a tabby cat")]
    corpus = (Item(text="red kite"), Item(text="a tabby cat"))
    leaks = found(examples, ask(*asked, corpus=corpus))
    assert leaks == {("query", 0): ("exact", (0,)), ("query", 2): ("exact", (1,))}


def cut(seed, shortest):
    """A part of a picture that holds at least this share of each side, encoded again."""
    image, draw = scene(seed), np.random.default_rng(seed)
    (width, height), (left, top) = draw.uniform(shortest, 0.97, 2), draw.uniform(0, 1, 2)
    box = np.array([left * (1 - width), top * (1 - height), left * (1 - width) + width, top * (1 - height) + height])
    return encoded(image.crop(tuple((96 * box).round().astype(int))), "JPEG", quality=85)


@pytest.mark.parametrize("shortest", [0.9, 0.7, 0.55])
def test_cut_outs_are_found_in_both_directions(shortest):
    some = range(40)
    wholes, parts = ([Item(images=(picture,)) for picture in made] for made in (
        [encoded(scene(n)) for n in some], [cut(n, shortest) for n in some]
    ))  # fmt: skip
    for trained, asked in ((wholes, parts), (parts, wholes)):
        leaks = found(train(*trained), ask(*asked))
        right = [n for n in some if leaks.get(("query", n)) in {("crop", (n,)), ("picture", (n,))}]
        assert len(right) >= 38
    assert sum(kind == "crop" for kind, _ in leaks.values()) >= 30
    others = [Item(images=(cut(1000 + n, shortest),)) for n in range(100)]
    assert found(train(*wholes), ask(*others)) == {}


def test_a_part_that_is_too_small_is_no_cut_out():
    corner = encoded(scene(1).crop((0, 0, 30, 30)))
    assert found(train(Item(images=(encoded(scene(1)),))), ask(Item(images=(corner,)))) == {}


def test_other_questions_behind_the_same_instruction_are_no_leak():
    told = "Find a Wikipedia image-passage pair that answers this question: "
    known = [told + sentence(n, 6) for n in range(20)]
    copied = [told + sentence(n, 6).upper() for n in range(5)]
    others = [told + sentence(100 + n, 6) for n in range(100)]
    leaks = found(train(*(Item(text=text) for text in known)), ask(*(Item(text=text) for text in (*copied, *others))))
    assert leaks == {("query", n): ("text", (n,)) for n in range(5)}


def test_what_cannot_be_read_is_counted(tmp_path):
    examples = train(Item(images=(tmp_path / "gone.png",)), Item(images=(b"no picture",)))
    leaks = leakage(examples, ask(Item(text=sentence(1)), Item(images=(tmp_path / "gone too.png",))), progress=False)
    assert (leaks.found, leaks.unreadable) == ((), 3)
    assert str(leaks) == "no leak: none of 2 items is in the training data"


def test_the_ids_are_listed():
    leaks = leakage(train(Item(text=sentence(1))), ask(Item(text=sentence(1)), Item(text=sentence(2))), progress=False)
    assert str(leaks) == "1 of 2 items are in the training data:\n   asked, query, exact: 1"
    (row,) = leaks.to_json()["leaks"]
    assert (row["task"], row["part"], row["row"], row["kind"], row["training"]) == ("asked", "query", 0, "exact", (0,))
    assert sentence(1) in row["item"]
    assert leaks.counts()["looked for"] == {"asked, query": 2}


@pytest.mark.parametrize("empty", ["pictures", "texts", "all"])
def test_training_data_without_one_kind(empty):
    kinds = {"pictures": [Item(text=sentence(1))], "texts": [Item(images=(encoded(scene(1)),))], "all": []}
    leaks = found(train(*kinds[empty]), ask(Item(text=sentence(1)), Item(images=(encoded(scene(1)),))))
    assert set(leaks) == {"pictures": {("query", 0)}, "texts": {("query", 1)}, "all": set()}[empty]
