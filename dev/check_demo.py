"""Check what a run of the demo made: `python dev/check_demo.py runs/demo`.

The trained model must beat the untrained one by more than chance explains, the page must be there, and the model must be an
ordinary sentence-transformers model: the same vectors where hardwon cannot be imported.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console

from hardwon import Embedder, Item, Report
from hardwon.data import images
from hardwon.pictures import open_picture

UNTRAINED, TRAINED = "untrained", ("round 1", "round 2")
TEXT = "a red apple"
TOLERANCE = 1e-4  # of a component of a unit vector; the two ways compute attention by different kernels

# Runs in a process of its own, in which importing hardwon fails.
PLAIN = """
import sys
sys.modules["hardwon"] = None
sys.modules["torchvision"] = None  # beside some builds of torch transformers cannot be imported with it
import numpy as np
from sentence_transformers import SentenceTransformer
model, picture, text, out = sys.argv[1:]
made = SentenceTransformer(model, local_files_only=True)
one = made.encode([{"text": text}], normalize_embeddings=True)
other = made.encode([{"image": picture}], normalize_embeddings=True)
np.save(out, np.concatenate([one, other]))
"""

console = Console(highlight=False, soft_wrap=True)


def main(run: Path) -> int:
    """Check a run; returns the exit code."""
    problems = [*better(run), *page(run), *ordinary(run)]
    for problem in problems:
        console.print(f"[red]FAILED[/] {problem}")
    return 1 if problems else 0


def better(run: Path) -> list[str]:
    """The trained model against the untrained one, on the same questions."""
    reports = {}
    for file in run.glob("*/report.json"):
        report = Report.from_json(json.loads(file.read_text(encoding="utf-8")))
        reports[report.label] = report
    missing = {UNTRAINED, *TRAINED} - set(reports)
    if missing:
        return [f"{run} holds no report of {', '.join(sorted(missing))}, only of {', '.join(sorted(reports)) or 'nothing'}"]
    passed = []
    for label in TRAINED:
        overall = next(d for d in reports[label].diff(reports[UNTRAINED]).means if d.name == "all")
        value = overall.value
        console.print(
            f"{label} - {UNTRAINED}: {100 * value.mean:+.1f} points "
            f"(95 %: {100 * value.low:+.1f} to {100 * value.high:+.1f}): {overall.verdict}"
        )
        passed.append(value.low > 0)
    return [] if any(passed) else ["no round of training is above the untrained model beyond its interval"]


def page(run: Path) -> list[str]:
    """The page that a person reads."""
    found = [file for file in run.glob("*/report.html") if file.stat().st_size > 0]
    for file in found:
        console.print(f"{file.relative_to(run)}: {file.stat().st_size / 1e6:.1f} MB")
    return [] if found else [f"{run} holds no report.html"]


def ordinary(run: Path) -> list[str]:
    """The same vectors of a text and a picture with hardwon and without it."""
    model = run / "round2" / "model"
    first = images(run / "data" / "pictures" / "noto")[0].images[0]
    assert isinstance(first, Path)
    with tempfile.TemporaryDirectory() as scratch:
        # Opaque, since how transparency is painted is a choice of whoever opens the file, not of the model.
        picture, out = Path(scratch) / "picture.png", Path(scratch) / "vectors.npy"
        open_picture(first).save(picture)
        done = subprocess.run(
            [sys.executable, "-c", PLAIN, str(model), str(picture), TEXT, str(out)],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        if done.returncode:
            return [f"{model} does not load without hardwon:\n{done.stderr.strip()[-2000:]}"]
        plain = np.load(out)
        # With the cache of picture features, as in training and evaluation: the way that differs most from the plain one.
        ours = Embedder.load(model, vision_cache=Path(scratch) / "features").encode([Item(TEXT), Item(images=(picture,))])
    gap = float(np.abs(plain - ours).max())
    console.print(f"{model.relative_to(run)} without hardwon: vectors of a text and a picture differ by {gap:.1e} at most")
    return [] if gap <= TOLERANCE else [f"the vectors differ by {gap:.1e}, more than {TOLERANCE:.0e}"]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python dev/check_demo.py RUN")
    sys.exit(main(Path(sys.argv[1])))
