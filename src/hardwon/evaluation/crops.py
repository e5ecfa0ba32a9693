"""Pictures that are cut out of others: windows of thumbnails propose, and an alignment of the pictures decides.

A picture is cut from another when there is a window of that one whose thumbnail is the picture's own. Some fixed windows are
searched for thumbnails that are about the same; from there the window's four sides are moved until the difference is smallest
(Gauss-Newton, as in image registration). What is left must be as small as between two copies of a whole picture, and the edges
must lie where those of the other lie. A plain shape, which is a part of every larger one, is no cut-out of any.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import NamedTuple

import faiss
import numpy as np
from jaxtyping import Float, Num, UInt8
from PIL import Image

from hardwon.evaluation.fingers import CELLS, FLAT, distance
from hardwon.items import Picture
from hardwon.pictures import open_picture

SIDES = (0.9, 0.8, 0.7, 0.6)  # of the windows that are searched, as shares of the picture's
SHIFTS = 3  # places of a window along a side
SHORTEST = 0.5  # share of a side that a cut-out must hold
COARSE = 4  # cells on a side of what is searched
LIKELY = 0.6  # distance, in standard deviations, up to which an alignment is tried
TRIES = 5  # alignments for each picture
NEAR, EDGES = (
    0.09,
    0.9,
)  # distance of thumbnails up to which, and correlation of their differences from which, they are the same
STEP, PLAIN = 0.05, 0.35  # a picture in which fewer neighbouring cells differ (by so many standard deviations) is plain
DETAIL = 128  # pixels on a side of the pictures that are aligned
STEPS = 10  # of an alignment at most
GAIN = 0.95  # a step must bring the squared difference below this share of it, or the alignment ends

Box = tuple[float, float, float, float]  # left, top, right, bottom as shares of the sides


class Cut(NamedTuple):
    """A picture that may be cut out of another, or the other way round.

    Attributes:
        one: number of the picture that is asked about.
        other: number of the picture that is known.
        inner: whether the one asked about is the cut-out.
        box: where about it lies.
        apart: distance of the thumbnails there.
    """

    one: int
    other: int
    inner: bool
    box: Box
    apart: float


def cuts(
    asked: Mapping[str, UInt8[np.ndarray, " cells"]],
    known: Mapping[str, UInt8[np.ndarray, " cells"]],
    pictures: Mapping[str, Picture],
    advance: Callable[[int], None],
) -> dict[str, tuple[str, ...]]:
    """For each picture the known ones that it is cut from, or that are cut from it, by key.

    Args:
        asked: thumbnails of the pictures that are looked for, as `fingers.look` makes them.
        known: the same of the pictures that are searched.
        pictures: all of them.
        advance: told of pictures of `asked` that are done.
    """
    names, others = list(asked), list(known)
    found: dict[str, tuple[str, ...]] = {}
    proposed = likely(np.stack(list(asked.values())), np.stack(list(known.values()))) if names and others else {}
    advance(len(names) - len(proposed))
    for one, some in sorted(proposed.items()):
        name, right = names[one], []
        for cut in some:
            other = others[cut.other]
            part, whole = (asked[name], pictures[other]) if cut.inner else (known[other], pictures[name])
            if other not in right and not plain(part) and is_cut(part, small(whole), cut.box):
                right.append(other)
        if right:
            found[name] = tuple(right)
        advance(1)
    return found


def boxes() -> list[Box]:
    """The windows that are searched."""
    made = []
    for side in SIDES:
        starts = np.linspace(0, 1 - side, SHIFTS).round(6).tolist()
        made += [(left, top, left + side, top + side) for top in starts for left in starts]
    return made


def likely(asked: UInt8[np.ndarray, "q cells"], known: UInt8[np.ndarray, "n cells"]) -> dict[int, list[Cut]]:
    """For each picture, by number, the few that it is most likely cut from, or that are cut from it.

    Args:
        asked: thumbnails, as `fingers.look` makes them.
        known: the same of the pictures that are searched.
    """
    best: dict[int, dict[tuple[int, bool], Cut]] = defaultdict(dict)
    wholes = {True: _seen(asked), False: _seen(known)}
    for box in boxes():
        for inner in (True, False):
            index = faiss.IndexFlatL2(COARSE * COARSE * 3)
            index.add(_seen(known, box) if inner else wholes[False])  # pyright: ignore[reportCallIssue]
            apart, near = index.search(wholes[True] if inner else _seen(asked, box), min(TRIES, len(known)))  # pyright: ignore[reportCallIssue]
            for one, column in np.argwhere(apart <= LIKELY**2).tolist():
                cut = Cut(one, int(near[one, column]), inner, box, float(apart[one, column]))
                there = best[one].setdefault((cut.other, inner), cut)
                if cut.apart < there.apart:
                    best[one][cut.other, inner] = cut
    return {one: sorted(cuts.values(), key=lambda cut: (cut.apart, cut.other))[:TRIES] for one, cuts in best.items()}


def _seen(thumbnails: UInt8[np.ndarray, "n cells"], box: Box = (0.0, 0.0, 1.0, 1.0)) -> Float[np.ndarray, "n coarse"]:
    """A window of each thumbnail in units of its own spread, so that a squared distance is the mean over cells."""
    across, down = _averages(box[0], box[2]), _averages(box[1], box[3])
    square = thumbnails.reshape(-1, CELLS, CELLS, 3).astype(np.float32)
    cells = np.einsum("yv,nvuc,xu->nyxc", down, square, across, optimize=True).reshape(len(thumbnails), -1)
    return cells / (np.maximum(cells.std(axis=1, keepdims=True), FLAT) * np.sqrt(cells.shape[1], dtype=np.float32))


def _averages(start: float, end: float) -> Float[np.ndarray, "coarse cells"]:
    """Means over the parts of cells between two points of a side."""
    edges = np.linspace(start * CELLS, end * CELLS, COARSE + 1, dtype=np.float32)
    cells = np.arange(CELLS)
    parts = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
    parts = np.maximum(parts, 0)
    return parts / parts.sum(axis=1, keepdims=True)


def small(picture: Picture) -> Image.Image:
    """A picture as it is aligned. Raises BadMedia for one that cannot be read."""
    shown = open_picture(picture).convert("RGB")
    return shown.resize((DETAIL, DETAIL), Image.Resampling.BILINEAR) if min(shown.size) > DETAIL else shown


def plain(thumbnail: UInt8[np.ndarray, " cells"]) -> bool:
    """Whether there is little more to see than a shape's outline."""
    return bool((np.abs(_differences(thumbnail)).max(axis=-1) > STEP * max(thumbnail.std(), FLAT)).mean() < PLAIN)


