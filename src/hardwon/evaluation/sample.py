"""A smaller benchmark: some queries of every task, and what that costs in certainty."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from hardwon.errors import RecipeError
from hardwon.evaluation.asked import chosen
from hardwon.evaluation.report import Report
from hardwon.evaluation.task import Benchmark, Task

_Z = 1.96  # of a 95 % interval


def sampled(benchmark: Benchmark, queries: int, *, seed: int = 0, tasks: Sequence[str] | None = None) -> Benchmark:
    """The benchmark with at most this many queries, and only what those search.

    Every task gives the same number of queries, since a mean over data sets counts them all alike; what a small task cannot
    give is taken from the others. A query is drawn by the hash of its content, so neither the order of queries nor that of
    tasks plays a part. A task whose queries all search one corpus keeps that corpus.

    Args:
        benchmark: all of it.
        queries: how many are asked in all tasks together.
        seed: draws other queries.
        tasks: names of those that share the queries, all when None. The others stay whole: nobody is going to ask them.

    Raises:
        RecipeError: fewer queries than tasks; a task that the benchmark does not have.
    """
    sizes = {task.name: len(task.queries) for task in chosen(benchmark, tasks)}
    if queries < len(sizes):
        raise RecipeError(
            f"a budget of {queries} queries is too small: {benchmark.name} has {len(sizes)} data sets, each needs one"
        )
    quota = _quota(sizes, queries)
    asked, whole = sum(quota.values()), sum(sizes.values())
    if asked == whole:
        return benchmark
    parts = tuple(_part(task, quota.get(task.name, len(task.queries)), seed) for task in benchmark.tasks)
    return replace(benchmark, name=f"{benchmark.name} ({asked} of {whole} queries)", tasks=parts)


def cost_of_sample(report: Report, benchmark: Benchmark) -> str:
    """What asking a sample costs: how far the mean may lie from that of all queries; one sentence.

    Args:
        report: of the sampled benchmark.
        benchmark: all of it.
    """
    whole = {task.name: len(task.queries) for task in benchmark.tasks}
    spread = 0.0
    for result in report.results:
        asked, there = result.queries, whole[result.name]
        # At least what hits that are 0 or 1 can have, with two of each added: no hit among three proves nothing.
        share = (sum(result.hits) + 2) / (asked + 4)
        spread += share * (1 - share) / asked * (1 - asked / there)
    points = 100 * _Z * math.sqrt(spread) / len(report.results)
    asked = sum(result.queries for result in report.results)
    total = sum(whole[result.name] for result in report.results)
    return f"{asked:,} of {total:,} queries asked: the mean of all of them lies within ±{points:.1f} points of this one (95 %)"


def _quota(sizes: Mapping[str, int], budget: int) -> dict[str, int]:
    """The same number for each, as far as it has so many; what is left over goes by name."""
    given, left = {}, min(budget, sum(sizes.values()))
    for place, name in enumerate(sorted(sizes, key=lambda name: (sizes[name], name))):
        given[name] = min(sizes[name], left // (len(sizes) - place))
        left -= given[name]
    return given


def _part(task: Task, count: int, seed: int) -> Task:
    def draw(row: int) -> str:
        gold = sorted(task.corpus[n].key for n in task.gold[row])
        return hashlib.blake2b(json.dumps([seed, task.name, task.queries[row].key, gold]).encode()).hexdigest()

    if count == len(task.queries):
        return task
    rows = sorted(sorted(range(len(task.queries)), key=draw)[:count])
    queries, gold = tuple(task.queries[row] for row in rows), tuple(task.gold[row] for row in rows)
    grades = None if task.grades is None else tuple(task.grades[row] for row in rows)
    if task.candidates is None:
        return replace(task, queries=queries, gold=gold, grades=grades)
    searched = [task.candidates[row] for row in rows]
    kept = sorted({n for positions in searched for n in positions})
    place = {n: new for new, n in enumerate(kept)}
    return replace(
        task,
        queries=queries,
        corpus=tuple(task.corpus[n] for n in kept),
        gold=tuple(tuple(place[n] for n in row) for row in gold),
        grades=grades,
        candidates=tuple(tuple(place[n] for n in row) for row in searched),
    )
