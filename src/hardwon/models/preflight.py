"""Items that a model cannot use, found in one look at all of them before any work is lost on the others."""

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, runtime_checkable

from hardwon.errors import BadItem, BadItems, BadMedia, ModelError
from hardwon.items import Item, Picture
from hardwon.pictures import check_picture, open_picture
from hardwon.progress import bar

THREADS = min(8, os.cpu_count() or 1)  # decoders let other threads run
AHEAD = 1024  # pictures handed to the threads at a time
ADVICE = "Mend them, or leave them out: `items` of this error holds them all"


@runtime_checkable
class Reads(Protocol):
    """What has to be known of a model: a `Body`, or the `Prompts` of a judge."""

    @property
    def modalities(self) -> tuple[str, ...]:
        """What it reads: "text", "image", "video"."""
        ...

    def check(self, row: Sequence[Item]) -> None:
        """Raise ModelError or BadMedia for items that it cannot read, one by itself or two together."""
        ...


def problems(body: Reads, items: Iterable[Item], *, decode: bool = True, progress: str = "") -> dict[Item, str]:
    """Why items cannot be used: a damaged picture, or something that this model does not read.

    Args:
        body: of the model that is to read the items, one at a time.
        items: each distinct one is looked at once.
        decode: decode every picture, which finds damage in its middle too (1,000 JPEG of 640 x 480 take some 2 s of one
            core, over up to eight threads); without it headers and ends are looked at.
        progress: name of the work in a bar; "" shows none.

    Returns:
        The reason of each item that cannot be used, in their order; nothing about the others.
    """
    distinct = dict.fromkeys(items)
    if "text" in body.modalities:  # then there is nothing to be said about text alone, and it has to cost nothing
        distinct = [item for item in distinct if item.pictures]
    bad = _bad_pictures(list(dict.fromkeys(p for item in distinct for p in item.pictures)), decode, progress)
    found = {}
    for item in distinct:
        damaged = [bad[picture] for picture in item.pictures if picture in bad]
        if damaged:
            found[item] = damaged[0]
        elif reason := refusal(body, (item,)):
            found[item] = reason
    return found


def refusal(body: Reads, row: Sequence[Item]) -> str:
    """Why a model cannot read one item, or two together; "" if it can, as far as headers of pictures tell."""
    try:
        body.check(row)
    except (BadMedia, ModelError) as error:
        return str(error)
    return ""


def refuse(body: Reads, items: Iterable[Item], *, decode: bool = False) -> None:
    """Raise `BadItems` that lists every item that cannot be used, if there is any; arguments as `problems`."""
    distinct = dict.fromkeys(items)
    if found := problems(body, distinct, decode=decode):
        raise BadItems([BadItem(item, reason) for item, reason in found.items()], str(len(distinct)), ADVICE)


@contextlib.contextmanager
def decoding(body: Reads, items: Sequence[Item]) -> Iterator[None]:
    """Where items are used: the first picture that turns out to be damaged makes a `BadItems` that lists every such item."""
    try:
        yield
    except BadMedia:
        refuse(body, items, decode=True)
        raise


def _bad_pictures(pictures: Sequence[Picture], decode: bool, progress: str) -> dict[Picture, str]:
    look = open_picture if decode else check_picture

    def reason(picture: Picture) -> str:
        try:
            look(picture)
        except BadMedia as error:
            return str(error)
        return ""

    found: dict[Picture, str] = {}
    if not pictures:
        return found
    with ThreadPoolExecutor(THREADS) as pool, bar(progress, len(pictures), "pictures", shown=bool(progress)) as advance:
        for start in range(0, len(pictures), AHEAD):
            part = pictures[start : start + AHEAD]
            for picture, why in zip(part, pool.map(reason, part), strict=True):
                if why:
                    found[picture] = why
                advance()
    return found
