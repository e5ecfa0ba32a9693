"""A benchmark made of held-out pairs: each asks for its gold among the golds of the others."""

import re
from collections.abc import Sequence

from hardwon.errors import DataError, RecipeError, unknown
from hardwon.evaluation.task import Benchmark, Positions, Task
from hardwon.items import Example
from hardwon.randomness import generator


def benchmark_of(
    examples: Sequence[Example], name: str, *, sources: Sequence[str] = (), most: int | None = None, seed: int = 0
) -> Benchmark:
    """One task for each source; what an example's query shows itself, and what is known to be related to it, is not offered.

    Args:
        examples: held out from training, and from whatever else is to be measured.
        name: of the benchmark.
        sources: those that are asked; all if empty.
        most: queries per source at most, drawn at random; all if None.
        seed: of the draw.

    Raises:
        DataError: no examples.
        RecipeError: a source without examples.
    """
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.source, []).append(example)
    if not groups:
        raise DataError("there are no held-out pairs to make a benchmark of")
    for source in sources:
        if source not in groups:
            raise RecipeError(unknown("source", source, sorted(groups)))
    return Benchmark(name, tuple(_task(s, groups[s], most, seed) for s in sorted(groups) if not sources or s in sources))


def _task(source: str, group: Sequence[Example], most: int | None, seed: int) -> Task:
    corpus = {gold.key: gold for example in group for gold in example.gold}
    places: dict[str, list[int]] = {}
    for place, item in enumerate(corpus.values()):
        places.setdefault(item.content, []).append(place)
    asked = generator(seed, "held out", source).sample(group, min(len(group), most or len(group)))
    gold: list[Positions] = []
    offered: list[Positions] = []
    for example in asked:
        own = {n for item in example.gold for n in places[item.content]}
        shown = {example.query.content} | ({example.query.wordless.content} if example.query.wordless else set())
        barred = {n for content in shown | example.related for n in places.get(content, ())} - own
        gold.append(tuple(sorted(own)))
        offered.append(tuple(n for n in range(len(corpus)) if n not in barred))
    whole = all(len(positions) == len(corpus) for positions in offered)
    queries = tuple(example.query for example in asked)
    label = re.sub(r"[^\w.-]|^[.-]", "_", source) or "pairs"
    return Task(label, "retrieval", "ind", queries, tuple(corpus.values()), tuple(gold), None if whole else tuple(offered))
