"""Collages of four pictures, composed by us: what visual questions and grounding are asked about."""

import random
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from hardwon.data.emoji.catalogue import PICTURE_SIZE, Concept
from hardwon.data.emoji.pairs import World

Collage = tuple[Path, tuple[Concept, ...], str]


def compose(pictures: Sequence[Path], target: Path) -> None:
    """Four pictures in two rows of two on white, each at its own size, so that a crop is the picture itself."""
    sheet = Image.new("RGB", (2 * PICTURE_SIZE, 2 * PICTURE_SIZE), "white")
    for place, picture in enumerate(pictures):
        with Image.open(picture) as opened:
            tile = opened.convert("RGBA")
        sheet.paste(tile, ((place % 2) * PICTURE_SIZE, (place // 2) * PICTURE_SIZE), tile)
    sheet.save(target)


def make_collages(world: World, concepts: Sequence[Concept], styles: Sequence[str], count: int, name: str) -> list[Collage]:
    """`count` collages per style from the given concepts; every concept appears about equally often."""
    folder = world.pictures / "collage"
    folder.mkdir(parents=True, exist_ok=True)
    made: list[Collage] = []
    for style in styles:
        rng = random.Random(f"collage:{name}:{style}")
        deck: list[Concept] = []
        for number in range(count):
            if len(deck) < 4:
                deck = rng.sample(list(concepts), len(concepts))
            tiles, deck = tuple(deck[:4]), deck[4:]
            path = folder / f"{name}-{style}-{number:04d}.png"
            compose([world.picture(c, style) for c in tiles], path)
            made.append((path, tiles, style))
    return made
