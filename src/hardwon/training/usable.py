"""Examples that a model can learn from: what cannot be used is found before the first step, never in the middle."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hardwon.distributed import World
from hardwon.errors import BadItem, BadMedia, DataError
from hardwon.items import Example, Item
from hardwon.models import ListwiseReranker, Reranker
from hardwon.models.left_out import listed, refuse_too_many, show, without
from hardwon.models.preflight import problems
from hardwon.training.loop import Settings

BAR_FROM = 500  # pictures; fewer are looked at before a bar would be seen
RERANKERS = (Reranker, ListwiseReranker)

Pairs = dict[tuple[Item, Item], str]


@dataclass(frozen=True)
class Usable:
    """What is left of a training set.

    Attributes:
        examples: without those whose query or every gold cannot be used; the others without candidates that cannot.
        left_out: the bad items, each with the first place where it stood.
    """

    examples: tuple[Example, ...]
    left_out: tuple[BadItem, ...] = ()


def ready(model: Any, examples: Sequence[Example], settings: Settings, world: World) -> Usable:
    """Look at every item, make the features of a frozen tower, and try the model on an item of each kind.

    Pictures whose features are made are not decoded twice: a damaged one is met while they are made, and only then is
    everything decoded to find the others. What is left out is listed on the console.

    Args:
        model: an `Embedder` or `Reranker` as it is going to be trained.
        examples: the training set.
        settings: says what to do about what cannot be used.
        world: the processes; they share the work and come to the same result.

    Raises:
        BadItems: items that cannot be used, with `on_error="raise"`, or too many of them.
        DataError: fewer than two examples are left.
        ModelError: a model that fails on items that it ought to read.
    """
    found = usable(model, examples, settings, world, decode=model.body.vision is None)
    if not _prepared(model, found.examples, world):
        found = usable(model, examples, settings, world, decode=True)
        _prepared(model, found.examples, world)
    if found.left_out and world.first:
        show(found.left_out, len(examples) - len(found.examples), len(examples))
    _try(model, found.examples)
    return found


def usable(model: Any, examples: Sequence[Example], settings: Settings, world: World, *, decode: bool) -> Usable:
    """The examples without what cannot be used; arguments and errors as `ready`, `decode` as `preflight.problems`."""
    bad = _problems(model, list(dict.fromkeys(_items(examples))), world, decode)
    pairs = _bad_pairs(model, examples, bad) if isinstance(model, RERANKERS) else {}
    if not bad and not pairs:
        return Usable(tuple(examples))
    if not decode:  # so that all of them are listed
        return usable(model, examples, settings, world, decode=True)
    kept = [left for example in examples if (left := without(example, bad, pairs)) is not None]
    left_out = listed(examples, bad, pairs)
    refuse_too_many(left_out, len(examples) - len(kept), len(examples), settings, "training")
    if len(kept) < 2:
        raise DataError(f"training needs at least 2 examples, but only {len(kept)} of {len(examples)} can be used")
    return Usable(tuple(kept), tuple(left_out))


def _items(examples: Sequence[Example]) -> Iterator[Item]:
    for example in examples:
        yield example.query
        yield from (candidate.item for candidate in example.candidates)


def _rows(model: Any, examples: Sequence[Example]) -> list[tuple[Item, ...]]:
    """What the model reads together: a picture may look different beside others."""
    if isinstance(model, RERANKERS):
        return [(e.query, c.item) for e in examples for c in e.candidates]
    return [(item,) for item in _items(examples)]


def _problems(model: Any, items: Sequence[Item], world: World, decode: bool) -> dict[Item, str]:
    """The problems of all items; each process looks at its share."""
    many = decode and world.first and len({picture for item in items for picture in item.pictures}) >= BAR_FROM
    name = "looking for bad pictures" if many else ""
    found = problems(model.body, items[world.rank :: world.size], decode=decode, progress=name)
    if world.size == 1:
        return found
    flags = torch.tensor([float(item in found) for item in items], device=model.body.model.device)
    flagged = [item for item, flag in zip(items, world.sum(flags).tolist(), strict=True) if flag]
    mine = problems(model.body, flagged, decode=decode)  # few, and everybody has to know their reasons
    return {item: mine.get(item, "another process cannot use it") for item in flagged}


def _bad_pairs(model: Any, examples: Sequence[Example], bad: dict[Item, str]) -> Pairs:
    """Pairs that a reranker cannot read together although it can read either; text alone is cut to fit."""
    pairs = ((e.query, c.item) for e in examples for c in e.candidates if e.query.pictures or c.item.pictures)
    return {pair: why for pair in pairs if not (set(pair) & bad.keys()) and (why := model.refusal(*pair))}


def _prepared(model: Any, examples: Sequence[Example], world: World) -> bool:
    """Make features of frozen towers: the first process makes them, the others find them. False if a picture is damaged."""
    damaged = False
    for turn in (True, False):
        if world.first == turn:
            if not world.first and model.body.vision is not None:
                model.body.vision.store.look()
            try:
                model.body.prepare(_rows(model, examples), progress=world.first)
            except BadMedia:
                damaged = True  # no process may leave the others waiting
        world.wait()
    return not bool(world.sum(torch.tensor(float(damaged), device=model.body.model.device)))


@torch.no_grad()
def _try(model: Any, examples: Sequence[Example]) -> None:
    """One forward pass of an item of each kind: what is wrong with the model itself shows here."""
    rows: dict[Any, Any] = {}
    for example in examples:
        for candidate in example.candidates:
            pair = (example.query, candidate.item)
            if isinstance(model, RERANKERS):
                rows.setdefault((_kind(pair[0]), _kind(pair[1])), pair)
            else:
                rows.setdefault(_kind(pair[0]), pair[0])
                rows.setdefault(_kind(pair[1]), pair[1])
    with model.evaluating():
        for row in rows.values():
            model.forward([(row[0], row[1:]) if isinstance(model, ListwiseReranker) else row])


def _kind(item: Item) -> tuple[bool, int]:
    return bool(item.text or item.instruction), min(len(item.pictures), 2)
