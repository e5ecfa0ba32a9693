"""Training pairs from the emoji universe: every kind of thing that MMEB asks for, as ordinary rows of `pairs.jsonl`.

Only concepts of the split "train" (or "val") are used. Styles and wordings vary from row to row, so that a concept is
seen drawn and described in several ways.
"""

import filecmp
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from hardwon.data.emoji.catalogue import TRAINED_LANGUAGES, TRAINED_STYLES, Concept, without_gender
from hardwon.items import Candidate, Example, Item

TEXT_TO_IMAGE = "Find a picture of this."
IMAGE_TO_TEXT = "What is it called?"
IMAGE_TO_IMAGE = "Find the same thing drawn by another artist."
COMPOSED = "Find the picture after this change."
CATEGORY = "Which category is it?"
TONE = "Which skin tone?"
POSITION = "What is at this place?"
GROUNDING = "Cut out the named part."
TEXT_TO_TEXT = "Which name fits these words?"
TRANSLATION = "What is it called in English?"
PLACES = ("top left", "top right", "bottom left", "bottom right")


@dataclass(frozen=True)
class World:
    """What pairs and tasks are made from.

    Attributes:
        concepts: by slug.
        pictures: folder with `<style>/<slug>.png`.
    """

    concepts: Mapping[str, Concept]
    pictures: Path

    def picture(self, concept: Concept, style: str) -> Path:
        """The concept as drawn in a style."""
        return self.pictures / style / f"{concept.slug}.png"

    def alike(self, one: Concept, other: Concept, style: str) -> bool:
        """Whether an artist drew both with the very same picture: no question can tell them apart then."""
        return filecmp.cmp(self.picture(one, style), self.picture(other, style), shallow=False)

    def of(self, *splits: str, toned: bool = False) -> list[Concept]:
        """Concepts of the given splits, with or without a skin tone, in a fixed order."""
        return [c for c in self.concepts.values() if c.split in splits and bool(c.tone) == toned]

    def with_some(self, split: str, limit: int, including: Collection[str] = ()) -> "World":
        """The world with about `limit` concepts of a split (whole families, drawn at random) and all of the others.

        The families of the concepts named in `including` come first.
        """
        families: dict[str, list[Concept]] = {}
        for concept in self.of(split):
            families.setdefault(concept.family, []).append(concept)
        names = sorted(families)
        random.Random(f"some:{split}").shuffle(names)
        names.sort(key=lambda name: not any(concept.slug in including for concept in families[name]))
        kept, count = set(), 0
        for name in names:
            if count < limit:
                kept.add(name)
                count += len(families[name])
        rest = {slug: c for slug, c in self.concepts.items() if c.split != split or c.family in kept}
        return World(rest, self.pictures)


def describe(concept: Concept, rng: random.Random) -> str:
    """The name, or keywords, or both: people search in all these ways."""
    words = rng.sample(concept.keywords, min(len(concept.keywords), rng.choice((1, 2, 3))))
    form = rng.random()
    if not words or form < 0.4:
        return concept.name
    return ", ".join(words) if form < 0.7 and len(words) > 1 else ", ".join([concept.name, *words])


def gold(query: Item, positive: Item, source: str) -> Example:
    """One pair as an example."""
    return Example(query, (Candidate(positive, origin="gold"),), source)


def plain_pairs(world: World, concept: Concept, style: str, other: str, rng: random.Random) -> Iterator[Example]:
    """Text to image, image to text, image to image, category and keywords to name, for one concept."""
    here, there = Item(images=(world.picture(concept, style),)), Item(images=(world.picture(concept, other),))
    name, asked = Item(text=concept.name), describe(concept, rng)
    yield gold(Item(text=asked, instruction=TEXT_TO_IMAGE), here, "text_to_image")
    yield gold(Item(images=here.images, instruction=IMAGE_TO_TEXT), name, "image_to_text")
    yield gold(Item(images=here.images, instruction=IMAGE_TO_IMAGE), there, "image_to_image")
    yield gold(Item(images=here.images, instruction=CATEGORY), Item(text=concept.category), "category")
    if concept.keywords:
        words = rng.sample(concept.keywords, min(len(concept.keywords), 3))
        yield gold(Item(text=", ".join(words), instruction=TEXT_TO_TEXT), name, "text_to_text")


