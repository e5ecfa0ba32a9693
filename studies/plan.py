"""What a study consists of: trainings, mining, rerankers; each once for every seed. A plan is data; `studies.cells` does it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from hardwon.data.emoji import Size
from hardwon.errors import RecipeError, unknown
from hardwon.losses import FalseNegatives, Listwise, Loss, Pairwise
from hardwon.training import Groups

Verdicts = Literal["none", "reranker", "oracle"]
# Largest norm of a step's gradient. It is always longer, so that all rows step with gradients of the same norm and what is
# compared is their direction; each cell says in which share of its steps that was so.
CLIP = 0.02
TEACHER = "infonce"  # the row whose model mines, groups, and is the judge's start


@dataclass(frozen=True)
class Scale:
    """How long everything takes.

    Attributes:
        size: of the data.
        steps: updates of a training.
        encodings: items of a step at most: twice the queries, or fewer queries with negatives of their own.
        rate: peak learning rate.
        judge_steps: updates of the judge.
        reranker_steps: a third of the updates of a reranker that is measured.
        mined: examples that negatives are mined for; all if None.
        depth: candidates that the judge reads for each.
        align: updates of the projector alone, with which every row begins; see `studies.align`.
    """

    size: Size
    steps: int
    encodings: int = 256
    rate: float = 1e-3
    judge_steps: int = 150
    reranker_steps: int = 200
    mined: int | None = None
    depth: int = 4
    align: int = 150


@dataclass(frozen=True)
class Plant:
    """Damage done to the training pairs on purpose.

    Attributes:
        copies: share of the pairs of which a copy is added whose gold shows the same but is another item: no hash finds it.
        wrong: share of the pairs whose gold belongs to another pair of the source.
    """

    copies: float = 0.0
    wrong: float = 0.0


@dataclass(frozen=True)
class Training:
    """A row of the table: one way to train the embedder.

    Attributes:
        name: of the row, a word.
        title: for people.
        family: rows that are shown together.
        loss: the objective.
        control: row that differs in nothing but the idea; the baseline if empty.
        mined: name of the mining whose negatives are trained on; none if empty.
        only_mined: leave out what was not mined for.
        queries: of a step; half the encodings if None.
        negatives: of each query's own, how many join a step.
        groups: batches made of near misses, as the teacher sees them.
        by_itself: near misses as the model sees them before its first step, as `hardwon.training.train` has it; no teacher.
        rules: take candidates out of the comparison.
        pace: times the scale's learning rate.
        longer: times the scale's steps.
        unaligned: begin with a random projector.
        average: of the weights over the last so large a share of the steps; 0 for the last ones.
        plant: damage to the data.
    """

    name: str
    title: str
    family: str
    loss: Loss
    control: str = ""
    mined: str = ""
    only_mined: bool = False
    queries: int | None = None
    negatives: int = 0
    groups: Groups | None = None
    by_itself: bool = False
    rules: FalseNegatives | None = None
    pace: float = 1.0
    longer: float = 1.0
    unaligned: bool = False
    average: float = 0.0
    plant: Plant = field(default_factory=Plant)

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of what has to be there first."""
        return ((self.mined,) if self.mined else ()) + ((TEACHER,) if self.groups and not self.by_itself else ())


@dataclass(frozen=True)
class MiningRound:
    """Negatives for every training pair, found by the teacher.

    Attributes:
        name: of the round.
        judge: who reads the candidates: nobody, the trained small reranker, or the annotations.
        error: share of the pairs of which the annotations' verdict is turned round.
        beta: see `hardwon.mining.Mining`.
        plant: damage to the data that are mined.
    """

    name: str
    judge: Verdicts = "none"
    error: float = 0.0
    beta: float = 0.0
    plant: Plant = field(default_factory=Plant)

    @property
    def needs(self) -> tuple[str, ...]:
        """The teacher, and the judge."""
        return (TEACHER, "judge") if self.judge == "reranker" else (TEACHER,)


@dataclass(frozen=True)
class Reranking:
    """A row of the table: a reranker behind an embedder.

    Attributes:
        name: of the row.
        title: for people.
        base: row of the embedder, with which it is compared.
        loss: the objective.
        sources: of the training pairs; all if empty.
        family: see `Training`.
        judge: it judges, and is not measured.
        control: row that spends on the embedder's training what the reranker costs.
    """

    name: str
    title: str
    base: str
    loss: Loss
    sources: tuple[str, ...] = ()
    family: str = "reranking"
    judge: bool = False
    control: str = ""

    @property
    def needs(self) -> tuple[str, ...]:
        """The embedder."""
        return (self.base,)


Entry = Training | MiningRound | Reranking
JUDGE = Reranking("judge", "the judge", TEACHER, Pairwise() + Listwise(), judge=True)


@dataclass(frozen=True)
class Suite:
    """A study.

    Attributes:
        name: of the suite.
        scale: see there.
        entries: in the order of the table.
        what: one line about it.
        backbone: folder or name of a model that is trained whole (`studies.language`); the small one if empty.
    """

    name: str
    scale: Scale
    entries: tuple[Entry, ...]
    what: str = ""
    backbone: str = ""

    def entry(self, name: str) -> Entry:
        """By name. Raises RecipeError if there is none."""
        for one in self.entries:
            if one.name == name:
                return one
        raise RecipeError(unknown("row", name, [one.name for one in self.entries]))

    def only(self, names: Sequence[str]) -> "Suite":
        """Some rows, the baseline, their controls and whatever they need."""
        wanted: set[str] = set()
        left = [*names, TEACHER]
        while left:
            name = left.pop()
            if name not in wanted:
                wanted.add(name)
                entry = self.entry(name)
                left += [*entry.needs, *([entry.control] if getattr(entry, "control", "") else [])]
        return replace(self, entries=tuple(one for one in self.entries if one.name in wanted))

    @property
    def rows(self) -> tuple[Training | Reranking, ...]:
        """What the table shows."""
        return tuple(e for e in self.entries if isinstance(e, Training) or (isinstance(e, Reranking) and not e.judge))
