"""Copies of the positive, encoded or cropped again, are found without a judge; what only resembles it is left to one."""

import dataclasses

import numpy as np
import planted
import pytest
from fakes import AngledEncoder, RuleJudge, odds_by_hash
from PIL import Image, ImageDraw

from hardwon.errors import RecipeError
from hardwon.items import Candidate, Example, Item
from hardwon.mining import Mining, mine, reselect
from hardwon.mining.copies import Copies, distances, thumbnail

COPY = "a copy of the positive, apart <= 0.2"


def scene(seed, side=96):
    """Some coloured shapes on a ground."""
    draw = np.random.default_rng(seed)
    made = Image.new("RGB", (side, side), tuple(draw.integers(150, 256, 3).tolist()))
    pen = ImageDraw.Draw(made)
    for n in range(7):
        x, y, w, h = (draw.uniform(0.05, 0.6, 4) * side).tolist()
        shape = pen.ellipse if n % 2 else pen.rectangle
        shape((x, y, x + w / 2 + 4, y + h / 2 + 4), fill=tuple(draw.integers(0, 256, 3).tolist()))
    return made


def apart(golds, items):
    return Copies().apart([(golds, items)])[0]


CHANGES = {
    "compressed": lambda shown: planted.encoded(shown, "JPEG"),
    "smaller": lambda shown: planted.encoded(shown.resize((41, 41))),
    "cut off all around": lambda shown: planted.encoded(shown.crop((5, 5, 91, 91))),
    "cut off at two sides": lambda shown: planted.encoded(shown.crop((8, 0, 96, 90)), "JPEG"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_picture_that_was_changed_is_found_and_no_other(change):
    scenes = [scene(n) for n in range(40)]
    golds = [planted.encoded(shown) for shown in scenes]
    copies = [CHANGES[change](shown) for shown in scenes]
    found = Copies().apart(
        [([gold], [copy, other]) for gold, copy, other in zip(golds, copies, golds[1:] + golds[:1], strict=True)]
    )
    assert sum(copy <= 0.2 for copy, _ in found) >= 39
    assert min(other for _, other in found) > 0.5
    backwards = Copies().apart([([copy], [gold]) for gold, copy in zip(golds, copies, strict=True)])
    assert sum(row[0] <= 0.2 for row in backwards) >= 39


def test_what_differs_in_one_place_is_another_picture():
    one, other = scene(1), scene(1)
    ImageDraw.Draw(other).ellipse((40, 40, 58, 58), fill="black")
    assert apart([planted.encoded(one)], [planted.encoded(one), planted.encoded(other)])[0] == 0
    assert apart([planted.encoded(one)], [planted.encoded(other)])[0] > 0.4


def test_plain_pictures_are_alike_in_the_same_colour_only():
    red, almost, blue = (planted.encoded(Image.new("RGB", (20, 20), c)) for c in ("#f00000", "#f00100", "blue"))
    near, far = apart([red], [almost, blue])
    assert near == pytest.approx(1 / 4 / 3**0.5, abs=1e-3)  # one grey level of one colour, in units of FLAT
    assert far > 1


def test_a_pair_does_not_depend_on_those_that_are_measured_with_it():
    looks = np.stack([thumbnail(planted.encoded(scene(n)).images[0]) for n in range(9)])
    others = np.stack([thumbnail(CHANGES["cut off all around"](scene(n // 2 * 2)).images[0]) for n in range(9)])
    whole = distances(looks, others)
    assert [distances(looks[n : n + 1], others[n : n + 1])[0] for n in range(9)] == whole.tolist()


def test_texts_are_copies_up_to_case_and_spaces_and_no_further():
    others = ["A red  Apple.", "a red apple", "red apple", "a red apple!", "C"]
    assert apart([Item(text="a red apple")], [Item(text=text) for text in others]) == [0.0, 0.0, None, None, None]
    for one, other in (("C++", "C"), ("1998", "1999"), ("\N{RED APPLE}", "\N{TANGERINE}")):
        assert apart([Item(text=one)], [Item(text=other)]) == [None]


def test_words_and_number_of_pictures_have_to_be_the_same():
    shown, copy, other = scene(1), CHANGES["compressed"](scene(1)).images[0], planted.encoded(scene(2)).images[0]
    (picture,) = planted.encoded(shown).images
    gold = Item(text="with words", images=(picture,))
    items = [
        Item(text="With words", images=(copy,)),
        Item(images=(copy,)),
        Item(text="with words", images=(copy, copy)),
        Item(text="with words"),
    ]
    assert [value is not None and value < 0.2 for value in apart([gold], items)] == [True, False, False, False]
    two = Item(images=(picture, picture))
    same, half, broken = apart([two], [Item(images=(copy, copy)), Item(images=(copy, other)), Item(images=(copy, b"none"))])
    assert (same < 0.2, half > 0.5, broken) == (True, True, None)  # the worst picture counts
    assert apart([two, Item(images=(other, other))], [Item(images=(copy, other))]) == [half]
    assert apart([Item(images=(other,)), Item(images=(picture,))], [Item(images=(copy,))])[0] < 0.2  # the nearest positive
    film = Item(video=(picture, other, picture, other, picture))
    assert apart([film], [Item(video=(copy, copy, copy, copy, copy)), film, Item(images=(copy,))]) == [
        pytest.approx(0.1, abs=0.1),
        0.0,
        None,
    ]


@pytest.fixture
def data(tmp_path):
    """Queries with a picture each; that of the first lies in the pool again, compressed, and a query that has only copies."""
    for n in range(6):
        scene(n).save(tmp_path / f"{n}.png")
    scene(0).save(tmp_path / "copy.jpg", quality=60)
    shown, copy = [Item(images=(tmp_path / f"{n}.png",)) for n in range(6)], Item(images=(tmp_path / "copy.jpg",))
    rows = [Example(Item(text=f"q{n}"), (Candidate(item, origin="gold"),), "s") for n, item in enumerate(shown)]
    rows[3] = rows[3].adding([Candidate(copy)])
    only = Example(Item(text="alone"), (Candidate(Item(text="Answer"), origin="gold"),), "t")
    other = Example(Item(text="alone too"), (Candidate(Item(text="answer ."), origin="gold"),), "t")
    return (*rows, only, other), copy


@pytest.mark.parametrize("judged", [True, False])
def test_mining_rejects_a_copy_says_so_and_never_pushes_it_away(data, judged, tmp_path):
    examples, copy = data
    asked = RuleJudge(odds_by_hash)
    settings = Mining(depth=8, keep=3, min_auc=0.0)
    mined = mine(examples, AngledEncoder(dim=3), asked if judged else None, settings=settings, store=tmp_path)
    lines = [e for e in mined.ledger if e.candidate == copy.key]
    assert len(lines) == 6
    own, others = lines[0], lines[1:]
    assert (own.row, own.verdict, own.rule) == (0, "rejected", COPY)
    assert own.apart < 0.2 and own.grade is None
    assert COPY not in {e.rule for e in others} and all(e.apart > 0.5 for e in others)
    assert copy.content in mined.examples[0].related
    assert (examples[0].query, copy) not in [pair for batch in asked.asked for pair in batch]
    # A query that has nothing but copies keeps them as related, too.
    assert [e.rule for e in mined.ledger if e.row == 6] == [COPY]
    assert mined.examples[6].related == {Item(text="answer .").content}
    assert mined.counts["nothing retrieved"] == 2


def test_what_was_measured_is_kept_and_chosen_from_again(data, tmp_path, monkeypatch):
    examples, _ = data
    settings, judge = Mining(depth=8, keep=3, min_auc=0.0), RuleJudge(odds_by_hash)
    first = mine(examples, AngledEncoder(dim=3), judge, settings=settings, store=tmp_path)
    monkeypatch.setattr("hardwon.mining.copies.distances", None)  # whoever calls it fails
    assert mine(examples, AngledEncoder(dim=3), judge, settings=settings, store=tmp_path) == first
    first.write(tmp_path / "made", tmp_path)
    wider = dataclasses.replace(settings, copies=1.0)
    assert reselect(tmp_path / "made", examples, settings=wider) == mine(
        examples, AngledEncoder(dim=3), judge, settings=wider, store=tmp_path
    )
    narrower = dataclasses.replace(settings, copies=None)  # the judge was never asked about the copy
    with pytest.raises(RecipeError, match="never asked about"):
        reselect(first, examples, settings=narrower)
    unseen = mine(examples, AngledEncoder(dim=3), judge, settings=narrower, store=tmp_path)  # an artifact of its own
    assert {e.apart for e in unseen.ledger} == {None}
    with pytest.raises(RecipeError, match="nobody looked for them: mine again"):
        reselect(unseen, examples, settings=settings)


def test_a_bar_that_cannot_be_meant():
    for value in (-0.1, 1.5):
        with pytest.raises(RecipeError, match=f"copies must lie between 0 and 1, or be None to look for none, got {value:g}"):
            Mining(copies=value)
