"""Pairs that say how one emoji differs from another."""

import dataclasses
import random

from PIL import Image

from hardwon.data.emoji.catalogue import Concept, family_of
from hardwon.data.emoji.pairs import World, change_pairs, gender_pairs


def test_a_lone_variant_is_not_asked_to_change_into_itself(concepts, tmp_path):
    pictures = tmp_path / "noto"
    pictures.mkdir()
    lone = next(c for c in concepts.values() if c.tone)
    rows = list(change_pairs(World(concepts, tmp_path), [dataclasses.replace(lone)], "noto", random.Random(0)))
    assert [row.source for row in rows] == ["skin_tone"]


def people(tmp_path, **colours):
    """Adults and an older person in one style, and what is asked of them."""
    (tmp_path / "noto").mkdir(exist_ok=True)
    family = []
    for name in ("person", "man", "woman", "older person"):
        slug = name.replace(" ", "-")
        family.append(Concept(slug, name, (), "person", "people", family_of(name), "train"))
        Image.new("RGB", (4, 4), colours.get(slug, f"#0000{len(name):02x}")).save(tmp_path / "noto" / f"{slug}.png")
    return {
        (row.query.images[0].stem, row.query.text, row.gold[0].images[0].stem)
        for row in gender_pairs(World({c.slug: c for c in family}, tmp_path), family, "noto")
    }


def test_an_older_person_does_not_become_a_young_woman(tmp_path):
    asked = people(tmp_path)
    assert asked == {
        *(("person", "as a man", "man"), ("person", "as a woman", "woman")),
        *(("man", "as a woman", "woman"), ("woman", "as a man", "man")),
    }


def test_nothing_is_asked_that_pictures_cannot_answer(tmp_path):
    assert ("person", "as a man", "man") not in people(tmp_path, person="red", man="red")


def test_tones_that_an_artist_did_not_draw_are_not_asked_for(concepts, tmp_path):
    (tmp_path / "noto").mkdir()
    toned = [c for c in concepts.values() if c.tone][:5]
    for n, concept in enumerate(toned):
        Image.new("RGB", (4, 4), "red" if n < 2 else f"#0000{n:02x}").save(tmp_path / "noto" / f"{concept.slug}.png")
    rows = list(change_pairs(World(concepts, tmp_path), toned, "noto", random.Random(0)))
    assert {row.query.images[0].stem for row in rows} == {c.slug for c in toned[2:]}
