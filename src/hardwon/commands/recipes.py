"""What the commands share: recipes as arguments, and stages to run."""

import contextlib
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer

from hardwon.commands.fields import check_fields
from hardwon.errors import Stopped

Recipe = Annotated[
    str,
    typer.Argument(
        help="A recipe file; FILE:FUNCTION for another function than `recipe`.", metavar="RECIPE", show_default=False
    ),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Workspace: the folder that all stages write below.")]
Set = Annotated[
    list[str],
    typer.Option("--set", help="Change a field: STAGE.FIELD=VALUE. May be repeated.", default_factory=list, show_default=False),
]
Only = Annotated[str, typer.Option("--stage", "-s", help="Name of the stage; all stages of this verb if left out.")]


def stages_of(recipe: str, settings: list[str]) -> tuple[Any, ...]:
    """The stages of a recipe with some fields changed."""
    check_fields(recipe, settings)
    from hardwon.stages.recipes import changed, load

    return changed(load(recipe), settings)


def hide_loading() -> None:
    """No bar for every loading of weights: they would hide the ones that matter."""
    from transformers.utils import logging

    logging.disable_progress_bar()


Count = Annotated[
    int, typer.Option("--workers", "-w", help="Embed, search and judge by so many processes; 0: by this one alone.", min=0)
]
Engine = Annotated[
    Literal["local", "ray"], typer.Option(help="Whose the workers are: processes of this machine, or tasks of Ray (extra ray).")
]
Hosts = Annotated[
    list[str],
    typer.Option(
        "--allow-host", help="Fetch pictures that data name by https addresses of this host. May be repeated.",
        default_factory=list, show_default=False,
    ),
]  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where the work of a command is done.

    Attributes:
        workers: processes that embed, search and judge; 0: this one alone.
        engine: whose they are.
        hosts: that pictures may be fetched from.
    """

    workers: int = 0
    engine: str = "local"
    hosts: Sequence[str] = ()


def workspace_at(out: Path, place: Place | None = None) -> Any:
    """The workspace in a folder."""
    from hardwon.fetch import AllowedHosts
    from hardwon.stages import Workspace

    hide_loading()
    place = place or Place()
    urls = AllowedHosts(tuple(place.hosts)) if place.hosts else None
    command = shlex.join(["hardwon", *sys.argv[1:]])
    return Workspace(out, command=command, workers=workers_of(place.workers, place.engine), urls=urls)


def workers_of(count: int, engine: str) -> Any:
    """The workers of a command line; None for none."""
    from hardwon.spread.engines import Workers

    if engine == "ray" and not count:
        raise typer.BadParameter("--engine ray needs --workers: how many tasks work at a time")
    return Workers(count, cast(Any, engine)) if count else None


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM ends the work within the block as Ctrl-C does, but with exit code 0: it goes on when it is run again.

    A training that has begun finishes its step and leaves a checkpoint first.
    """

    def end(_number: int, _frame: Any) -> None:
        raise Stopped("stopped by SIGTERM")

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_verb(
    verb: str,
    recipe: str,
    out: Path,
    *,
    stage: str,
    settings: list[str],
    place: Place | None = None,
    resume: bool = False,
) -> None:
    """Run the stages of one verb, or the one of this name; with `resume` only what was begun before."""
    from hardwon.errors import RecipeError, unknown

    stages = stages_of(recipe, settings)
    those = [s for s in stages if s.verb == verb]
    if stage:
        named = [s for s in stages if s.out == stage]
        if not named:
            raise RecipeError(unknown("stage", stage, (s.out for s in those)))
        if named[0].verb != verb:
            raise RecipeError(f"{stage} is a stage to {named[0].verb}, not to {verb}; `hardwon run` runs stages of every kind")
        those = named
    if not those:
        raise RecipeError(f"{recipe} has no stage to {verb}")
    workspace = workspace_at(out, place)  # after the recipe: mistakes are told before torch is there
    if resume:
        workspace.begun(those)
    workspace.run_all(those)
    from hardwon.distributed import leave

    leave()
