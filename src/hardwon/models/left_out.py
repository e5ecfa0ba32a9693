"""Going on without what cannot be used: which examples lose what, what is said of it, and how much of it is too much."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar, runtime_checkable

from hardwon.errors import BadItem, BadItems, BadMedia, DataError, OnError
from hardwon.items import Example, Item
from hardwon.progress import console

SHOWN = 10

Pairs = Mapping[tuple[Item, Item], str]  # what cannot be used together, and why
Made = TypeVar("Made")


@runtime_checkable
class Tolerance(Protocol):
    """What is done about what cannot be used."""

    @property
    def on_error(self) -> OnError:
        """Stop and name it all, or go on without it and list it."""
        ...

    @property
    def max_bad_fraction(self) -> float:
        """With "skip", the share of the examples above which it is an error all the same."""
        ...


@dataclass(frozen=True)
class Readable(Generic[Made]):
    """What was made of the examples that can be read.

    Attributes:
        made: by the work.
        examples: those that it was made of.
        left_out: what could not be read, each with the first place where it stood.
        places: the same as [number of the example, number of the candidate]; [number, -1] where an example is gone with it.
    """

    made: Made
    examples: tuple[Example, ...]
    left_out: tuple[BadItem, ...] = ()
    places: tuple[tuple[int, int], ...] = ()


def readable(
    examples: Sequence[Example], work: Callable[[tuple[Example, ...]], Made], tolerance: Tolerance, doing: str
) -> Readable[Made]:
    """Do some work that raises `BadItems` for what it cannot read; with "skip", again without that.

    Args:
        examples: what to work on.
        work: is given examples; what it has done before it fails should be kept, for it is called again.
        tolerance: how much may be left out.
        doing: what is being done, for messages.

    Raises:
        BadItems: items that cannot be read, or with "skip" too many of them; with their places.
        DataError: nothing is left.
    """
    bad = _missing(examples)
    while True:
        kept = [without(example, bad) for example in examples]
        left = tuple(example for example in kept if example is not None)
        if bad:
            refuse_too_many(listed(examples, bad), len(examples) - len(left), len(examples), tolerance, doing)
            if not left:
                raise DataError(f"nothing is left of {len(examples)} examples that can be read")
        try:
            made = work(left)
        except BadItems as error:
            found = {entry.item: entry.reason for entry in error.items}
            if not found.keys() - bad.keys():
                raise
            bad |= found
            continue
        left_out = tuple(listed(examples, bad))
        if left_out:
            show(left_out, len(examples) - len(left), len(examples))
        return Readable(made, left, left_out, _places(examples, kept, bad))


def dropped(examples: Sequence[Example], places: Sequence[Sequence[int]]) -> tuple[Example, ...]:
    """The examples without what stood at `Readable.places`.

    Raises:
        DataError: there are no such places.
    """
    gone: dict[int, set[int]] = {}
    for row, place in places:
        if not (0 <= row < len(examples) and -1 <= place < len(examples[row].candidates)):
            raise DataError(f"candidate {place} of example {row} was left out, but there is none: these are other examples")
        gone.setdefault(row, set()).add(place)
    made = []
    for row, example in enumerate(examples):
        if -1 not in (out := gone.get(row, set())):
            kept = tuple(c for n, c in enumerate(example.candidates) if n not in out)
            made.append(replace(example, candidates=kept) if out else example)
    return tuple(made)


def without(example: Example, bad: Mapping[Item, str], pairs: Pairs | None = None) -> Example | None:
    """The example without bad candidates; None if query or every gold is gone."""
    if not bad and not pairs:
        return example
    good = tuple(c for c in example.candidates if c.item not in bad and (example.query, c.item) not in (pairs or {}))
    if example.query in bad or not any(c.origin == "gold" for c in good):
        return None
    return example if len(good) == len(example.candidates) else replace(example, candidates=good)


def listed(examples: Sequence[Example], bad: Mapping[Item, str], pairs: Pairs | None = None) -> list[BadItem]:
    """Each bad item once, with the first place where it stands and how many more there are."""
    places: dict[tuple[Item, str], list[str]] = {}
    for number, example in enumerate(examples, start=1):
        if why := bad.get(example.query):
            places.setdefault((example.query, why), []).append(f"query of example {number}")
        for candidate in example.candidates:
            if why := bad.get(candidate.item) or (pairs or {}).get((example.query, candidate.item)):
                what = "gold" if candidate.origin == "gold" else "negative"
                places.setdefault((candidate.item, why), []).append(f"{what} of example {number}")
    more = {key: f" and {len(where) - 1} more" if len(where) > 1 else "" for key, where in places.items()}
    return [BadItem(key[0], key[1], where[0] + more[key]) for key, where in places.items()]


def refuse_too_many(left_out: Sequence[BadItem], gone: int, examples: int, tolerance: Tolerance, doing: str) -> None:
    """Raise `BadItems` if nothing, or not so much, may be left out.

    Args:
        left_out: as `listed` makes it.
        gone: examples that go with it.
        examples: how many there were.
        tolerance: how much may be left out.
        doing: what is being done: "training", "mining".
    """
    among = f"{examples} examples"
    if tolerance.on_error == "raise":
        raise BadItems(left_out, among, f'Mend them, or leave them out with on_error="skip" in the settings of the {doing}')
    if gone > tolerance.max_bad_fraction * examples:
        raise BadItems(
            left_out,
            among,
            f'{gone} examples would be left out, but on_error="skip" allows {tolerance.max_bad_fraction:.1%} of them: mend '
            "them, or allow more with max_bad_fraction",
        )


def show(left_out: Sequence[BadItem], gone: int, examples: int) -> None:
    """List what is left out on the console."""
    for bad in left_out[:SHOWN]:
        console().print(f"   left out {bad}", markup=False, style="yellow")
    console().print(f"   {len(left_out)} items left out, and {gone} of {examples} examples with them", style="yellow")


def _missing(examples: Sequence[Example]) -> dict[Item, str]:
    """Items that have no key, since a picture of theirs is not there or cannot be opened."""
    found: dict[Item, str] = {}
    for example in examples:
        for item in (example.query, *(c.item for c in example.candidates)):
            if item.pictures and item not in found:
                try:
                    item.key  # noqa: B018  (the digests of pictures are remembered)
                except BadMedia as error:
                    found[item] = str(error)
    return found


def _places(
    examples: Sequence[Example], kept: Sequence[Example | None], bad: Mapping[Item, str]
) -> tuple[tuple[int, int], ...]:
    made: list[tuple[int, int]] = []
    for row, (example, left) in enumerate(zip(examples, kept, strict=True)):
        if left is None:
            made.append((row, -1))
        elif left is not example:
            made += [(row, n) for n, c in enumerate(example.candidates) if c.item in bad]
    return tuple(made)
