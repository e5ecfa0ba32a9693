"""The stage that makes the built-in sample data."""

from dataclasses import dataclass
from typing import ClassVar

from hardwon.artifacts import Draft
from hardwon.data.emoji import Size, build
from hardwon.progress import console
from hardwon.stages.base import Workspace


@dataclass(frozen=True)
class SampleData:
    """Emoji pairs and the small MMEB, from packages of the ordinary registry.

    Attributes:
        out: see `Stage`; `train.jsonl`, `val.jsonl`, `mmeb-small/`, `mmeb-val/` and `pictures/` are written there.
        collages: collages per trained style for the training pairs.
        queries: queries per test data set at most.
        concepts: concepts that training pairs are made of, about; all if None.
        including: names of pictures whose concepts are always among them.
        seed: of wording and order.
    """

    out: str = "data"
    collages: int = 1200
    queries: int = 200
    concepts: int | None = None
    including: tuple[str, ...] = ()
    seed: int = 0
    kind: ClassVar[str] = "data"
    verb: ClassVar[str] = "prepare"

    def reads(self) -> tuple[str, ...]:
        """Nothing of the workspace."""
        return ()

    def make(self, workspace: Workspace, draft: Draft) -> str:
        """Fetch, draw, write."""
        say = console().print
        size = Size(self.collages, self.queries, self.concepts, self.including)
        counts = build(draft.path, size, seed=self.seed, cache=workspace.cache, say=say)
        draft.stats |= counts
        asked = sum(counts["mmeb-small"].values())
        return f"{counts['train']} training pairs, {asked} test queries in {len(counts['mmeb-small'])} data sets"
