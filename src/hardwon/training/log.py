"""What a training tells while it runs: rows of metrics, and the line under the bar."""

import json
import math
import statistics
import sys
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from hardwon.artifacts import write_atomically
from hardwon.training.loop import Settings, Step
from hardwon.training.trackers import tracking

Row = dict[str, Any]
MIB = 2**20
STATUS = Path("/proc/self/status")


def step_row(step: Step, settings: Settings, device: torch.device, temperature: float | None = None) -> Row:
    """The row of an update.

    `learning_rate` is that of every part without one of its own in `settings.rates`, `rate` its share of the peak, `source` the
    data set that the batch is of. `items` are those of all processes together, `masked` the pairs that were not compared
    because they are known to belong together; `memory_mib` is this process's, see `memory_mib`.
    """
    row = {
        "step": step.number + 1,
        "loss": round(step.loss, 6),
        "gradient_norm": round(step.norm, 6),
        "rate": round(step.rate, 6),
        "learning_rate": float(f"{settings.learning_rate * step.rate:.6g}"),
        "items": step.items,
        "masked": step.masked,
        "items_per_second": round(step.items / step.seconds, 1),
        "memory_mib": round(memory_mib(device), 1),
        "seconds": round(step.seconds, 3),
    }
    row |= {"source": step.source} if step.source else {}
    return row if temperature is None else row | {"temperature": round(temperature, 6)}


def in_words(row: Mapping[str, Any]) -> str:
    """A row in a few words, for the line under the bar."""
    speed, memory = row["items_per_second"], row["memory_mib"] / 1024
    return f"loss {row['loss']:.3f}  {speed:,.1f} items/s  lr {row['learning_rate']:.2g}  {memory:.2f} GiB"


class Spikes:
    """Finds losses that stand out from the last ones of the same data set: by five standard deviations and half of the mean.

    A batch holds examples of one data set, and what is a high loss of one is an ordinary one of another.
    """

    def __init__(self, window: int = 64, least: int = 12):
        self._seen: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=window))
        self._least = least

    def __call__(self, loss: float, source: str = "") -> float | None:
        """The usual loss if this one stands out, else None."""
        if not math.isfinite(loss):
            return None
        seen = self._seen[source]
        usual = statistics.fmean(seen) if len(seen) >= self._least else None
        spike = usual is not None and loss > max(usual + 5 * statistics.pstdev(seen), 1.5 * usual)
        seen.append(loss)
        return usual if spike else None


def memory_mib(device: torch.device) -> float:
    """Memory of this process, in MiB: on CUDA the most that was ever allocated there, elsewhere what is resident now.

    Where the system does not say what is resident now (anywhere but on Linux), the most that ever was.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    if STATUS.exists():
        kib = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmRSS:")).split()[1]
        return int(kib) / 1024
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (MIB if sys.platform == "darwin" else 1024)


def _rows(path: Path) -> list[Row]:
    """The rows of a log; a line that was cut off, wherever that was, is none."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    found = []
    for line in lines:
        with suppress(ValueError):
            row = json.loads(line)
            found += [row] if isinstance(row, dict) else []
    return found


@contextmanager
def metrics_log(out: Path | None, start: int, title: str, track: Sequence[str]) -> Iterator[Callable[[Row], None]]:
    """Append rows to `out/metrics.jsonl` and hand them to trackers.

    Rows after the step that a run goes on from are dropped first.

    Args:
        out: folder; nothing is written if None.
        start: finished updates that the run goes on from.
        title: of the training.
        track: names of trackers.
    """
    if out is None:
        with tracking(track, title=title) as tell:
            yield tell
        return
    path = out / "metrics.jsonl"
    rows = _rows(path)
    late = [row for row in rows if row.get("step", 0) > start]
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        tell = stack.enter_context(tracking(track, title=title, out=out, start=start, dropped=late))
        # All or nothing: a run that is killed right now has its log still.
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows if row.get("step", 0) <= start))
        file = stack.enter_context(open(path, "a", encoding="utf-8"))

        def log(row: Row) -> None:
            file.write(json.dumps(row) + "\n")
            file.flush()
            tell(row)

        yield log
