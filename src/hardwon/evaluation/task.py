"""`Task` and `Benchmark`: what is asked of a model, as data."""

import functools
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from hardwon.data.mmeb.table import Kind as MetaTask
from hardwon.data.mmeb.table import Metric
from hardwon.errors import BadMedia, DataError, unknown
from hardwon.items import Item

Distribution = Literal["ind", "ood"]
Positions = tuple[int, ...]


@dataclass(frozen=True)
class Task:
    """Queries, what they search, and what belongs to them: one data set of a benchmark.

    Candidates that show the same as a gold candidate (equal `Item.content`) count as gold too: a copy of the right
    answer is not a miss.

    Attributes:
        name: of the data set; also the name of its folder.
        meta_task: "classification", "vqa", "retrieval", "grounding", "moments" (of a video) or "documents".
        distribution: "ind" (like the training data) or "ood".
        queries: at least one.
        corpus: everything that queries of this task can find.
        gold: for each query the positions in `corpus` that belong to it, at least one.
        candidates: for each query the positions it searches; None when all queries search the whole corpus.
        metric: what a result is told in: "hit@1", or "ndcg@5" with linear gains.
        grades: for each query how much each of its gold positions belongs to it, above 0; None when all are alike.
    """

    name: str
    meta_task: MetaTask
    distribution: Distribution
    queries: tuple[Item, ...]
    corpus: tuple[Item, ...]
    gold: tuple[Positions, ...]
    candidates: tuple[Positions, ...] | None = None
    metric: Metric = "hit@1"
    grades: tuple[tuple[float, ...], ...] | None = None

    def __post_init__(self) -> None:
        reason = wrong_head(self.name, self.meta_task, self.distribution, self.metric)
        if reason:
            raise DataError(reason)
        if not self.queries or not self.corpus:
            raise DataError(f"task {self.name}: it has no {'corpus' if self.queries else 'queries'}")
        searched = self.candidates if self.candidates is not None else (None,) * len(self.queries)
        if not len(self.queries) == len(self.gold) == len(searched):
            raise DataError(
                f"task {self.name}: {len(self.queries)} queries, gold for {len(self.gold)}, candidates for {len(searched)}"
            )
        for number, (gold, candidates) in enumerate(zip(self.gold, searched, strict=True)):
            reason = wrong_positions(gold, candidates, len(self.corpus))
            if reason:
                raise DataError(f"task {self.name}, query {number}: {reason}")
        if self.grades is not None and len(self.grades) != len(self.gold):
            raise DataError(f"task {self.name}: {len(self.gold)} queries, grades for {len(self.grades)}")
        for number, (gold, grades) in enumerate(zip(self.gold, self.grades or (), strict=False)):
            reason = wrong_grades(grades, len(gold))
            if reason:
                raise DataError(f"task {self.name}, query {number}: {reason}")

    def searched(self, query: int) -> Positions:
        """Positions in the corpus that this query searches."""
        return self.candidates[query] if self.candidates is not None else tuple(range(len(self.corpus)))


class Missing(NamedTuple):
    """A task of a benchmark that cannot be asked.

    Attributes:
        name: of the task.
        why: what is wrong with its data, and what to do about it.
    """

    name: str
    why: str


