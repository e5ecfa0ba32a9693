"""Tasks made ready to be asked: the keys of their items, the order in which they go, and errors that name their rows."""

from collections.abc import Sequence
from dataclasses import dataclass

from hardwon.errors import BadItems, BadMedia, DataError, HardwonError, ModelError, OnError, RecipeError, unknown
from hardwon.evaluation.task import Benchmark, Task
from hardwon.items import Item


@dataclass(frozen=True)
class Asked:
    """A task with the keys of its items, computed once.

    Attributes:
        task: the task.
        queries: keys of its queries.
        corpus: keys of its corpus.
        items: the distinct items by key, in an order that depends on them alone.
    """

    task: Task
    queries: list[str]
    corpus: list[str]
    items: dict[str, Item]


def chosen(benchmark: Benchmark, names: Sequence[str] | None) -> list[Task]:
    """The tasks of these names, all when None. Raises RecipeError for one that the benchmark does not have."""
    valid = [task.name for task in benchmark.tasks]
    if names is not None and not names:
        raise RecipeError(f"tasks is empty: name some of {', '.join(valid)}, or leave it out for all of them")
    for name in names or ():
        if name not in valid:
            raise RecipeError(unknown(f"task of {benchmark.name}", name, valid))
    return [task for task in benchmark.tasks if names is None or task.name in names]


def in_order(tasks: Sequence[Task], on_error: OnError, failed: dict[str, str]) -> list[Asked]:
    """Tasks in the order in which they are asked: the fewest items first, so that there is something to see soon."""
    made = []
    for task in tasks:
        try:
            queries = [_key(item, f"query {n}") for n, item in enumerate(task.queries)]
            corpus = [_key(item, f"corpus entry {n}") for n, item in enumerate(task.corpus)]
        except BadMedia as error:
            if on_error == "raise":
                raise BadMedia(f"task {task.name}, {error}") from error
            failed[task.name] = f"task {task.name}, {error}"
            continue
        items = dict(zip([*queries, *corpus], [*task.queries, *task.corpus], strict=True))
        made.append(Asked(task, queries, corpus, {key: items[key] for key in sorted(items)}))
    return sorted(made, key=lambda asked: (len(asked.items), asked.task.name))


def _key(item: Item, where: str) -> str:
    try:
        return item.key
    except BadMedia as error:
        raise BadMedia(f"{where}: {error}") from error


def placed(task: Task, error: HardwonError) -> HardwonError:
    """The error with the task's name and, where it is about items, the rows that hold them."""
    if not isinstance(error, BadItems):
        made = DataError if isinstance(error, DataError) else ModelError
        return error if str(error).startswith(f"task {task.name}") else made(f"task {task.name}: {error}")
    bad = {row.item.key for row in error.items}
    rows: dict[str, str] = {}
    for what, items in (("query", task.queries), ("corpus entry", task.corpus)):
        for number, item in enumerate(items):
            if item.key in bad:
                rows.setdefault(item.key, f"task {task.name}, {what} {number}")
    return BadItems([row._replace(where=rows[row.item.key]) for row in error.items], f"task {task.name}")
