"""How many copies of a picture mining recognises without a judge, and how many other pictures it takes for copies.

    hardwon demo && python -m benchmarks.copies runs/demo

Pictures are the demo's emoji, drawn by two artists: the hardest case, since thousands differ in a mouth or a skin tone only.
Of some of them copies are made: compressed as JPEG, scaled to half, cropped at all sides or at two. The others are the 15
pictures whose thumbnails are nearest, without those whose thumbnails are the same. Intervals are Wilson's, at 95 %.
"""

import argparse
import random
import sys
import time
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from hardwon.errors import ArtifactError
from hardwon.mining.copies import distances, thumbnail
from hardwon.mining.settings import COPY
from hardwon.pictures import open_picture

NEAREST = 15


def encoded(picture: Image.Image, form: str = "PNG", **how: int) -> bytes:
    made = BytesIO()
    picture.save(made, form, **how)
    return made.getvalue()


def cropped(picture: Image.Image, left: int, top: int, right: int, bottom: int) -> bytes:
    return encoded(picture.crop((left, top, picture.width - right, picture.height - bottom)))


CHANGES: dict[str, Callable[[Image.Image], bytes]] = {
    "JPEG, quality 60": lambda shown: encoded(shown, "JPEG", quality=60),
    "JPEG, quality 30": lambda shown: encoded(shown, "JPEG", quality=30),
    "half the size": lambda shown: encoded(shown.resize((shown.width // 2, shown.height // 2))),
    "3 % cut off at each side": lambda shown: cropped(shown, 2, 2, 2, 2),
    "6 % cut off at each side": lambda shown: cropped(shown, 4, 4, 4, 4),
    "10 % cut off at each side": lambda shown: cropped(shown, 7, 7, 7, 7),
    "8 % cut off left, 4 % below": lambda shown: cropped(shown, 6, 0, 0, 3),
}


def wilson(hits: int, of: int) -> tuple[float, float]:
    """The interval of a share at 95 %."""
    p, z = hits / of, 1.96
    middle, half = p + z * z / (2 * of), z * (p * (1 - p) / of + z * z / (4 * of * of)) ** 0.5
    return max(0.0, (middle - half) / (1 + z * z / of)), min(1.0, (middle + half) / (1 + z * z / of))


def shown(hits: int, of: int) -> str:
    low, high = wilson(hits, of)
    return f"{hits / of:.1%} [{low:.1%}, {high:.1%}]"


def look(picture: Path | bytes) -> np.ndarray:
    made = thumbnail(picture)
    assert made is not None
    return made


def main(arguments: Sequence[str]) -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.copies", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="of a demo")
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(arguments)
    files = [p for style in ("noto", "twemoji") for p in sorted((asked.folder / "data/pictures" / style).glob("*.png"))]
    if not files:
        raise ArtifactError(f"{asked.folder} holds no data/pictures: make it with `hardwon demo --out {asked.folder}`")
    looks = np.stack([look(path) for path in files])
    some = random.Random(asked.seed).sample(range(len(files)), min(asked.pictures, len(files)))
    table = Table("what", "pairs", f"taken for copies (apart <= {COPY:g})", title=f"{len(some)} of {len(files):,} emoji")
    for name, change in CHANGES.items():
        copies = np.stack([look(change(open_picture(files[n]))) for n in some])
        table.add_row(name, f"{len(some)}", shown(int((distances(looks[some], copies) <= COPY).sum()), len(some)))
    cells = looks.reshape(len(looks), -1).astype(np.float32)
    taken, seen, queries, clock = [], 0, 0, 0.0
    for n in some:
        others = [m for m in np.argsort(((cells - cells[n]) ** 2).mean(axis=1))[: 2 * NEAREST] if (cells[m] != cells[n]).any()]
        near = np.array(others[:NEAREST])
        start = time.process_time()
        apart = distances(np.repeat(looks[n : n + 1], len(near), axis=0), looks[near])
        clock += time.process_time() - start
        seen, queries = seen + len(near), queries + bool((apart <= COPY).any())
        taken += [f"{apart[k]:.2f} {files[n].stem} | {files[m].stem}" for k, m in enumerate(near) if apart[k] <= COPY]
    table.add_row(f"the {NEAREST} nearest other pictures", f"{seen:,}", shown(len(taken), seen))
    table.add_row("pictures of which any other is", f"{len(some)}", shown(queries, len(some)))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    console.print(table)
    console.print(f"{1000 * clock / seen:.2f} ms of a core for a pair. Others that were taken for copies:")
    console.print("\n".join(sorted(taken)), soft_wrap=True)


if __name__ == "__main__":
    main(sys.argv[1:])
