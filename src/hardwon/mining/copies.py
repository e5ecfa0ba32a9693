"""Copies of a positive that no hash finds: pictures that were encoded, resized or cropped again, words set another way.

Vectors do not tell them from mere neighbours (on emoji, a JPEG of the positive is no nearer to it than the nearest other
picture is), pixels do. Thumbnails are laid over each other (Lucas and Kanade, 1981: Gauss-Newton steps on shift and scale, from
coarse to fine), and what is left in the worst place of a grid is measured: noise of a codec averages out there, and another
face, hand or word does not.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL import Image

from hardwon.errors import BadMedia
from hardwon.items import Item, Picture
from hardwon.pictures import open_picture

SIDES = (8, 16, 32)  # of the thumbnails that are laid over each other
STEPS = (6, 4, 2)  # Gauss-Newton steps on each
STARTS = (0.0, 0.15, -0.13)  # scales less 1 that are tried first: as it is; the second one is a crop; the first one is
REACH = 0.3  # scale less 1, and shift in half sides, go no further than this
GRID = 8  # cells on a side in which the difference is averaged
FLAT = 4.0  # grey levels of spread that even a plain picture is given
HOPELESS = 1.0  # apart on the middle thumbnail: not looked at more closely
SURE = 0.1  # apart up to which nobody looks again the other way round
KEPT = 2**16  # thumbnails kept in memory, 3 KiB each
AT_ONCE = 256  # pairs compared at a time: 40 MB
FRAMES = 3  # of a video that are compared


class Copies:
    """Measures how far candidates are from being copies of a positive. Keeps thumbnails of what it has seen."""

    def __init__(self) -> None:
        self._look = functools.lru_cache(maxsize=KEPT)(thumbnail)

    def apart(self, asked: Sequence[tuple[Sequence[Item], Sequence[Item]]]) -> list[list[float | None]]:
        """For (positives, items) of each query: of each item the distance to the nearest positive it can be compared with.

        Of items with pictures it is `distances` of the two pictures that differ most; their words have to be the same. Of
        texts it is 0 where they differ in case, spaces and a full stop at most. None for all others: a number or a name more or
        less makes another answer, and only a judge can tell a paraphrase. Instructions do not count.
        """
        made: list[list[float | None]] = [[None] * len(items) for _, items in asked]
        pairs: list[_Pair] = []
        for row, (golds, items) in enumerate(asked):
            for g, gold in enumerate(golds):
                words, shown = _words(gold.text), _shown(gold)
                for n, item in enumerate(items):
                    others = _shown(item)
                    if _words(item.text) != words or len(others) != len(shown):
                        continue
                    if not shown:
                        made[row][n] = 0.0
                    pairs += [_Pair(row, n, g, *both) for both in zip(shown, others, strict=True)]
        for (row, n), value in self._nearest(pairs).items():
            made[row][n] = value
        return made

    def _nearest(self, pairs: Sequence["_Pair"]) -> dict[tuple[int, int], float]:
        """By query and item: of the positives the nearest, each by its worst picture."""
        worst: dict[tuple[int, int, int], float] = {}
        for start in range(0, len(pairs), AT_ONCE):
            seen = [(pair, self._look(pair.one), self._look(pair.other)) for pair in pairs[start : start + AT_ONCE]]
            part = [(pair, one, other) for pair, one, other in seen if one is not None and other is not None]
            # An item is its worst picture, and one that cannot be looked at is the worst.
            worst |= {pair[:3]: np.inf for pair, one, other in seen if one is None or other is None}
            if not part:
                continue
            values = distances(np.stack([one for _, one, _ in part]), np.stack([other for _, _, other in part]))
            # As it is kept on disk, so that it is the same number before and after.
            for (pair, *_), value in zip(part, values.round(4).astype(np.float32).tolist(), strict=True):
                worst[pair[:3]] = max(worst.get(pair[:3], 0.0), value)
        nearest: dict[tuple[int, int], float] = {}
        for (row, n, _), value in worst.items():
            if np.isfinite(value):
                nearest[row, n] = min(nearest.get((row, n), value), value)
        return nearest


class _Pair(NamedTuple):
    """A picture of a positive and one of an item: number of the query, of the item, of the positive."""

    row: int
    item: int
    gold: int
    one: Picture
    other: Picture


def _words(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(" .")


def _shown(item: Item) -> tuple[Picture, ...]:
    """The pictures, and of a video the first frame, the last, and those evenly between."""
    places = {round(n * (len(item.video) - 1) / (FRAMES - 1)) for n in range(FRAMES)} if item.video else ()
    return (*item.images, *(item.video[n] for n in sorted(places)))


def thumbnail(picture: Picture) -> UInt8[np.ndarray, "s s 3"] | None:
    """What is compared of a picture; None of one that cannot be read, which whoever needs it will say."""
    try:
        shown = open_picture(picture)
    except BadMedia:
        return None
    return np.asarray(shown.resize((SIDES[-1], SIDES[-1]), Image.Resampling.BILINEAR), dtype=np.uint8)


def distances(ones: UInt8[np.ndarray, "m s s 3"], others: UInt8[np.ndarray, "m s s 3"]) -> Float[np.ndarray, " m"]:
    """How far two thumbnails of each pair are apart, laid over each other as well as shift and scale allow.

    The root of the mean square, over colours, of what is left in the worst cell of a grid, in standard deviations of the
    picture that lies still: 0 is the same; recompression stays below 0.2, another picture of the same kind is mostly above 0.5.
    At least `HOPELESS` for what is far apart, which is not looked at in full. The smaller of two values, since either picture
    may lie still: one that was cropped is found more easily inside the other than the other in it.
    """
    one, other = ones.astype(np.float32), others.astype(np.float32)
    made = _distances(one, other)
    again = np.flatnonzero((made > SURE) & (made <= 1.5 * HOPELESS))
    if len(again):
        made[again] = np.minimum(made[again], _distances(other[again], one[again]))
    return made


def _distances(one: Float32[np.ndarray, "m s s 3"], other: Float32[np.ndarray, "m s s 3"]) -> Float[np.ndarray, " m"]:
    """The others are laid over the ones."""
    grey = [_pyramid(picture.mean(axis=-1)) for picture in (one, other)]
    place = np.zeros((len(one), 4), dtype=np.float32)
    least = np.full(len(one), np.inf)
    for start in STARTS:
        tried = np.zeros_like(place)
        tried[:, :2] = start
        for _ in range(STEPS[0]):
            tried = _step(grey[0][0], grey[1][0], tried)
        rest = np.abs(_rest(grey[0][0], grey[1][0], tried)).mean(axis=(1, 2))
        place[rest < least] = tried[rest < least]
        least = np.minimum(rest, least)
    for _ in range(STEPS[1]):
        place = _step(grey[0][1], grey[1][1], place)
    middle = _worst(_rest(grey[0][1], grey[1][1], place), grey[0][1])
    made, near = np.maximum(middle, HOPELESS), np.flatnonzero(middle <= HOPELESS)
    if len(near):
        fine, place = [levels[2][near] for levels in grey], place[near]
        for _ in range(STEPS[2]):
            place = _step(fine[0], fine[1], place)
        made[near] = _worst(_rest(one[near], other[near], place), one[near])
    return made


def _pyramid(grey: Float32[np.ndarray, "m s s"]) -> list[Float32[np.ndarray, "m _ _"]]:
    """Smaller ones first."""
    made = [grey]
    while made[0].shape[1] > SIDES[0]:
        half = made[0].shape[1] // 2
        made.insert(0, made[0].reshape(-1, half, 2, half, 2).mean(axis=(2, 4)))
    return made


class _Laid:
    """Pictures resampled where a scale and a shift, of width and of height, lay them: [x scale - 1, y scale - 1, x, y].

    Coordinates go from -1 to 1, and outside there is nothing.
    """

    def __init__(self, pictures: np.ndarray, place: Float32[np.ndarray, "m 4"]):
        side = pictures.shape[1]
        self.at = (np.arange(side, dtype=np.float32) + 0.5) / side * 2 - 1
        (x, fx, inside_x), (y, fy, inside_y) = (self._axis(place[:, n : n + 1], place[:, n + 2 : n + 3], side) for n in (0, 1))
        more = (1,) * (pictures.ndim - 3)
        m = np.arange(len(pictures))[:, None]
        upper, lower = pictures[m, y], pictures[m, y + 1]
        down = lower - upper
        rows = upper + down * fy.reshape(*fy.shape, 1, *more)
        column = x.reshape(len(x), 1, side, *more)
        self.fx = fx.reshape(len(fx), 1, side, *more)
        left = np.take_along_axis(rows, column, axis=2)
        self.right = np.take_along_axis(rows, column + 1, axis=2) - left
        self.values = left + self.right * self.fx
        self._down, self._column = down, column
        self.inside = (inside_y[:, :, None] & inside_x[:, None, :]).reshape(len(x), side, side, *more)

    def _axis(self, scale: np.ndarray, shift: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The pixel before each place, how far beyond it the place is, and whether it is inside."""
        exact = ((1 + scale) * self.at + shift + 1) * (side / 2) - 0.5
        held = np.clip(exact, 0, side - 1.001)
        before = held.astype(np.int64)
        return before, held - before, (exact >= -0.5) & (exact <= side - 0.5)

    def slopes(self) -> tuple[np.ndarray, np.ndarray]:
        """Change of the values per unit of x and of y."""
        half = len(self.at) / 2
        left, right = (np.take_along_axis(self._down, self._column + n, axis=2) for n in (0, 1))
        return self.right * half * self.inside, (left + (right - left) * self.fx) * half * self.inside


