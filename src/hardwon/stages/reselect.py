"""The stage that chooses hard negatives again, without a model."""

from dataclasses import dataclass, field
from typing import ClassVar

from hardwon.artifacts import Draft, load
from hardwon.errors import OnError
from hardwon.mining import Mining, reselect
from hardwon.stages.base import Workspace
from hardwon.stages.learn import load_examples


@dataclass(frozen=True)
class Reselect:
    """Choose hard negatives again from what a `Mine` stage found and judged: other thresholds, no model.

    Attributes:
        out: see `Stage`; holds what the `Mine` stage would have written with these settings.
        negatives: the artifact of the `Mine` stage.
        data: the examples that were mined for.
        settings: the new settings; see `hardwon.mining.reselect` for those that may change.
        root: folder that picture paths are relative to, if not the data file's.
        on_error: "skip" goes on without bad rows; as in the `Mine` stage.
    """

    out: str
    negatives: str
    data: str
    settings: Mining = field(default_factory=Mining)
    root: str = ""
    on_error: OnError = "raise"
    kind: ClassVar[str] = "negatives"
    verb: ClassVar[str] = "mine"

    def reads(self) -> tuple[str, ...]:
        """Negatives and data."""
        return (self.negatives, self.data)

    def make(self, workspace: Workspace, draft: Draft) -> str:
        """Choose and write."""
        on_error: OnError = "skip" if "skip" in (self.on_error, self.settings.on_error) else "raise"
        examples = load_examples(workspace, self.data, on_error, self.root, self.settings.max_bad_fraction)
        folder = workspace.path(self.negatives)
        load(folder, self.kind)
        mined = reselect(folder, examples, settings=self.settings)
        data = workspace.path(self.data)
        mined.write(draft.path, workspace.path(self.root) if self.root else data if data.is_dir() else data.parent)
        draft.stats |= mined.stats
        return f"{mined.stats['kept']} hard negatives for {mined.stats['queries']} queries, chosen again without a model"
