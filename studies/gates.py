"""What a gate's caution costs: the gates of a suite's rerankers, learned again at other levels. Nothing is trained."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from hardwon.errors import ArtifactError
from hardwon.evaluation import learn_fusion
from hardwon.models import CachedEncoder
from hardwon.progress import bar
from studies.cells import RERANKED, Cell, load, load_reranker
from studies.material import Material, prepare
from studies.measure import measure
from studies.plan import Reranking, Suite
from studies.run import finished, material_of
from studies.trunk import Encoding, Once, Scoring

LEVELS = (0.95, 0.8, 0.6)  # the library's default first


@dataclass(frozen=True)
class Gates:
    """What rerankers gain on test behind gates of several levels.

    Attributes:
        levels: of the gates.
        gains: of each reranker, by its title, in points of P@1 over its embedder: seeds x levels.
    """

    levels: tuple[float, ...]
    gains: dict[str, np.ndarray]

    def __rich__(self) -> Table:
        table = Table(title="P@1 over the embedder in points, mean of seeds (worst seed), by level of the gate")
        for heading in ("reranker", "seeds", *(f"{level:g}" for level in self.levels)):
            table.add_column(heading, justify="left" if heading == "reranker" else "right")
        for title, gains in self.gains.items():
            table.add_row(title, f"{len(gains)}", *map(_said, gains.T))
        table.add_section()
        every = np.concatenate(list(self.gains.values()))
        table.add_row("all", f"{len(every)}", *map(_said, every.T), style="bold")
        return table


def gates(suite: Suite, folder: Path, seeds: Sequence[int], levels: Sequence[float] = LEVELS) -> Gates:
    """Of the rerankers that a run has trained.

    Args:
        suite: the plan.
        folder: as of `studies.run.study`.
        seeds: that were run.
        levels: see `learn_fusion`.

    Raises:
        ArtifactError: no reranker of the suite was trained there with these seeds.
    """
    place, home = folder / material_of(suite), folder / suite.name
    known = prepare(place, suite.scale.size) if home.is_dir() else ""  # nothing is drawn where nothing was trained
    rows = [entry for entry in suite.entries if isinstance(entry, Reranking) and not entry.judge]
    cells = [(row, cell) for row in rows for seed in seeds if finished(cell := Cell(suite, row.name, seed, home, known))]
    if not cells:
        raise ArtifactError(
            f"{home} holds no reranker of these seeds: python -m studies run --suite {suite.name} --out {folder}"
        )
    material = Material.load(place)
    gains: dict[str, list[list[float]]] = {}
    with bar("gates", len(cells), "rerankers") as advance:
        for row, cell in cells:
            gains.setdefault(row.title, []).append(_gains(row, cell, material, levels))
            advance(1, f"{cell.entry}, seed {cell.seed}")
    return Gates(tuple(levels), {title: np.array(each) for title, each in gains.items()})


def _gains(row: Reranking, cell: Cell, material: Material, levels: Sequence[float]) -> list[float]:
    encoder = CachedEncoder(Encoding(load(cell.of(row.base), material)), None)
    reader = Once(Scoring(load_reranker(cell, material)))
    learned = [learn_fusion(encoder, reader, material.validation, depth=RERANKED, level=level) for level in levels]
    before = measure(encoder, material.test).mean
    return [100 * (measure(encoder, material.test, one.fused).mean - before) for one in learned]


def _said(gains: np.ndarray) -> str:
    return f"{gains.mean():+.2f} ({gains.min():+.2f})"