@dataclass(frozen=True)
class Benchmark:
    """Tasks that are evaluated together.

    Attributes:
        name: what people call it.
        tasks: with different names; their order plays no part in any result.
        missing: tasks that belong to it and cannot be asked here; a report names them and refuses means without them.
    """

    name: str
    tasks: tuple[Task, ...]
    missing: tuple[Missing, ...] = ()

    def __post_init__(self) -> None:
        if not self.tasks:
            raise DataError(f"benchmark {self.name!r} has no tasks")
        names = [*(task.name for task in self.tasks), *(gone.name for gone in self.missing)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise DataError(f"benchmark {self.name!r}: several tasks are named {', '.join(twice)}; names must be different")

    @functools.cached_property
    def revision(self) -> str:
        """Hash of everything that is asked, 32 hexadecimal digits.

        That is the contents of all items (pictures included), gold and candidates. Neither the benchmark's name nor the
        order of tasks or candidates plays a part, nor do the names of picture files. Missing tasks are not asked. Tasks with
        pictures that cannot be read count by their name alone, so that it is another revision.
        """
        return revision_of(digests_of(self))


def digests_of(benchmark: Benchmark) -> dict[str, str]:
    """Hash of everything that each task asks, by its name."""
    return {task.name: _digest(task) for task in benchmark.tasks}


def revision_of(digests: Mapping[str, str]) -> str:
    """`Benchmark.revision` of tasks with these hashes."""
    return hashlib.blake2b("".join(sorted(digests.values())).encode(), digest_size=16).hexdigest()


def _digest(task: Task) -> str:
    try:
        return _digest_of_readable(task)
    except BadMedia:  # whoever asks the task is told what is wrong with it
        return f"unreadable {task.name}"


def _digest_of_readable(task: Task) -> str:
    made = hashlib.blake2b(digest_size=16)
    # What is as usual adds nothing: benchmarks without grades keep the revision they always had.
    metric = [] if task.metric == "hit@1" else [task.metric]
    made.update(json.dumps([task.name, task.meta_task, task.distribution, *metric]).encode())
    made.update("".join(item.key for item in task.corpus).encode())
    for number, query in enumerate(task.queries):
        searched = None if task.candidates is None else task.candidates[number]
        # All of the corpus is the same question however it is written down.
        listed = None if searched is None or len(searched) == len(task.corpus) else sorted(searched)
        gold = sorted(task.gold[number])
        graded = [] if task.grades is None else [sorted(zip(task.gold[number], task.grades[number], strict=True))]
        made.update(json.dumps([query.key, gold, listed, *graded]).encode())
    return made.hexdigest()


def wrong_head(name: str, meta_task: str, distribution: str, metric: str = "hit@1") -> str:
    """Why a task cannot be called or classed so; "" if it can."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        return f"task name {name!r} cannot name a folder: use letters, digits, '_', '-' and '.', a letter or digit first"
    if meta_task not in get_args(MetaTask):
        return f"task {name}: " + unknown("meta_task", meta_task, get_args(MetaTask))
    if distribution not in get_args(Distribution):
        return f"task {name}: " + unknown("distribution", distribution, get_args(Distribution))
    if metric not in get_args(Metric):
        return f"task {name}: " + unknown("metric", metric, get_args(Metric))
    return ""


def wrong_positions(gold: Sequence[int], candidates: Sequence[int] | None, corpus: int) -> str:
    """Why gold and candidates of a query do not fit a corpus of this many entries; "" if they do."""
    if not gold:
        return "no gold: name at least one position of the corpus that belongs to the query"
    if candidates is not None and not candidates:
        return "no candidates: name the positions it searches, or leave candidates out to search the whole corpus"
    for what, positions in (("gold", gold), ("candidates", candidates or ())):
        if positions and not 0 <= min(positions) <= max(positions) < corpus:
            outside = next(p for p in positions if not 0 <= p < corpus)
            return f"{what} {outside} is not in the corpus, whose positions are 0 to {corpus - 1}"
        if len(set(positions)) < len(positions):
            return f"{what} names position {next(p for p in positions if positions.count(p) > 1)} twice"
    if candidates is not None:
        missing = sorted(set(gold) - set(candidates))
        if missing:
            return f"gold {missing[0]} is not among its candidates, so no model could find it"
    return ""


def wrong_grades(grades: Sequence[float], gold: int) -> str:
    """Why these are not the grades of this many gold positions; "" if they are."""
    if len(grades) != gold:
        return f"{len(grades)} grades for {gold} gold positions"
    wrong = [grade for grade in grades if not (math.isfinite(grade) and grade > 0)]
    return f"a grade must be finite and above 0, got {wrong[0]}" if wrong else ""
