"""Stages: frozen values that say what to do, and the workspace that does it once.

A stage names what it reads and where it writes, relative to the workspace. It is run only if its artifact is missing,
damaged or made from other inputs; what was interrupted goes on where it stopped.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from rich.markup import escape

from hardwon import artifacts
from hardwon.distributed import World
from hardwon.errors import ArtifactError, RecipeError
from hardwon.fetch import AllowedHosts
from hardwon.progress import console
from hardwon.spread.engines import Workers, keeping

MODELS = ("model", "judge", "rerank")  # fields of stages that name a model
TOGETHER = ("train",)  # verbs of stages that all processes work on; any other is done by the first one for all


@runtime_checkable
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
        cache: where fetched assets are kept; the user's cache folder if None.
        command: the command line that runs the stages, for reports.
        workers: who embeds, searches and judges; this process alone if None. What comes of a stage does not depend on it.
        urls: from where pictures that are named by addresses may be fetched; from nowhere if None.
    """

    root: Path
    cache: Path | None = None
    command: str = ""
    workers: Workers | None = None
    urls: AllowedHosts | None = None

    def path(self, name: str) -> Path:
        """A path in a recipe: inside the workspace if it exists there or its first part is a stage's folder, else as it is."""
        inside, first = self.root / name, (Path(name).parts or (".",))[0]
        return inside if inside.exists() or (first not in ("..", ".") and (self.root / first).exists()) else Path(name)

    def identity(self, name: str, *, hub: bool = False) -> str:
        """Fingerprint of what lies at a path: of the artifact that holds it, or of the file's or folder's content.

        Args:
            name: a path in a recipe.
            hub: whether it may be a model's name on the hub (owner/name) as well.

        Raises:
            ArtifactError: nothing there, or the artifact is not finished.
        """
        path = self.path(name)
        for folder in (path, *path.parents):
            if folder == self.root.parent:
                break
            if (folder / artifacts.MANIFEST).exists() or (folder / artifacts.STARTED).exists():
                manifest = artifacts.load(folder, verify=False)
                if path.exists():
                    return manifest.fingerprint
                break
        if path.is_file():
            return artifacts.checksum(path)
        if path.is_dir():
            files = sorted(f for f in path.rglob("*") if f.is_file())
            return artifacts.fingerprint([[str(f.relative_to(path)), f.stat().st_size, f.stat().st_mtime_ns] for f in files])
        owner, _, model = name.partition("/")
        # Stages write their models to STAGE/model, so that is never a name on the hub.
        if hub and owner and model and "/" not in model and model != "model" and not (self.root / owner).exists():
            return f"hub:{name}"
        raise ArtifactError(f"{path} does not exist: run the stage that makes it, or mend the path in the recipe")

    def inputs(self, stage: Stage) -> dict[str, Any]:
        """The resolved stage and the fingerprints of what it reads."""
        models = set(_models(stage))
        parents = {name: self.identity(name, hub=name in models) for name in stage.reads()}
        return {"stage": artifacts.plain(stage), "parents": parents}

    def run(self, stage: Stage, *, number: str = "") -> artifacts.Manifest:
        """Run a stage unless its artifact is there already.

        Of several processes, which see the same folder, the first one writes.
        """
        out, world = console(), World.current()
        inputs = self.inputs(stage)
        there: list[artifacts.Manifest] = []

        def look() -> None:
            found = artifacts.finished(self.root / stage.out, stage.kind, inputs)
            there.extend([found] if found else [])

        world.by_first(f"looking for {stage.out}", look)
        head = f"[bold cyan]{number}[/] [bold]{escape(stage.out)}[/]"
        if bool(world.sum(torch.tensor(float(len(there))))):
            known = there[0] if there else artifacts.load(self.root / stage.out, stage.kind, verify=False)
            told = escape(known.stats.get("result", ""))
            out.print(f"{head}  [dim]done before ({known.made.get('seconds', '?')} s): {told}[/]")
            return known
        out.print(f"{head}  [dim]{escape(describe(stage))}[/]")
        if world.size > 1 and stage.verb not in TOGETHER:
            world.by_first(stage.out, lambda: self._make(stage, inputs, World()))
        else:
            self._make(stage, inputs, world)
        made = artifacts.load(self.root / stage.out, stage.kind, verify=False)
        out.print(f"   [green]{escape(made.stats['result'])}[/] [dim]({made.made['seconds']} s)[/]")
        return made

    def _make(self, stage: Stage, inputs: Mapping[str, Any], world: World) -> None:
        """Make an artifact: the first process begins and ends it, the others work with it in between."""
        folder, what = self.root / stage.out, f"making {stage.out}"
        if world.first:
            with artifacts.writing(folder, stage.kind, inputs) as draft:
                world.wait(what)
                with keeping():
                    draft.stats["result"] = stage.make(self, draft)
        else:
            world.wait(what)
            stage.make(self, artifacts.Draft(folder, False, {}))
        world.wait(what)

    def begun(self, stages: Sequence[Stage]) -> None:
        """Refuse to begin: the first of the stages that is not done must have been begun before, from the same inputs.

        Raises:
            ArtifactError: it was not, or the recipe, the data or the model have changed since.
        """
        for stage in stages:
            folder, inputs = self.root / stage.out, self.inputs(stage)
            if artifacts.finished(folder, stage.kind, inputs):
                continue
            if artifacts.started(folder, stage.kind, inputs):
                return
            why = f"there is no unfinished {stage.out}"
            if (folder / artifacts.STARTED).exists():
                why = f"{stage.out} was begun from another recipe, model or data, so that its checkpoints are of no use"
            raise ArtifactError(f"nothing to resume in {self.root}: {why}. Without --resume it is begun anew")

    def run_all(self, stages: Sequence[Stage]) -> list[artifacts.Manifest]:
        """Run stages in order."""
        names = [stage.out for stage in stages]
        doubled = {name for name in names if names.count(name) > 1}
        if doubled:
            raise RecipeError(f"two stages write to {', '.join(sorted(doubled))}")
        return [self.run(stage, number=f"{n}/{len(stages)}") for n, stage in enumerate(stages, 1)]


def _models(thing: Any) -> Iterator[str]:
    """Names of the models that a stage reads, also within the judge it describes: what may be a name on the hub."""
    for f in fields(thing):
        value = getattr(thing, f.name)
        if f.name in MODELS and isinstance(value, str):
            yield value
        elif is_dataclass(value):
            yield from _models(value)


def describe(stage: Stage) -> str:
    """One line with the fields of a stage that differ from their defaults."""
    shown = []
    for f in fields(stage):  # type: ignore[arg-type]
        value = getattr(stage, f.name)
        if f.name != "out" and isinstance(value, (str, int, float)) and value not in (f.default, "", 0):
            shown.append(f"{f.name}={value}")
    return f"{stage.verb}: " + ", ".join(shown)
