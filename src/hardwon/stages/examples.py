"""Example queries for the report: what each round found, where the rounds differ."""

from collections.abc import Sequence

import numpy as np

from hardwon.evaluation import Benchmark, Task
from hardwon.items import Item
from hardwon.search import retrieve
from hardwon.serve import report_content as page
from hardwon.stages.base import Workspace
from hardwon.stages.learn import load_encoder

HITS, PER_TASK = 5, 3


def found_examples(
    workspace: Workspace, benchmark: Benchmark, tasks: Sequence[str], models: Sequence[tuple[str, str]]
) -> tuple[page.Found, ...]:
    """Queries of the named tasks with the best hits of every model.

    Chosen among the queries on which the models disagree: some that the last model gets right and the first wrong, and some the
    other way round, so that the choice flatters nobody.

    Args:
        workspace: where models lie.
        benchmark: holds the tasks.
        tasks: names of data sets.
        models: (label, model).
    """
    chosen = [task for task in benchmark.tasks if task.name in tasks]
    found: dict[str, dict[str, np.ndarray]] = {}
    for label, path in models:
        embedder = load_encoder(workspace, path)
        items = list({item.key: item for task in chosen for item in (*task.queries, *task.corpus)}.values())
        vectors = dict(zip((i.key for i in items), embedder.encode(items, progress=f"examples, {label}"), strict=True))
        found[label] = {task.name: _search(task, vectors) for task in chosen}
    return tuple(
        example for task in chosen for example in _of_task(task, {label: hits[task.name] for label, hits in found.items()})
    )


def _search(task: Task, vectors: dict[str, np.ndarray]) -> np.ndarray:
    """Hits [q k 2]: position in the corpus and score."""
    queries = np.stack([vectors[item.key] for item in task.queries])
    corpus = np.stack([vectors[item.key] for item in task.corpus])
    exclude = None
    if task.candidates is not None:
        everything = set(range(len(task.corpus)))
        exclude = [everything - set(offered) for offered in task.candidates]
    hits = retrieve(queries, corpus, HITS, exclude=exclude)
    return np.stack([hits.ids.astype(np.float64), hits.scores.astype(np.float64)], axis=-1)


def _of_task(task: Task, found: dict[str, np.ndarray]) -> list[page.Found]:
    labels = list(found)
    golds = [_gold(task, q) for q in range(len(task.queries))]
    right = {label: [int(hits[q, 0, 0]) in golds[q] for q in range(len(golds))] for label, hits in found.items()}
    first, last = right[labels[0]], right[labels[-1]]
    gained = [q for q in range(len(first)) if last[q] and not first[q]]
    lost = [q for q in range(len(first)) if first[q] and not last[q]]
    both_wrong = [q for q in range(len(first)) if not first[q] and not last[q]]
    picked = (gained[: PER_TASK - 1] + lost[:1] + both_wrong)[:PER_TASK]
    return [_example(task, q, found) for q in picked]


def _example(task: Task, q: int, found: dict[str, np.ndarray]) -> page.Found:
    rounds = []
    golds = _gold(task, q)
    for label, hits in found.items():
        row = [(int(place), float(score)) for place, score in hits[q] if place >= 0]
        rounds.append(page.Round(label, tuple(page.Hit(task.corpus[n], score, n in golds) for n, score in row)))
    gold: tuple[Item, ...] = tuple(task.corpus[n] for n in task.gold[q])
    return page.Found(task.queries[q], gold, tuple(rounds), task.name)


def _gold(task: Task, q: int) -> set[int]:
    """Corpus positions that count as right, copies of the gold among them."""
    contents = {task.corpus[n].content for n in task.gold[q]}
    return {n for n, item in enumerate(task.corpus) if item.content in contents}