def is_cut(thumbnail: UInt8[np.ndarray, " cells"], whole: Image.Image, box: Box) -> bool:
    """Whether a thumbnail is that of a window of a picture near `box`."""
    goal, place = thumbnail.astype(np.float64), np.array(box)
    seen = _look(whole, place)
    for _ in range(STEPS):
        moved = _moved(goal, seen, whole, place) if distance(goal, seen) > NEAR else None
        if moved is None:
            break
        place, seen = moved
    if distance(goal, seen) > NEAR:
        return False
    one, two = _differences(goal), _differences(seen)
    return bool((one * two).sum() >= EDGES * np.sqrt((one**2).sum() * (two**2).sum()))


def _differences(thumbnail: Num[np.ndarray, " cells"]) -> Float[np.ndarray, "pairs 3"]:
    """Between cells that are neighbours."""
    square = thumbnail.reshape(CELLS, CELLS, 3).astype(np.float64)
    return np.concatenate([np.diff(square, axis=0).reshape(-1, 3), np.diff(square, axis=1).reshape(-1, 3)])


def _moved(
    goal: np.ndarray, seen: np.ndarray, whole: Image.Image, place: Float[np.ndarray, " 4"]
) -> tuple[np.ndarray, np.ndarray] | None:
    """The window after a step towards the thumbnail, and what is seen there; None where none makes the difference smaller."""
    step = 0.02
    slopes = []
    for side in range(4):
        towards = -step if (side > 1) == (place[side] + step > 1) and place[side] >= step else step
        slopes.append((_look(whole, place + towards * np.eye(4)[side]) - seen) / towards)
    matrix = np.stack(slopes, axis=1)
    lacking = goal - seen
    change = np.linalg.lstsq(matrix, lacking, rcond=1e-6)[0]
    for part in (1.0, 0.5, 0.25):
        tried = _inside(place + np.clip(part * change, -0.1, 0.1))
        found = _look(whole, tried)
        if ((goal - found) ** 2).sum() < GAIN * (lacking**2).sum():
            return tried, found
    return None


def _inside(place: Float[np.ndarray, " 4"]) -> Float[np.ndarray, " 4"]:
    """The nearest window that lies within the picture and is not too small."""
    made = place.clip(0, 1)
    for start, end in ((0, 2), (1, 3)):
        lacking = SHORTEST - (made[end] - made[start])
        if lacking > 0:
            made[start] = np.clip(made[start] - lacking / 2, 0, 1 - SHORTEST)
            made[end] = made[start] + SHORTEST
    return made


def _look(whole: Image.Image, place: Float[np.ndarray, " 4"]) -> Float[np.ndarray, " cells"]:
    width, height = whole.size
    left, top, right, bottom = place.clip(0, 1).tolist()
    cut = whole.resize(
        (CELLS, CELLS), Image.Resampling.BILINEAR, box=(left * width, top * height, right * width, bottom * height)
    )
    return np.asarray(cut, dtype=np.float64).ravel()
