"""Progress that people can see: a live bar with rate and ETA in a terminal, a line now and then in a log."""

import contextlib
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

LOG_EVERY_S = 15.0


def console() -> Console:
    """Console on standard error, so that results on standard output can be piped.

    Of processes that a launcher started together only the first one speaks.
    """
    return Console(stderr=True, highlight=False, quiet=not speaks())


def speaks() -> bool:
    """Whether this process is the only one, or the first of those that a launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1")) < 2 or os.environ.get("RANK", "0") == "0"


def program() -> str:
    """What to type for this program: its name, or its place if a shell would not find it (after `make demo` it is in .venv)."""
    own, found = Path(sys.executable).with_name("hardwon"), shutil.which("hardwon")
    if not own.exists() or (found is not None and Path(found).samefile(own)):
        return "hardwon"
    return shlex.quote(str(own.relative_to(Path.cwd()) if own.is_relative_to(Path.cwd()) else own))


class _Rate(TextColumn):
    def __init__(self, unit: str):
        super().__init__("")
        self.unit = unit

    def render(self, task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if not speed else f"{speed:,.1f} {self.unit}/s", style="progress.data.speed")


class _Noted(Progress):
    """A bar with its note on a line of its own: beside it, the bar would be squeezed out of an ordinary terminal."""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        for task in self.tasks:
            if task.fields["note"]:
                yield Text(f"  {task.fields['note']}", style="dim", no_wrap=True, overflow="ellipsis")


@contextlib.contextmanager
def bar(what: str, total: int, unit: str = "items", *, shown: bool = True) -> Iterator[Callable[..., None]]:
    """Show how far some work has come.

    Args:
        what: what is being done, in the words of the user.
        total: units of work in all.
        unit: name of one unit, in the plural.
        shown: False shows nothing (all processes but the first).

    Yields:
        `advance(n=1, note="")`: n more units are done; `note` is shown with the bar (a loss, say).
    """
    if not shown:
        yield lambda n=1, note="": None
        return
    out = console()
    if out.is_terminal:
        columns = [TextColumn("[bold]{task.description}"), BarColumn(bar_width=28), MofNCompleteColumn(), _Rate(unit)]
        columns += [TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn()]
        with _Noted(*columns, console=out, transient=False) as live:
            task = live.add_task(what, total=total, note="")
            note_shown = ""

            def step(n: int = 1, note: str = "") -> None:
                nonlocal note_shown
                note_shown = note or note_shown
                live.update(task, advance=n, note=note_shown)

            yield step
        return
    with _log_lines(what, total, unit) as advance:
        yield advance


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


@contextlib.contextmanager
def _log_lines(what: str, total: int, unit: str) -> Iterator[Callable[..., None]]:
    start = last = time.monotonic()
    done = 0

    def advance(n: int = 1, note: str = "") -> None:
        nonlocal done, last
        done += n
        now = time.monotonic()
        if now - last >= LOG_EVERY_S:
            last = now
            rate = done / (now - start)
            left = (total - done) / rate if rate else float("inf")
            _say(f"{what}: {done}/{total} {unit}, {rate:,.1f}/s, {left:,.0f} s left  {note}".rstrip())

    yield advance
    seconds = time.monotonic() - start
    _say(f"{what}: {done}/{total} {unit} in {seconds:,.1f} s")