def _step(
    ones: Float32[np.ndarray, "m _ _"], others: Float32[np.ndarray, "m _ _"], place: Float32[np.ndarray, "m 4"]
) -> Float32[np.ndarray, "m 4"]:
    """One Gauss-Newton step towards the place where the others lie over the ones."""
    laid = _Laid(others, place)
    x, y = laid.slopes()
    each = np.stack([x * laid.at, y * laid.at[:, None], x, y], axis=1).reshape(len(ones), 4, -1)
    rest = ((laid.values - ones) * laid.inside).reshape(len(ones), -1, 1)
    square = each @ each.transpose(0, 2, 1)
    damped = 1e-3 * np.trace(square, axis1=1, axis2=2) / 4 + 1e-3
    square = square + damped[:, None, None] * np.eye(4, dtype=np.float32)
    return np.clip(place - np.linalg.solve(square, each @ rest)[..., 0], -REACH, REACH).astype(np.float32)


def _rest(ones: np.ndarray, others: np.ndarray, place: Float32[np.ndarray, "m 4"]) -> np.ndarray:
    """What is left of the ones, where both are, when the others are laid over them."""
    laid = _Laid(others, place)
    return (laid.values - ones) * laid.inside


def _worst(rest: np.ndarray, ones: np.ndarray) -> Float[np.ndarray, " m"]:
    """`rest` in the worst cell, in standard deviations of the ones."""
    cell = rest.shape[1] // GRID
    means = rest.reshape(len(rest), GRID, cell, GRID, cell, -1).mean(axis=(2, 4))
    worst = np.sqrt((means**2).mean(axis=-1)).max(axis=(1, 2))
    spread = np.sqrt(ones.reshape(len(ones), rest.shape[1] ** 2, -1).var(axis=1).mean(axis=-1))
    return worst / np.maximum(spread, FLAT)
