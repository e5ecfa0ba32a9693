"""Running a study: cells in the order that their needs allow, in some processes; what is there already is not done again."""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from hardwon.artifacts import environment, write_json
from hardwon.errors import HardwonError
from hardwon.progress import bar
from studies.cells import Cell, run_cell
from studies.material import Material, prepare, said
from studies.plan import Reranking, Suite


def study(
    suite: Suite, folder: Path, seeds: Sequence[int], *, workers: int = 2, cache: Path | None = None, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Run what is missing of a suite; gives the results of all cells.

    A run that was killed goes on: cells whose file is there are done, the ones under way begin anew.

    Args:
        suite: the plan.
        folder: of the material and the results.
        seeds: a training of each entry for every one of them.
        workers: processes, each with one thread; 0 for none but this one.
        cache: of downloaded assets.
        say: told what is happening.
    """
    began, spent = time.perf_counter(), time.process_time()
    known = prepare(folder / material_of(suite), suite.scale.size, cache=cache, say=say)
    prepared = {"seconds": round(time.perf_counter() - began, 1), "cpu": round(time.process_time() - spent, 1)}
    late = [entry for entry in suite.entries if isinstance(entry, Reranking) and not entry.judge]  # nothing waits for them
    early = [entry for entry in suite.entries if entry not in late]
    cells = [Cell(suite, e.name, seed, folder / suite.name, known) for some in (early, late) for seed in seeds for e in some]
    done = {(c.entry, c.seed): row for c in cells if (row := finished(c)) is not None}
    note(folder / suite.name, suite, prepared, len(cells) - len(done))
    left = [c for c in cells if (c.entry, c.seed) not in done]
    if left:
        with bar("cells", len(cells), "cells") as advance:
            advance(len(done))
            for cell, row in _work(left, set(done), folder / material_of(suite), workers):
                if isinstance(row, str):
                    say(f"{cell.entry}, seed {cell.seed}, failed: {row}")
                    advance(1)
                else:
                    done[cell.entry, cell.seed] = row
                    advance(1, f"{cell.entry}, seed {cell.seed}: {told(row)}")
    return [done[c.entry, c.seed] for c in cells if (c.entry, c.seed) in done]


def material_of(suite: Suite) -> str:
    """Name of the folder of data and features: suites of one size share it."""
    collages, queries, concepts, *more = said(suite.scale.size)
    return "-".join(map(str, ("material", collages, queries, concepts or "all", *more)))


def finished(cell: Cell) -> dict[str, Any] | None:
    """The result of a cell, if it is there and made from the same."""
    if not cell.file.is_file() or not cell.weights.exists():
        return None
    row = json.loads(cell.file.read_text(encoding="utf-8"))
    return row if row["made from"] == cell.made_from else None


def note(folder: Path, suite: Suite, prepared: dict[str, float], missing: int) -> None:
    """One line for each start of a run: when, on what, what the preparation took."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "runs.json"
    rows = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    rows.append({"began": time.time(), "cells missing": missing, "prepared": prepared, "suite": suite.name} | environment())
    write_json(file, rows)


def _work(
    left: list[Cell], done: set[tuple[str, int]], material: Path, workers: int
) -> Iterator[tuple[Cell, dict[str, Any] | str]]:
    """Cells as they are done, each after what it needs, with the result or why there is none; else in the order of the plan."""
    failed: set[tuple[str, int]] = set()
    under_way: dict[Future, Cell] = {}
    pool = _pool(workers)
    try:
        while left or under_way:
            for cell in list(left):
                needs = [(name, cell.seed) for name in cell.suite.entry(cell.entry).needs]
                lost = [name for name, seed in needs if (name, seed) in failed]
                if lost:
                    left.remove(cell)
                    failed.add((cell.entry, cell.seed))
                    yield cell, f"it needs {lost[0]}, which failed"
                elif set(needs) <= done and len(under_way) < max(workers, 1):
                    left.remove(cell)
                    under_way[pool.submit(_cell, cell, str(material))] = cell
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                cell, row = under_way.pop(future), future.result()
                (failed if isinstance(row, str) else done).add((cell.entry, cell.seed))
                yield cell, row
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _pool(workers: int) -> Executor:
    """Processes; or this one, which then does one cell at a time."""
    if workers:
        return ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_begin, initargs=(True,))
    _begin(False)
    return _Here()


class _Here(Executor):
    """Does what it is given at once."""

    def submit(self, fn: Callable[..., Any], /, *given: Any) -> Future:  # type: ignore[override]
        """A future that is done."""
        made: Future = Future()
        made.set_result(fn(*given))
        return made


def told(row: dict[str, Any]) -> str:
    """A result in a few words."""
    cpu = sum(row["cpu"].values())
    return (f"validation {100 * row['validation']:.1f}, " if "validation" in row else "") + f"{cpu:.0f} CPU s"


def _begin(worker: bool) -> None:
    import torch

    torch.set_num_threads(1)
    if worker:
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # the bars of this process would run into the one of all cells


def _end_with(parent: int) -> None:
    """A worker whose parent was killed must not go on: it would do the cells of the next run twice."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


@cache
def _material(folder: str, thinned: bool) -> Material:
    """Loaded once by each process, and used by all of its cells."""
    return Material.load(Path(folder), thinned=thinned)


def _cell(cell: Cell, material: str) -> dict[str, Any] | str:
    """The result, or why there is none: one row that cannot be trained does not stop the others."""
    try:
        return run_cell(cell, _material(material, not cell.suite.backbone))
    except HardwonError as error:
        return str(error)
