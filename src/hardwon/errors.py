"""Every error that a user can cause, as a tree.

HardwonError
├── DataError            something is wrong with the data
│   ├── BadRows          rows that cannot be used; names file, line and reason of each
│   ├── BadItems         items that cannot be used, or not by this model (then also a ModelError); names each and its reason
│   └── BadMedia         a picture that is missing, broken, too large or outside its root
├── RecipeError          an unknown field, stage, model or value; names the nearest match
├── ArtifactError        a folder that is unfinished, damaged or made by something else
├── ModelError           a model that cannot do what is asked of it
├── TooLarge             a single item or pair that does not fit into memory (also a ModelError)
├── Diverged             a loss or gradient that is not finite; names the step and the queries
├── JudgeError           a judge that cannot be believed or cannot be reached
├── Unfinished           a judge that stopped halfway, with what it had answered (also a JudgeError)
└── MissingExtra         an optional package; names what to install

Two are none of these, so that nothing that skips errors goes on after them: `ProcessLost`, where processes train together and
one is gone, and `Stopped`, a training that was asked to end and can go on later.

Invariants of the code are `assert`ed; errors are for what a person can mend.
"""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

OnError = Literal["raise", "skip"]  # what to do about what cannot be used: stop, or go on without it and list it


class HardwonError(Exception):
    """Base of all errors raised on purpose."""


class DataError(HardwonError):
    """Something is wrong with the data."""


class BadMedia(DataError):
    """A picture that is missing, broken, too large or outside its root."""


class RecipeError(HardwonError):
    """An unknown field, stage, model or value."""


class ArtifactError(HardwonError):
    """A folder that is unfinished, damaged or made by something else."""


class ModelError(HardwonError):
    """A model that cannot do what is asked of it."""


class TooLarge(ModelError):
    """A single item or pair that does not fit into memory by itself: on another machine it may."""


class JudgeError(HardwonError):
    """A judge that cannot be believed or cannot be reached."""


class Unfinished(JudgeError):
    """A judge that stopped before it had answered all that it was asked. What it did answer may have been paid for.

    Attributes:
        pairs: the (query, candidate) pairs that were answered.
        said: its `Judgements` of them, in this order.
    """

    def __init__(self, reason: str, pairs: Sequence[Any], said: Any):
        self.pairs, self.said = tuple(pairs), said
        super().__init__(reason)


class MissingExtra(HardwonError, ImportError):
    """An optional package is not installed; `extra` is what it comes with, "" for one that is installed by its own name."""

    def __init__(self, package: str, extra: str = ""):
        remedy = (
            f"It comes with an extra: pip install 'hardwon[{extra}]'"
            if extra
            else f"It is no part of hardwon: pip install {package}"
        )
        super().__init__(f"{package} is not installed. {remedy}")


class Diverged(HardwonError):
    """A loss or gradient that is not finite; training stopped before the weights were touched."""

    def __init__(self, what: str, step: int, keys: Sequence[str], advice: str = ""):
        self.what, self.step, self.keys, self.advice = what, step, tuple(keys), advice
        shown = ", ".join(key[:12] for key in self.keys[:8]) + (" ..." if len(self.keys) > 8 else "")
        super().__init__(f"{what} at step {step}; no weight was changed. Queries of the batch: {shown}. {advice}".strip())


class ProcessLost(RuntimeError):
    """Processes that work together have lost one: it has ended, or hangs."""

    def __init__(self, rank: int, size: int, doing: str, reason: object):
        self.rank, self.size, self.doing = rank, size, doing
        said = str(reason).strip().split("\n")[0][:300]
        super().__init__(
            f"process {rank} of {size} ({doing}) has lost another one: {said}. That one has ended, and its own message says "
            "why, or it hangs (HARDWON_TIMEOUT_S: how long a step waits, 600 if it is not set). Run the same command again to "
            "go on from the last checkpoint"
        )


class Stopped(SystemExit):
    """SIGTERM came and the training has ended well: it left a checkpoint, and the program ends with exit code 0."""

    def __init__(self, told: str):
        self.told = told
        super().__init__(0)

    def __str__(self) -> str:
        return self.told


class BadRow(NamedTuple):
    """One row that cannot be used."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


class BadRows(DataError):
    """Rows that cannot be used.

    Attributes:
        rows: every bad row; the message shows the first ten.
    """

    def __init__(self, rows: Sequence[BadRow], read: int, advice: str = ""):
        self.rows = tuple(rows)
        super().__init__(_listing(f"{len(self.rows)} of {read} rows cannot be used:", self.rows, advice))


class BadItem(NamedTuple):
    """One item that cannot be used.

    Attributes:
        item: the item itself.
        reason: why.
        where: what it was for; empty if that is plain.
    """

    item: Any
    reason: str
    where: str = ""

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.item.label, self.reason) if part)


class BadItems(DataError, ModelError):
    """Items that cannot be used: by anybody (a damaged picture) or by this model (a picture for a model of text).

    Attributes:
        items: every bad item; the message shows the first ten.
    """

    def __init__(self, items: Sequence[BadItem], among: str, advice: str = ""):
        self.items = tuple(items)
        what = "1 item" if len(self.items) == 1 else f"{len(self.items)} items"
        super().__init__(_listing(f"{what} of {among} cannot be used:", self.items, advice))


def _listing(head: str, rows: Sequence[BadRow | BadItem], advice: str) -> str:
    lines = [head, *(f"  {row}" for row in rows[:10])]
    if len(rows) > 10:
        lines.append(f"  ... and {len(rows) - 10} more")
    return "\n".join([*lines, *([advice] if advice else [])])


def unknown(what: str, value: object, valid: Iterable[object]) -> str:
    """Sentence for a value that is not among the valid ones, with the nearest match.

    >>> unknown("stage", "trian", ["train", "mine"])
    "unknown stage 'trian': did you mean 'train'? Valid: mine, train"
    """
    names = sorted(str(name) for name in valid)
    near = difflib.get_close_matches(str(value), names, n=1)
    guess = f" did you mean {near[0]!r}?" if near else ""
    return f"unknown {what} {str(value)!r}:{guess} Valid: {', '.join(names)}"
