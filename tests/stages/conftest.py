"""Stages without a model. hardwon is imported inside functions: the shape checks come before it."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest


@dataclass(frozen=True)
class Inner:
    size: int = 8
    rate: float = 0.5


@dataclass(frozen=True)
class Note:
    """Writes `text` and what its parents hold into note.txt; counts how often it was made."""

    out: str
    text: str = "hello"
    parents: tuple[str, ...] = ()
    flag: bool = False
    count: int = 3
    limit: int | None = None
    inner: Inner = field(default_factory=Inner)
    fails: bool = False
    model: str = ""
    made: ClassVar[list[str]] = []
    kind: ClassVar[str] = "note"
    verb: ClassVar[str] = "write"

    def reads(self) -> tuple[str, ...]:
        return (*self.parents, *([self.model] if self.model else []))

    def make(self, workspace: Any, draft: Any) -> str:
        self.made.append(self.out)
        if self.fails:
            raise RuntimeError("the lights went out")
        said = [workspace.path(name).read_text() for name in self.parents]
        (draft.path / "note.txt").write_text("+".join([*said, self.text]))
        return f"[/wrote] {self.text}"


@pytest.fixture
def note():
    Note.made.clear()
    return Note


@pytest.fixture
def workspace(tmp_path):
    from hardwon.stages import Workspace

    return Workspace(tmp_path / "run")
