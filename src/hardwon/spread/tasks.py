"""What workers do with the rows of a shard, as it stands in the `task.json` of a job.

Only the kinds below are known: a file names no code. Models are loaded as everywhere, from safetensors and without their code.
"""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hardwon.errors import ArtifactError, RecipeError, unknown
from hardwon.items import Item, Picture, item_from_json
from hardwon.shards import POLL_S, TASK, Job, Output, Work, work
from hardwon.spread.engines import PATIENCE_S

ROOT = Path("/")  # pictures are named by their whole path: all workers see the same file system


def row_of(item: Item) -> dict[str, Any]:
    """An item as a row. Raises DataError for a picture that is held as bytes."""
    here = dataclasses.replace(item, images=tuple(map(_whole, item.images)), video=tuple(map(_whole, item.video)))
    return here.to_json(ROOT)


def _whole(picture: Picture) -> Picture:
    return picture if isinstance(picture, bytes) else picture.resolve()


def item_of(row: Any) -> Item:
    """What `row_of` made a row of."""
    return item_from_json(row, ROOT)


def embed(task: Mapping[str, Any]) -> Work:
    """Vectors of items."""
    from hardwon.models import Embedder

    # Without a cache of what its tower sees: a feature's last bits depend on the pictures beside it, and those on who did what.
    model = Embedder.load(task["model"])
    _same(model.fingerprint, task)
    return lambda rows: Output({"vectors": model.encode([item_of(row) for row in rows])})


def judge(task: Mapping[str, Any]) -> Work:
    """Judgements of pairs."""
    from hardwon.models import Embedder, Judge, Judgements, Question, judgements, load_reranker
    from hardwon.models.scorer import judgements_of_readable

    if task["chat"] is not None:
        told = dict(task["chat"])
        made: Any = Judge.load(task["model"], question=Question(**told.pop("question")), **told)
    else:
        made = load_reranker(task["model"], precision=task["precision"])
    if task["blend"] is not None:
        from hardwon.search import Blend

        told = dict(task["blend"])
        made = Blend(Embedder.load(told.pop("model")), made, **told)
    _same(made.fingerprint, task)
    ask: Callable[..., Judgements] = judgements_of_readable if task["skip"] else judgements

    def do(rows: list[Any]) -> Output:
        said = ask(made, [(item_of(query), item_of(candidate)) for query, candidate in rows])
        return Output({"yes": said.yes, "no": said.no}, {"problems": json.dumps({str(n): w for n, w in said.problems.items()})})

    return do


def nearest(task: Mapping[str, Any]) -> Work:
    """The nearest vectors of a pool for each query; rows are (number of the pool, number of the query, excluded ids)."""
    from safetensors.torch import load_file

    from hardwon.search.retrieve import nearest_below

    held = {name: rows.numpy() for name, rows in load_file(task["vectors"]).items()}  # mapped: workers share the pages

    def do(rows: list[Any]) -> Output:
        (pool,) = {pool for pool, _, _ in rows}
        asked = held["queries"][[number for _, number, _ in rows]]
        barred = [ids for _, _, ids in rows]
        found = nearest_below(asked, held[f"pool-{pool}"], task["depth"], task["ceiling"], exclude=barred)
        return Output({"ids": found.ids, "scores": found.scores})

    return do


TASKS: Mapping[str, Callable[[Mapping[str, Any]], Work]] = {"embed": embed, "judge": judge, "nearest": nearest}


def help_with(folder: Path, *, parent: int = 0, wait_s: float = 0.0) -> int:
    """Work at the shards of a job, or of all jobs below a folder, until there are none; how many were done here.

    Args:
        folder: of a job, or of several.
        parent: end when this process is no longer our parent; 0 goes on.
        wait_s: how long to wait for a job to come, while there is none.

    Raises:
        ArtifactError: a job that cannot be read.
        RecipeError: one of a kind that is not known.
    """
    _limit_threads(int(os.environ.get("HARDWON_THREADS", "0")))
    helper, count, end = _Helper(), 0, time.monotonic() + wait_s
    while not parent or os.getppid() == parent:
        jobs = [folder] if (folder / TASK).exists() else [file.parent for file in sorted(folder.glob(f"*/{TASK}"))]
        done = sum(helper.work(job, lambda: not parent or os.getppid() == parent) for job in jobs if not Job(job).idle())
        count += done
        if done:
            end = time.monotonic() + wait_s
        elif time.monotonic() >= end:
            break
        else:
            time.sleep(POLL_S)
    return count


class _Helper:
    """Works at jobs; the model of the last one stays loaded."""

    def __init__(self) -> None:
        self.task: dict[str, Any] = {}
        self.do: Work | None = None

    def work(self, folder: Path, go_on: Callable[[], bool]) -> int:
        """Work at one job."""
        try:
            job, task = Job.open(folder)
            if task.get("kind") not in TASKS:
                raise RecipeError(unknown("kind of work", task.get("kind"), TASKS))
            if self.do is None or self.task != task:
                self.do = None  # one model at a time
                self.task, self.do = task, TASKS[task["kind"]](task)
        except (ArtifactError, OSError):
            if Job(folder).idle():
                return 0  # others have just ended it, and what it worked with is gone
            raise
        return work(job, self.do, go_on=go_on)


def by_ray(folder: str, threads: int) -> int:
    """What a task of Ray does."""
    os.environ["HARDWON_THREADS"] = str(threads)
    return help_with(Path(folder), wait_s=PATIENCE_S)


def _limit_threads(count: int) -> None:
    """So many threads in this process; 0 leaves it."""
    if count:
        import faiss
        import torch

        torch.set_num_threads(count)
        faiss.omp_set_num_threads(count)


def _same(fingerprint: str, task: Mapping[str, Any]) -> None:
    if fingerprint != task["fingerprint"]:
        raise ArtifactError(
            f"{task['model']} is {fingerprint[:12]} here, and {task['fingerprint'][:12]} where the work was begun: it has "
            "changed since, or this machine has other versions"
        )
