"""Near copies: pictures that were encoded or resized again, and texts that differ in little."""

import re
import unicodedata
import zlib
from collections import defaultdict
from collections.abc import Sequence

import faiss
import numpy as np
from jaxtyping import Float, Num, UInt8
from PIL import Image

from hardwon.items import Picture
from hardwon.pictures import open_picture

CELLS, COARSE = 16, 8  # cells on a side of a thumbnail, and of the one that is searched
NEAR, ALIKE = 0.17, 0.11  # distance of coarse and of fine thumbnails, in standard deviations, up to which pictures are the same
FLAT = 4.0  # standard deviation that even a plain picture is given
SHINGLE, BANDS, ROWS = 5, 16, 4  # characters of a shingle; 16 x 4 smallest hashes find a Jaccard of 0.7 in 98 of 100 cases
OVERLAP = 0.7  # Jaccard of shingles, which one word of a dozen changes to about 0.75
_PRIME = (1 << 61) - 1


def look(picture: Picture) -> UInt8[np.ndarray, " cells"]:
    """A thumbnail: what stays of a picture when it is encoded or resized again.

    Raises:
        BadMedia: a picture that cannot be read.
    """
    image = open_picture(picture).convert("RGB").resize((CELLS, CELLS), Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.uint8).ravel()


class Pictures:
    """Finds near copies of pictures among many, by their thumbnails."""

    def __init__(self, thumbnails: UInt8[np.ndarray, "n cells"]):
        self.thumbnails = thumbnails
        self.index = faiss.IndexFlatL2(COARSE * COARSE * 3)
        self.index.add(_coarse(thumbnails))  # pyright: ignore[reportCallIssue]

    def find(self, thumbnails: UInt8[np.ndarray, "q cells"]) -> list[list[int]]:
        """For each picture the positions of those that show the same."""
        limits, _, near = self.index.range_search(_coarse(thumbnails), NEAR**2)  # pyright: ignore[reportCallIssue]
        found = []
        for row, thumbnail in enumerate(thumbnails):
            those = np.sort(near[limits[row] : limits[row + 1]])
            found.append([int(n) for n in those if distance(thumbnail, self.thumbnails[n]) <= ALIKE])
        return found


def _coarse(thumbnails: UInt8[np.ndarray, "n cells"]) -> Float[np.ndarray, "n coarse"]:
    """Coarser thumbnails in units of their own spread, so that a squared distance is the mean over cells."""
    each = CELLS // COARSE
    cells = (
        thumbnails.reshape(-1, COARSE, each, COARSE, each, 3).mean(axis=(2, 4), dtype=np.float32).reshape(len(thumbnails), -1)
    )
    return cells / (np.maximum(cells.std(axis=1, keepdims=True), FLAT) * np.sqrt(cells.shape[1], dtype=np.float32))


def distance(one: Num[np.ndarray, " n"], two: Num[np.ndarray, " n"]) -> float:
    """Mean difference of two thumbnails, in standard deviations of the one with more contrast."""
    a, b = one.astype(np.float64), two.astype(np.float64)
    return float(np.sqrt(((a - b) ** 2).mean()) / max(a.std(), b.std(), FLAT))


def normal(text: str) -> str:
    """A text without what does not change its meaning: case, punctuation, spaces, forms of the same letter."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))


class Texts:
    """Finds texts that share most of their words with others, by MinHash."""

    def __init__(self, texts: Sequence[str], seed: int = 0):
        draw = np.random.default_rng(seed)
        self.factors = draw.integers(1, 1 << 31, (BANDS * ROWS, 1), dtype=np.uint64)
        self.shifts = draw.integers(0, 1 << 31, (BANDS * ROWS, 1), dtype=np.uint64)
        self.shingles = [_shingles(text) for text in texts]
        self.bands: dict[tuple[int, bytes], list[int]] = defaultdict(list)
        for n, shingles in enumerate(self.shingles):
            for band in self._bands(shingles):
                self.bands[band].append(n)

    def find(self, text: str) -> list[int]:
        """Positions of the texts whose shingles overlap with this one's by `OVERLAP` or more."""
        shingles = _shingles(text)
        near = sorted({n for band in self._bands(shingles) for n in self.bands.get(band, ())})
        return [n for n in near if _overlap(shingles, self.shingles[n])]

    def _bands(self, shingles: frozenset[int]) -> list[tuple[int, bytes]]:
        values = np.fromiter(shingles, dtype=np.uint64)
        smallest = ((self.factors * values + self.shifts) % np.uint64(_PRIME)).min(axis=1)
        return [(n, smallest[n * ROWS : (n + 1) * ROWS].tobytes()) for n in range(BANDS)]


def alike(one: str, two: str) -> bool:
    """Whether the shingles of two texts overlap by `OVERLAP` or more."""
    return _overlap(_shingles(one), _shingles(two))


def _overlap(one: frozenset[int], two: frozenset[int]) -> bool:
    return len(one & two) >= OVERLAP * len(one | two)


def _shingles(text: str) -> frozenset[int]:
    padded = f" {text} "
    return frozenset(zlib.crc32(padded[n : n + SHINGLE].encode()) for n in range(max(1, len(padded) - SHINGLE + 1)))
