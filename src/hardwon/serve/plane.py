"""The map of an index: its vectors in two dimensions, by t-SNE on their principal components.

It is computed by a process of its own at a low priority, so that requests do not wait for it, and kept beside the index.

    python -m hardwon.serve.plane VECTORS.safetensors OUT.safetensors
"""

import contextlib
import hashlib
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from hardwon import artifacts

log = logging.getLogger(__name__)
FILE = "map.safetensors"
MOST = 4000  # points; what takes longer than half a minute on one core nobody waits for
WIDTH = 50  # principal components that t-SNE looks at
PERPLEXITY, SEED = 30.0, 0
METHOD = "tsne 1"  # changes when the same vectors would be put elsewhere


def flattened(vectors: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, "n 2"]:
    """Each vector's place in the unit square; the same for the same vectors.

    Few vectors, or vectors that are all the same, are placed by their principal components alone.

    Args:
        vectors: of unit length.

    Source: van der Maaten & Hinton, "Visualizing Data using t-SNE" (2008); scikit-learn's Barnes-Hut form.
    """
    centred = vectors - vectors.mean(axis=0)
    n = len(vectors)
    _, values, axes = np.linalg.svd(centred, full_matrices=False)
    kept = centred @ axes[: min(WIDTH, n)].T
    made = np.zeros((n, 2))
    made[:, : kept.shape[1]] = kept[:, :2]
    if n > 4 and values[0] > 1e-6:
        from sklearn.manifold import TSNE

        start: Any = made / max(float(made[:, 0].std()), 1e-12) * 1e-4
        made = TSNE(2, perplexity=min(PERPLEXITY, (n - 1) / 3), init=start, random_state=SEED, n_jobs=1).fit_transform(kept)
    return _squared(made)


def _squared(points: Float[np.ndarray, "n 2"]) -> Float32[np.ndarray, "n 2"]:
    low, high = points.min(axis=0), points.max(axis=0)
    return np.where(high > low, (points - low) / np.where(high > low, high - low, 1), 0.5).astype(np.float32)


class Plane:
    """The places of some vectors, asked for by many and computed once.

    Args:
        ids: of the vectors.
        vectors: of unit length.
        folder: where it is kept for the next start; if that cannot be written, it is kept in memory.
    """

    def __init__(self, ids: Sequence[str], vectors: Float32[np.ndarray, "n d"], folder: Path):
        self._vectors, self._file = np.ascontiguousarray(vectors), folder / FILE
        digest = hashlib.blake2b("\n".join((METHOD, *ids)).encode(), digest_size=16)
        digest.update(self._vectors.data)
        self._key = digest.hexdigest()
        self._lock, self._process, self._began = threading.Lock(), None, 0.0
        self._points, self._error, self._closed = self._kept(), "", False

    def points(self) -> Float32[np.ndarray, "n 2"] | None:
        """The places; None while they are being computed, which the first call begins.

        Raises:
            RuntimeError: they could not be computed; the next call tries again.
        """
        with self._lock:
            if self._error:
                said, self._error, self._began = self._error, "", 0.0
                raise RuntimeError(said)
            if self._points is None and not self._began and not self._closed:
                self._began = time.monotonic()
                threading.Thread(target=self._make, name="hardwon-map", daemon=True).start()
            return self._points

    @property
    def computing(self) -> bool:
        """Whether it is being computed."""
        return bool(self._began) and self._points is None and not self._error

    @property
    def seconds(self) -> float:
        """How long it has been computing."""
        return time.monotonic() - self._began if self._began else 0.0

    def close(self) -> None:
        """Stop computing."""
        with self._lock:
            self._closed = True
            if self._process is not None:
                self._process.kill()

    def _kept(self) -> Float32[np.ndarray, "n 2"] | None:
        with contextlib.suppress(OSError, SafetensorError, KeyError), safe_open(self._file, "numpy") as file:
            points = file.get_tensor("points")
            if (file.metadata() or {}).get("key") == self._key and points.shape == (len(self._vectors), 2):
                return points
        return None

    def _make(self) -> None:
        try:
            made = self._computed()
        except Exception as error:
            log.exception("the map could not be computed")
            with self._lock:
                self._error = f"the map could not be computed ({type(error).__name__}); the server's log says why"
            return
        with self._lock:
            self._points = made
        with contextlib.suppress(OSError), artifacts.replacing(self._file) as draft:
            save_file({"points": made}, draft, metadata={"key": self._key})

    def _computed(self) -> Float32[np.ndarray, "n 2"]:
        with tempfile.TemporaryDirectory(prefix="hardwon-map-") as folder:
            given, out = Path(folder) / "vectors.safetensors", Path(folder) / "points.safetensors"
            save_file({"vectors": self._vectors}, given)
            # -P: a file in the folder where the server was started is not taken for a module.
            command = [sys.executable, "-P", "-m", "hardwon.serve.plane", str(given), str(out)]
            alone = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
            with self._lock:
                if self._closed:
                    raise RuntimeError("the server ends")
                self._process = subprocess.Popen(
                    command, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, env=os.environ | alone
                )
            if code := self._process.wait():
                raise RuntimeError(f"the process ended with {code}")
            return load_file(out)["points"]


def main(arguments: Sequence[str]) -> None:
    """See the module's text."""
    with contextlib.suppress(OSError):
        os.nice(10)
    save_file({"points": flattened(load_file(arguments[0])["vectors"])}, arguments[1])


if __name__ == "__main__":
    main(sys.argv[1:])
