"""A benchmark by its name or its folder."""

from pathlib import Path

from hardwon.evaluation.files import read_benchmark
from hardwon.evaluation.task import Benchmark


def load_benchmark(name: str, root: Path | None = None) -> Benchmark:
    """The benchmark that lies at a path.

    Args:
        name: folder or file that `read_benchmark` takes.
        root: folder that `name` is relative to.
    """
    return read_benchmark(Path(name) if root is None else root / name)
