"""Groups of examples that are easily taken for each other: batches made of them hold hard negatives at no extra encoding.

After B3 (arXiv:2505.11293), which cuts the graph of a teacher's nearest neighbours into communities, and fills batches with
them. Here groups grow one by one from the nearest neighbours of the model that is about to be trained.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hardwon.artifacts import fingerprint, write_json
from hardwon.distributed import World
from hardwon.errors import ArtifactError, RecipeError, unknown
from hardwon.items import Example
from hardwon.models import CachedEncoder, Embedder, Encoder
from hardwon.randomness import generator
from hardwon.search import retrieve
from hardwon.training import checkpoint

FILE = "groups.json"
VECTORS = "grouping"  # folder of what is embedded, until the groups are made


@dataclass(frozen=True)
class Groups:
    """How examples are grouped.

    Attributes:
        size: examples of a group. A batch of 64 with groups of 8 holds 7 near-misses for each query and 56 others.
        skip: nearest gold of other examples that is passed over: most of what is right after all stands first.
        depth: nearest ones behind those that may join a group.
        sources: data sets whose examples are grouped, the others come as they would without; all if empty. Near-misses help
            where queries are told apart by details, and cost a little elsewhere (docs/studies.md).
    """

    size: int = 8
    skip: int = 1
    depth: int = 32
    sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, least in (("size", 2), ("skip", 0), ("depth", 1)):
            if getattr(self, name) < least:
                raise RecipeError(f"groups.{name} must be at least {least}, got {getattr(self, name)}")


def group(examples: Sequence[Example], encoder: Encoder, how: Groups, *, seed: int, progress: str = "") -> list[int]:
    """The number of each example's group; examples of different sources are never in one.

    What is known to belong to a query (other copies of its gold, `Example.related`) does not make two examples neighbours. A
    group is smaller where all neighbours have found another already.

    Args:
        examples: the training set; the first gold of each stands for it.
        encoder: whose near-misses they should be.
        how: see `Groups`.
        seed: of the order in which groups begin.
        progress: name of the encoding in a bar.

    Raises:
        RecipeError: no example is of a source that should be grouped.
    """
    sources: dict[str, list[int]] = {}
    for n, example in enumerate(examples):
        sources.setdefault(example.source, []).append(n)
    for name in how.sources:
        if name not in sources:
            raise RecipeError(unknown("source of groups", name, list(sources)))
    asked = [n for n, example in enumerate(examples) if not how.sources or example.source in how.sources]
    queries = encoder.encode([examples[n].query for n in asked], progress=progress)
    golds = encoder.encode([examples[n].gold[0] for n in asked], progress=progress)
    place_of = {n: place for place, n in enumerate(asked)}
    numbers, count = [0] * len(examples), 0
    for source, rows in sorted(sources.items()):
        if how.sources and source not in how.sources:  # each is a group of its own
            for n in rows:
                numbers[n], count = count, count + 1
            continue
        at = [place_of[n] for n in rows]
        near = _neighbours([examples[n] for n in rows], queries[at], golds[at], how)
        order = list(range(len(rows)))
        generator(seed, "groups", source).shuffle(order)
        for members in _grown(near, order, how.size):
            for place in members:
                numbers[rows[place]] = count
            count += 1
    return numbers


def _neighbours(examples: Sequence[Example], queries: np.ndarray, golds: np.ndarray, how: Groups) -> list[dict[int, float]]:
    """For each example the others that it is like, and how much: sums of both directions."""
    holding: dict[str, list[int]] = {}
    for n, example in enumerate(examples):
        holding.setdefault(example.gold[0].content, []).append(n)
    known = [{g.content for g in e.gold} | e.related | {e.query.content} for e in examples]
    barred = [[n for content in contents for n in holding.get(content, ())] for contents in known]
    found = retrieve(queries, golds, how.skip + how.depth, exclude=barred)
    near: list[dict[int, float]] = [{} for _ in examples]
    for one, (ids, scores) in enumerate(zip(found.ids.tolist(), found.scores.tolist(), strict=True)):
        for other, score in list(zip(ids, scores, strict=True))[how.skip :]:
            if other >= 0 and other != one:
                for a, b in ((one, other), (other, one)):
                    near[a][b] = near[a].get(b, 0.0) + score
    return near


def _grown(near: Sequence[dict[int, float]], order: Sequence[int], size: int) -> list[list[int]]:
    """Groups, each begun by the first that is left and joined by whoever is nearest to all its members together."""
    free = set(order)
    made: list[list[int]] = []
    for first in order:
        if first not in free:
            continue
        members: list[int] = [first]
        pull: dict[int, float] = {}
        free.discard(first)
        while len(members) < size:
            for other, score in near[members[-1]].items():
                pull[other] = pull.get(other, 0.0) + score
            left = [(score, -other) for other, score in pull.items() if other in free]
            if not left:
                break
            members.append(-max(left)[1])
            free.discard(members[-1])
        made.append(members)
    return made


def agreed(examples: Sequence[Example], embedder: Embedder, how: Groups, *, seed: int, out: Path | None) -> list[int]:
    """`group` by the first process for all, kept in `out`: a run that goes on finds what it began with.

    A run that goes on from a checkpoint believes what was kept for its examples, whatever the model is like by then: it may
    have been aligned before it was grouped, which is not done again.

    Args:
        examples: see `group`.
        embedder: the model before its first step.
        how: see `group`.
        seed: see `group`.
        out: folder of the run; nothing is kept if None.

    Raises:
        ArtifactError: there is a checkpoint in `out`, but no groups of these examples that it began with.
    """
    world = World.current()
    numbers = torch.zeros(len(examples), dtype=torch.long, device=embedder.body.model.device)
    with world.all_or_none("grouping the examples"):
        if world.first:
            numbers.copy_(torch.tensor(_kept(examples, embedder, how, seed, out)))
    world.same([numbers])
    return numbers.tolist()


def _read(path: Path) -> dict[str, Any]:
    """What was kept; {} if there is nothing, or nothing that can be read."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return kept if all(isinstance(number, int) for number in kept["groups"]) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _kept(examples: Sequence[Example], encoder: Encoder, how: Groups, seed: int, out: Path | None) -> list[int]:
    if out is None:
        return group(examples, encoder, how, seed=seed, progress="embedding for groups")
    keys = [[e.query.key, [g.key for g in e.gold], e.source, sorted(e.related)] for e in examples]
    made_from = fingerprint([list(astuple(how)), seed, keys])
    kept = _read(out / FILE)
    under_way = checkpoint.begun(out / "checkpoint")
    if kept.get("made from") == made_from and (under_way or kept.get("encoder") == encoder.fingerprint):
        return kept["groups"]
    if under_way:
        why = "are of other examples, settings or seed" if kept else "are missing or damaged"
        raise ArtifactError(
            f"{out} has a checkpoint, but the groups that its run began with {why} ({out / FILE}): go on with what it began "
            f"with, or delete {out / 'checkpoint'} to begin anew"
        )
    # Of a large training set this takes hours: a run that was stopped meanwhile goes on. Afterwards nobody needs the vectors.
    encoder = CachedEncoder(encoder, out / VECTORS)
    numbers = group(examples, encoder, how, seed=seed, progress="embedding for groups")
    shutil.rmtree(out / VECTORS, ignore_errors=True)
    write_json(out / FILE, {"made from": made_from, "encoder": encoder.fingerprint, "groups": numbers})
    return numbers
