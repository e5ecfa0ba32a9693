"""Trackers: where metrics go beside `metrics.jsonl` when a training names them in `Settings.track`.

Each package is imported when it is used, and told nothing about networks: its own environment variables decide that
(WANDB_MODE=offline, TRACKIO_DIR ...). A run that goes on from a checkpoint goes on in the tracker as well.
"""

import importlib
import importlib.util
import os
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from hardwon.errors import MissingExtra, RecipeError, unknown

SHOWN = ("loss", "gradient_norm", "learning_rate", "items_per_second", "memory_mib", "temperature", "validation")
PROJECT = "hardwon"


@dataclass(frozen=True)
class Run:
    """What a tracker is told when it starts.

    Attributes:
        title: for people.
        identity: of the run, the same when it goes on.
        start: finished updates that it goes on from.
        out: folder of the training.
    """

    title: str
    identity: str
    start: int
    out: Path | None


@runtime_checkable
class Tracker(Protocol):
    """Something that shows metrics.

    Attributes:
        rewinds: it forgets by itself what came after the step that a run goes on from.
    """

    rewinds: ClassVar[bool]

    def log(self, values: dict[str, float], step: int) -> None:
        """Take the metrics of a step; steps never go down."""
        ...

    def close(self, failed: bool) -> None:
        """Nothing comes any more; `failed` if the training did not come to its end."""
        ...


class _TensorBoard:
    """Event files in `out/tensorboard`."""

    rewinds: ClassVar[bool] = True

    def __init__(self, run: Run):
        from torch.utils.tensorboard import SummaryWriter

        assert run.out is not None
        self.writer = SummaryWriter(str(run.out / "tensorboard"), purge_step=run.start + 1)

    def log(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()  # what lies before a checkpoint must not be lost with the process

    def close(self, failed: bool) -> None:
        self.writer.close()


class _Trackio:
    """A run of a trackio project; names are how trackio finds a run again, so they hold the identity."""

    rewinds: ClassVar[bool] = False

    def __init__(self, run: Run):
        self.trackio: Any = importlib.import_module("trackio")
        self.run = self.trackio.init(project=PROJECT, name=f"{run.title} {run.identity}", resume="allow")

    def log(self, values: dict[str, float], step: int) -> None:
        self.run.log(values, step=step)

    def close(self, failed: bool) -> None:
        self.trackio.finish()


class _Wandb:
    """A run of Weights & Biases, beside any that the caller has open."""

    rewinds: ClassVar[bool] = False

    def __init__(self, run: Run):
        wandb: Any = importlib.import_module("wandb")
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", run.title),
            id=run.identity,
            resume="allow",
            reinit="create_new",
        )

    def log(self, values: dict[str, float], step: int) -> None:
        self.run.log(values, step=step)

    def close(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


_KINDS: dict[str, Callable[[Run], Tracker]] = {"tensorboard": _TensorBoard, "trackio": _Trackio, "wandb": _Wandb}
_EXTRAS = {"tensorboard": "track"}  # the others are installed by their own names


def check_names(names: Sequence[str]) -> None:
    """Raise RecipeError unless every name is that of a tracker."""
    for name in names:
        if name not in _KINDS:
            raise RecipeError(unknown("tracker", name, _KINDS))


def check_usable(names: Sequence[str], out: Path | None) -> None:
    """Refuse trackers that could not be started, before anything is computed.

    Raises:
        MissingExtra: a package that is not installed.
        RecipeError: tensorboard without a folder to write to.
    """
    for name in names:
        found = importlib.util.find_spec(name)
        # A folder of that name (trackers write such) is taken for a package, one without an origin.
        if found is None or found.origin is None:
            raise MissingExtra(name, _EXTRAS.get(name, ""))
    if "tensorboard" in names and out is None:
        raise RecipeError("the tracker 'tensorboard' writes files: give train a folder for them (out=...)")


class _Guarded:
    """A tracker that may fail without harm: it is warned of once, then left out."""

    def __init__(self, name: str, tracker: Tracker, known: frozenset[tuple[int, str]]):
        self.name, self.tracker, self.known, self.broken = name, tracker, known, False

    def log(self, values: Mapping[str, float], step: int) -> None:
        news = {name: value for name, value in values.items() if (step, name) not in self.known}
        if news and not self.broken:
            self._attempt(lambda: self.tracker.log(news, step))

    def __enter__(self) -> "_Guarded":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        self._attempt(lambda: self.tracker.close(kind is not None))

    def _attempt(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            if not self.broken:
                self.broken = True
                warnings.warn(f"{self.name} failed ({error!r}): the training goes on without it", stacklevel=2)


@contextmanager
def tracking(
    names: Sequence[str], *, title: str, out: Path | None = None, start: int = 0, dropped: Iterable[Mapping[str, Any]] = ()
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Open trackers and close them whatever happens.

    Args:
        names: which.
        title: of the training.
        out: its folder.
        start: finished updates that it goes on from.
        dropped: rows that were logged after those before the run was interrupted. They will come again, with the same losses;
            a tracker that cannot go back keeps the ones that it has.

    Yields:
        A function that takes a row of `metrics.jsonl`.
    """
    if not names:
        yield lambda row: None
        return
    identity, goes_on = _identity(out, start)
    known = frozenset((row["step"], name) for row in dropped for name in shown(row)) if goes_on else frozenset()
    run = Run(title, identity, start, out)
    with ExitStack() as stack:
        opened = []
        for name in dict.fromkeys(names):
            tracker = _KINDS[name](run)
            opened.append(stack.enter_context(_Guarded(name, tracker, frozenset() if tracker.rewinds else known)))

        def tell(row: Mapping[str, Any]) -> None:
            for guarded in opened:
                guarded.log(shown(row), row.get("step", 0))

        yield tell


def shown(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row that trackers show, flat; what a gradient report cannot say is left out."""
    found = {name: row[name] for name in SHOWN if name in row}
    found |= {f"gradient/{name}": value for name, value in (row.get("gradient") or {}).items()}
    return {name: float(value) for name, value in found.items() if value is not None}


def _identity(out: Path | None, start: int) -> tuple[str, bool]:
    """Of a run, and whether it goes on: the one kept in `out` if so, else a new one."""
    kept = out / "run-id" if out else None
    if kept and start and kept.exists():
        return kept.read_text(encoding="utf-8").strip(), True
    made = uuid.uuid4().hex[:8]
    if kept:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(made + "\n", encoding="utf-8")
    return made, False