def language_pairs(
    world: World, concept: Concept, style: str, languages: Collection[str], rng: random.Random
) -> Iterator[Example]:
    """A name in one of the languages to its picture and to its English name; nothing if there is none."""
    names = [name for language, name in concept.names if language in languages]
    if names:
        there = Item(images=(world.picture(concept, style),))
        yield gold(Item(text=rng.choice(names), instruction=TEXT_TO_IMAGE), there, "languages")
        yield gold(Item(text=rng.choice(names), instruction=TRANSLATION), Item(text=concept.name), "translation")


def change_pairs(world: World, variants: Sequence[Concept], style: str, rng: random.Random) -> Iterator[Example]:
    """Skin tone asked for and skin tone changed, for the variants of one concept."""
    for concept in variants:
        if any(v is not concept and world.alike(v, concept, style) for v in variants):
            continue  # drawn without skin tones
        here = Item(images=(world.picture(concept, style),), instruction=TONE)
        yield gold(here, Item(text=f"{concept.tone} skin tone"), "skin_tone")
        others = [v for v in variants if v.slug != concept.slug]
        if not others:
            continue
        target = rng.choice(others)
        query = Item(f"with {target.tone} skin tone", (world.picture(concept, style),), COMPOSED)
        yield gold(query, Item(images=(world.picture(target, style),)), "composed")


def gender_pairs(world: World, family: Sequence[Concept], style: str) -> Iterator[Example]:
    """Man, woman or person doing the same thing: the change is said in words."""
    by_kind = {kind: c for c in family for kind in ("man", "woman") if c.name.split(":")[0].split()[:1] == [kind]}
    for kind, target in by_kind.items():
        for concept in family:
            same_kind = concept.slug != target.slug and without_gender(concept.name) == without_gender(target.name)
            if same_kind and not world.alike(concept, target, style):
                query = Item(f"as a {kind}", (world.picture(concept, style),), COMPOSED)
                yield gold(query, Item(images=(world.picture(target, style),)), "composed")


def collage_pairs(world: World, collage: Path, tiles: Sequence[Concept], style: str, rng: random.Random) -> Iterator[Example]:
    """One question about a place and one about a name, for a collage of four pictures."""
    place = rng.randrange(4)
    asked = Item(PLACES[place], (collage,), POSITION)
    yield gold(asked, Item(text=tiles[place].name), "position")
    part = rng.randrange(4)
    crop = Item(images=(world.picture(tiles[part], style),))
    yield gold(Item(tiles[part].name, (collage,), GROUNDING), crop, "grounding")


def training_pairs(world: World, collages: Sequence[tuple[Path, tuple[Concept, ...], str]], splits: Sequence[str], seed: int):
    """Every training pair of the given splits, shuffled. See the module for what they are."""
    rng = random.Random(f"pairs:{seed}")
    rows: list[Example] = []
    concepts = world.of(*splits)
    for concept in concepts:
        for style, other in zip(TRAINED_STYLES, reversed(TRAINED_STYLES), strict=True):
            rows += plain_pairs(world, concept, style, other, rng)
    variants: dict[str, list[Concept]] = {}
    for concept in world.of(*splits, toned=True):
        variants.setdefault(concept.base, []).append(concept)
    families: dict[str, list[Concept]] = {}
    for concept in concepts:
        families.setdefault(concept.family, []).append(concept)
    for style in TRAINED_STYLES:
        for group in variants.values():
            rows += change_pairs(world, group, style, rng)
        for group in families.values():
            rows += gender_pairs(world, group, style)
    for path, tiles, style in collages:
        rows += collage_pairs(world, path, tiles, style, rng)
    abroad = random.Random(f"languages:{seed}")  # of its own: the other pairs are the same with and without
    for concept, style in product(concepts, TRAINED_STYLES):
        rows += language_pairs(world, concept, style, TRAINED_LANGUAGES, abroad)
    rng.shuffle(rows)
    return rows
