"""Exact search by several processes: as `nearest`, bit for bit, since a score depends on its two vectors alone."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from hardwon.artifacts import replacing
from hardwon.search.retrieve import Found, nearest_below
from hardwon.spread.engines import Workers, spread
from hardwon.spread.tasks import by_ray


@dataclass(frozen=True)
class Asked:
    """Queries that are searched for together.

    Attributes:
        pool: name of the vectors that are searched.
        queries: rows of the queries' vectors.
        barred: for each, rows of the pool that it must not get.
    """

    pool: str
    queries: Sequence[int]
    barred: Sequence[Sequence[int]]


def nearest_of(
    queries: np.ndarray,
    pools: Mapping[str, np.ndarray],
    *,
    blocks: Sequence[Asked],
    depth: int,
    workers: Workers,
    below: Path,
    ceiling: float | None = None,
) -> Iterator[Found]:
    """The nearest vectors for the queries of each block, in their order.

    Args:
        queries: unit vectors, [q d].
        pools: unit vectors by name, [n d]; they are written to a file that all workers map.
        blocks: what is searched.
        depth: candidates for each query.
        workers: who searches.
        below: as of `SpreadEncoder`.
        ceiling: as of `nearest_below`.
    """
    below.mkdir(parents=True, exist_ok=True)
    numbers = {name: n for n, name in enumerate(pools)}
    held = {f"pool-{numbers[name]}": rows for name, rows in pools.items()} | {"queries": queries}
    # Named by its content from the start: another run beside this one may search other vectors.
    named = below / f"vectors-{_digest(held)}.safetensors"

    def write() -> None:
        with replacing(named) as neighbour:
            save_file({name: torch.from_numpy(np.ascontiguousarray(rows)) for name, rows in held.items()}, neighbour)

    def renew() -> None:
        if not named.exists():
            write()

    write()  # also over what a run that was killed has left
    task = {"kind": "nearest", "vectors": str(named.resolve()), "depth": depth, "ceiling": ceiling}
    rows = [
        [[numbers[b.pool], int(n), list(map(int, barred))] for n, barred in zip(b.queries, b.barred, strict=True)]
        for b in blocks
    ]
    found = spread(below, task, rows=rows, workers=workers, entry=by_ray, renew=renew)
    for block, output in zip(blocks, found, strict=True):
        if output is None:
            yield nearest_below(queries[list(block.queries)], pools[block.pool], depth, ceiling, exclude=block.barred)
        else:
            yield Found(output.arrays["ids"], output.arrays["scores"])
    named.unlink(missing_ok=True)


def _digest(held: Mapping[str, np.ndarray]) -> str:
    made = hashlib.blake2b(digest_size=16)
    for name, rows in held.items():
        made.update(f"{name} {rows.shape} {rows.dtype}\n".encode())
        made.update(np.ascontiguousarray(rows).data)
    return made.hexdigest()
