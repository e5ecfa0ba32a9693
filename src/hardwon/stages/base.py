"""Stages: frozen values that say what to do, and the workspace that does it once.

A stage names what it reads and where it writes, relative to the workspace. It is run only if its artifact is missing,
damaged or made from other inputs; what was interrupted goes on where it stopped.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol

from hardwon import artifacts
from hardwon.errors import ArtifactError, RecipeError
from hardwon.progress import console


class Stage(Protocol):
    """What every stage has.

    Attributes:
        out: folder of its artifact, relative to the workspace; also its name.
        kind: of the artifact.
        verb: the command that runs such a stage.
    """

    kind: ClassVar[str]
    verb: ClassVar[str]

    @property
    def out(self) -> str:
        """See the class."""
        ...

    def reads(self) -> tuple[str, ...]:
        """Paths that it reads."""
        ...

    def make(self, workspace: "Workspace", draft: artifacts.Draft) -> str:
        """Do the work; returns one line that says what came out."""
        ...


@dataclass(frozen=True)
class Workspace:
    """The folder that a recipe's stages share.

    Attributes:
        root: the folder.
        cache: where features and assets are kept between runs; the user's cache folder if None.
    """

    root: Path
    cache: Path | None = None

    def path(self, name: str) -> Path:
        """A path in a recipe: inside the workspace if it exists there or its first part is a stage's folder, else as it is."""
        inside = self.root / name
        return inside if inside.exists() or not Path(name).exists() else Path(name)

    def identity(self, name: str) -> str:
        """Fingerprint of what lies at a path: of the artifact that holds it, or of the file's or folder's content.

        Raises:
            ArtifactError: nothing there, or the artifact is not finished.
        """
        path = self.path(name)
        for folder in (path, *path.parents):
            if folder == self.root.parent:
                break
            if (folder / artifacts.MANIFEST).exists() or (folder / artifacts.STARTED).exists():
                return artifacts.load(folder, verify=False).fingerprint
        if path.is_file():
            return artifacts.checksum(path)
        if path.is_dir():
            files = sorted(f for f in path.rglob("*") if f.is_file())
            return artifacts.fingerprint([[str(f.relative_to(path)), f.stat().st_size, f.stat().st_mtime_ns] for f in files])
        if (
            not Path(name).is_absolute()
            and "/" in name
            and len(Path(name).parts) == 2
            and not (self.root / Path(name).parts[0]).exists()
        ):
            return f"hub:{name}"
        raise ArtifactError(f"{path} does not exist: run the stage that makes it, or mend the path in the recipe")

    def inputs(self, stage: Stage) -> dict[str, Any]:
        """The resolved stage and the fingerprints of what it reads."""
        return {"stage": artifacts.plain(stage), "parents": {name: self.identity(name) for name in stage.reads()}}

    def run(self, stage: Stage, *, number: str = "") -> artifacts.Manifest:
        """Run a stage unless its artifact is there already."""
        out = console()
        inputs = self.inputs(stage)
        there = artifacts.finished(self.root / stage.out, stage.kind, inputs)
        head = f"[bold cyan]{number}[/] [bold]{stage.out}[/]"
        if there is not None:
            out.print(f"{head}  [dim]done before ({there.made.get('seconds', '?')} s): {there.stats.get('result', '')}[/]")
            return there
        out.print(f"{head}  [dim]{describe(stage)}[/]")
        with artifacts.writing(self.root / stage.out, stage.kind, inputs) as draft:
            draft.stats["result"] = stage.make(self, draft)
        made = artifacts.load(self.root / stage.out, stage.kind, verify=False)
        out.print(f"   [green]{made.stats['result']}[/] [dim]({made.made['seconds']} s)[/]")
        return made

    def run_all(self, stages: Sequence[Stage]) -> list[artifacts.Manifest]:
        """Run stages in order."""
        names = [stage.out for stage in stages]
        doubled = {name for name in names if names.count(name) > 1}
        if doubled:
            raise RecipeError(f"two stages write to {', '.join(sorted(doubled))}")
        return [self.run(stage, number=f"{n}/{len(stages)}") for n, stage in enumerate(stages, 1)]


def describe(stage: Stage) -> str:
    """One line with the fields of a stage that differ from their defaults."""
    shown = []
    for f in fields(stage):  # type: ignore[arg-type]
        value = getattr(stage, f.name)
        if f.name != "out" and isinstance(value, (str, int, float)) and value not in (f.default, "", 0):
            shown.append(f"{f.name}={value}")
    return f"{stage.verb}: " + ", ".join(shown)
