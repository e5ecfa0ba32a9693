"""The small MMEB: tasks of all four meta-tasks on concepts that no training pair has seen.

In distribution: styles that were trained on, held-out concepts. Out of distribution: a style never trained on, concepts of
whole sub-categories that were held out, and, where names in other languages were asked for, languages never trained on.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hardwon.data.emoji import pairs as made_of
from hardwon.data.emoji.catalogue import (
    TONES,
    TRAINED_LANGUAGES,
    TRAINED_STYLES,
    UNSEEN_LANGUAGES,
    UNSEEN_STYLE,
    Concept,
)
from hardwon.data.emoji.collage import Collage
from hardwon.data.emoji.pairs import World
from hardwon.items import Example, Item

Group = tuple[tuple[tuple[Item, Item], ...], tuple[Item, ...]]  # (query, right answer) pairs, and the corpus they search


@dataclass(frozen=True)
class TaskRows:
    """A task before it is written.

    Attributes:
        name: of the data set.
        meta_task: "classification", "vqa", "retrieval" or "grounding".
        distribution: "ind" or "ood".
        groups: pairs of (query, answer) with the corpus that these queries search: pictures by one artist, say, so that
            the same concept by another artist is not counted as a miss.
    """

    name: str
    meta_task: str
    distribution: str
    groups: tuple[Group, ...]

    def rows(self) -> tuple[list[Item], list[dict[str, Any]]]:
        """The corpus without repetitions, and for each query its right answers and its candidates as positions in it."""
        everything = [item for pairs, corpus in self.groups for item in (*corpus, *(answer for _, answer in pairs))]
        position = {item: n for n, item in enumerate(dict.fromkeys(everything))}
        answers: dict[Item, set[int]] = {}
        searched: dict[Item, set[int]] = {}
        for pairs, corpus in self.groups:
            offered = {position[item] for item in corpus}
            for query, answer in pairs:
                answers.setdefault(query, set()).add(position[answer])
                # The picture that a query starts from is no candidate (as in CIRR).
                own = {position[start] for start in ([Item(images=query.images)] if query.images else []) if start in position}
                searched.setdefault(query, set()).update(offered - own, (position[answer],))
        rows = []
        for query, golds in answers.items():
            row: dict[str, Any] = {"query": query, "gold": sorted(golds)}
            if len(searched[query]) < len(position):
                row["candidates"] = sorted(searched[query])
            rows.append(row)
        return list(position), rows


def _sample(rng: random.Random, rows: Iterable[Example], limit: int) -> tuple[tuple[Item, Item], ...]:
    pool = [(row.query, row.gold[0]) for row in rows]
    return tuple(rng.sample(pool, min(limit, len(pool))))


def _pictures(world: World, concepts: Sequence[Concept], style: str) -> tuple[Item, ...]:
    return tuple(Item(images=(world.picture(c, style),)) for c in concepts)


def small_mmeb(world: World, collages: Callable[[str, str], Sequence[Collage]], split: str, limit: int) -> list[TaskRows]:
    """All tasks of a split ("test" or "val").

    Args:
        world: concepts and pictures.
        collages: (split, style) -> the collages of that split in that style.
        split: whose concepts are asked about.
        limit: queries per task at most.
    """
    tasks: list[TaskRows] = []
    for style in (*TRAINED_STYLES, UNSEEN_STYLE) if split == "test" else TRAINED_STYLES:
        tasks += _style_tasks(world, split, style, limit)
        tasks += _collage_tasks(world, collages(split, style), split, style, limit)
    tasks += _across(world, split, limit)
    tasks += [task for style in TRAINED_STYLES for task in _language_tasks(world, split, style, limit)]
    if split == "test":
        tasks += [t for style in TRAINED_STYLES for t in _far_tasks(world, style, limit)]
    return _merge(tasks, limit)


def _style_tasks(world: World, split: str, style: str, limit: int) -> list[TaskRows]:
    rng = random.Random(f"tasks:{split}:{style}")
    concepts, toned = world.of(split), world.of(split, toned=True)
    rows = [row for c in concepts for row in made_of.plain_pairs(world, c, style, style, rng)]
    variants: dict[str, list[Concept]] = {}
    for concept in toned:
        variants.setdefault(concept.base, []).append(concept)
    families: dict[str, list[Concept]] = {}
    for concept in concepts:
        families.setdefault(concept.family, []).append(concept)
    changes = [row for group in variants.values() for row in made_of.change_pairs(world, group, style, rng)]
    changes += [row for group in families.values() for row in made_of.gender_pairs(world, group, style)]
    names = tuple(Item(text=c.name) for c in concepts)
    labels = tuple(Item(text=category) for category in sorted({c.category for c in world.concepts.values()}))
    tones = tuple(Item(text=f"{tone} skin tone") for tone in TONES)
    where, kind = ("ood", f"_{style}") if style == UNSEEN_STYLE else ("ind", "")

    def task(source: str, meta: str, corpus: tuple[Item, ...]) -> TaskRows:
        asked = _sample(rng, (r for r in rows + changes if r.source == source), limit)
        return TaskRows(source + kind, meta, where, ((asked, corpus),))

    made = [
        task("category", "classification", labels),
        task("skin_tone", "classification", tones),
        task("text_to_image", "retrieval", _pictures(world, concepts, style)),
        task("image_to_text", "retrieval", names),
        task("composed", "retrieval", _pictures(world, [*concepts, *toned], style)),
    ]
    if style == TRAINED_STYLES[0]:
        made.append(task("text_to_text", "retrieval", names))
    return made


def _collage_tasks(world: World, collages: Sequence[Collage], split: str, style: str, limit: int) -> list[TaskRows]:
    rng = random.Random(f"collages:{split}:{style}")
    concepts = world.of(split)
    rows = [row for path, tiles, _ in collages for row in made_of.collage_pairs(world, path, tiles, style, rng)]
    where, kind = ("ood", f"_{style}") if style == UNSEEN_STYLE else ("ind", "")
    names = tuple(Item(text=c.name) for c in concepts)
    position = _sample(rng, (r for r in rows if r.source == "position"), limit)
    grounding = _sample(rng, (r for r in rows if r.source == "grounding"), limit)
    return [
        TaskRows("position" + kind, "vqa", where, ((position, names),)),
        TaskRows("grounding" + kind, "grounding", where, ((grounding, _pictures(world, concepts, style)),)),
    ]


def _across(world: World, split: str, limit: int) -> list[TaskRows]:
    """Image to image between artists; towards the unseen style it is out of distribution."""
    concepts, made = world.of(split), []
    ways = [(*TRAINED_STYLES, "ind"), (*reversed(TRAINED_STYLES), "ind"), (TRAINED_STYLES[0], UNSEEN_STYLE, "ood")]
    for one, other, where in ways if split == "test" else ways[:2]:
        rng = random.Random(f"across:{split}:{one}:{other}")
        rows = [r for c in concepts for r in made_of.plain_pairs(world, c, one, other, rng) if r.source == "image_to_image"]
        name = "image_to_image" + (f"_{other}" if where == "ood" else "")
        made.append(TaskRows(name, "retrieval", where, ((_sample(rng, rows, limit), _pictures(world, concepts, other)),)))
    return made


def _language_tasks(world: World, split: str, style: str, limit: int) -> list[TaskRows]:
    """Names in other languages to pictures and to English names; those never trained on are asked about in the test alone."""
    concepts, made = [c for c in world.of(split) if c.names], []
    kinds = [(TRAINED_LANGUAGES, "ind", ""), (UNSEEN_LANGUAGES, "ood", "_unseen")]
    for languages, where, kind in (kinds if split == "test" else kinds[:1]) if concepts else []:
        rng = random.Random(f"languages:{split}:{style}:{where}")
        rows = [row for c in concepts for row in made_of.language_pairs(world, c, style, languages, rng)]
        asked = {s: _sample(rng, (row for row in rows if row.source == s), limit) for s in ("languages", "translation")}
        names = tuple(Item(text=c.name) for c in concepts)
        made.append(
            TaskRows("languages" + kind, "retrieval", where, ((asked["languages"], _pictures(world, concepts, style)),))
        )
        if style == TRAINED_STYLES[0]:  # texts are the same in all styles
            made.append(TaskRows("translation" + kind, "retrieval", where, ((asked["translation"], names),)))
    return made


def _far_tasks(world: World, style: str, limit: int) -> list[TaskRows]:
    rng = random.Random(f"far:{style}")
    concepts = world.of("far")
    rows = [row for c in concepts for row in made_of.plain_pairs(world, c, style, style, rng)]
    found = {s: _sample(rng, (r for r in rows if r.source == s), limit) for s in ("text_to_image", "image_to_text")}
    return [
        TaskRows("text_to_image_far", "retrieval", "ood", ((found["text_to_image"], _pictures(world, concepts, style)),)),
        TaskRows(
            "image_to_text_far", "retrieval", "ood", ((found["image_to_text"], tuple(Item(text=c.name) for c in concepts)),)
        ),
    ]


def _merge(tasks: Sequence[TaskRows], limit: int) -> list[TaskRows]:
    """Tasks of one name (one per trained style) become one data set; each gives its share of at most `limit` queries.

    Out of distribution half as many: they are there to be looked at, not to be tuned on.
    """
    merged: dict[str, list[TaskRows]] = {}
    for task in tasks:
        merged.setdefault(task.name, []).append(task)
    made = []
    for name, group in sorted(merged.items()):
        share = -(-(limit if group[0].distribution == "ind" else limit // 2) // len(group))
        groups = tuple((pairs[:share], corpus) for task in group for pairs, corpus in task.groups)
        made.append(TaskRows(name, group[0].meta_task, group[0].distribution, groups))
    return made
