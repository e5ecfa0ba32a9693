"""What a store says when a bit of its files has flipped: an error, what it said before, or something else without an error.

    python -m benchmarks.flipped                   # both stores that keep files of their own, 200 bits each; a minute

A table of 120 rows is written in six batches. One bit at a time is flipped in a file of data, the table is opened anew, read
whole and searched, and the bit is flipped back. The embedded store keeps checksums; that it finds every flip is trial F4 of
`benchmarks.reliability`, and this sets another store beside it.
"""

import argparse
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from stocked import SPACE, entry, unit

from hardwon.search import stores

DATA = (".lance", ".safetensors", ".rows")
NAME, BATCHES, ROWS = "rows_1", 6, 20
ERROR, SAME, OTHER = "an error", "answers as before", "other rows or vectors, no error"


def write(kind: str, folder: Path) -> tuple[dict[str, str], np.ndarray]:
    """A table; gives its payloads by id, and the vectors in the order of the sorted ids as they are kept."""
    store, payloads = stores.create(kind, folder, NAME, SPACE), {}
    for batch in range(BATCHES):
        entries = [entry(batch * ROWS + n) for n in range(ROWS)]
        store.upsert(entries, unit(ROWS, batch))
        payloads |= {each.id: each.payload for each in entries}
    store.close()
    store = stores.opened(kind, folder, NAME, SPACE)
    vectors = store.vectors(sorted(payloads))
    store.close()
    return payloads, vectors


def look(kind: str, folder: Path, payloads: dict[str, str], vectors: np.ndarray) -> str:
    """What became of it."""
    try:
        store = stores.opened(kind, folder, NAME, SPACE)
        rows = {row.id: row.payload for row in store.rows()}
        found = store.vectors(sorted(payloads))
        store.search(unit(1, BATCHES - 1), 5)
        store.close()
    except BaseException as error:  # whatever it is: LanceDB's panics are no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        return ERROR
    return SAME if rows == payloads and np.array_equal(found, vectors) else OTHER


def flipped(kind: str, times: int, seed: int) -> Counter[str]:
    """How often each of the three came of a flipped bit."""
    made, rng = Counter[str](), random.Random(seed)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        payloads, vectors = write(kind, folder)
        files = [path for path in sorted(folder.rglob("*")) if path.suffix in DATA and path.is_file() and path.name[0] != "."]
        for n in range(times):
            path = files[n % len(files)]
            whole = path.read_bytes()
            at = rng.randrange(len(whole))
            path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << rng.randrange(8))]) + whole[at + 1 :])
            made[look(kind, folder, payloads, vectors)] += 1
            path.write_bytes(whole)
        if look(kind, folder, payloads, vectors) != SAME:
            raise RuntimeError("the table is not what it was, with every bit back in its place")
    return made


def main(arguments: Sequence[str]) -> None:
    """Flip, count, show."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flipped", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(arguments)
    table = Table("store", "bits", ERROR, SAME, OTHER)
    for kind in ("embedded", "lance"):
        made = flipped(kind, asked.times, asked.seed)
        table.add_row(kind, str(asked.times), *(str(made[what]) for what in (ERROR, SAME, OTHER)))
    Console(highlight=False, width=140).print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
