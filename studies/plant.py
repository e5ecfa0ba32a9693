"""Damage done to training pairs on purpose: copies that no hash finds, and wrong labels."""

from collections.abc import Sequence
from dataclasses import replace

from hardwon.items import Candidate, Example, Item
from hardwon.randomness import generator
from studies.features import Features, named
from studies.plan import Plant

AFTER = "-copy"  # of a picture's hash: as if one byte of the file were another


def planted(examples: Sequence[Example], features: Features, plant: Plant, seed: int) -> tuple[Example, ...]:
    """The examples with damage.

    A copy is one more pair with the same query whose gold shows the same in another file, or says the same with one more blank:
    for the first pair's query it is a false negative, and neither `Item.content` nor anything else in the data says so.

    Args:
        examples: training pairs.
        features: learn of the copies: they look like what they are copies of.
        plant: how much damage.
        seed: of the draws.
    """
    made = list(examples)
    if plant.wrong:
        made = _mislabelled(made, plant.wrong, seed)
    if plant.copies:
        rng = generator(seed, "copies")
        chosen = sorted(rng.sample(range(len(made)), round(plant.copies * len(made))))
        made += [_gold(made[n], _copy(made[n].gold[0], features)) for n in chosen]
    return tuple(made)


def _mislabelled(examples: list[Example], share: float, seed: int) -> list[Example]:
    """Some pairs of each source pass their gold on to the next one of them."""
    by_source: dict[str, list[int]] = {}
    for n, example in enumerate(examples):
        by_source.setdefault(example.source, []).append(n)
    made = list(examples)
    for source, rows in sorted(by_source.items()):
        chosen = generator(seed, "wrong", source).sample(rows, round(share * len(rows)))
        for n, other in zip(chosen, [*chosen[1:], *chosen[:1]], strict=True):
            made[n] = _gold(examples[n], examples[other].gold[0])
    return made


def _gold(example: Example, item: Item) -> Example:
    return replace(example, candidates=(Candidate(item, origin="gold"),))


def _copy(item: Item, features: Features) -> Item:
    if not item.images:
        copy = replace(item, text=item.text + " ")
        features.same_text(copy.text, item.text)
        return copy
    features.same_picture(named(item) + AFTER, named(item))
    return replace(item, images=((named(item) + AFTER).encode(),))


def original(item: Item) -> Item:
    """What a planted copy is a copy of; anything else is itself."""
    return Item(item.text.strip(), (named(item).removesuffix(AFTER).encode(),) if item.images else ())
