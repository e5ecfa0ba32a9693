"""Canaries: inputs whose vectors are kept with an index, so that a model or a library that gives others is found out.

A fingerprint covers weights and settings. It does not cover the libraries and the device that compute with them, and vectors
that drift make an index worse without any error. So the same inputs are encoded again, and compared.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from hardwon.artifacts import replacing
from hardwon.errors import ArtifactError
from hardwon.items import Item
from hardwon.models.embedder import Embedder
from hardwon.models.scorer import Encoder
from hardwon.randomness import generator
from hardwon.search.retrieve import as_float32

FILE = "canaries.safetensors"
COUNT, PICTURES = 100, 10
ALARM = 0.999  # mean cosine below which vectors are not what they were
_WORDS = (
    "red blue green small large old new quiet bright wooden river mountain city kitchen garden window door train bird horse "
    "invoice letter number table chart photograph painting market bridge cloud winter summer runs sleeps opens falls carries"
).split()


def canaries(encoder: Encoder) -> list[Item]:
    """The inputs for an encoder: texts, and some pictures for one that sees."""
    rng = generator(0, "canaries")
    seeing = isinstance(encoder, Embedder) and "image" in encoder.body.modalities
    pictures = [Item(images=(_picture(n),)) for n in range(PICTURES if seeing else 0)]
    texts = [Item(text=" ".join(rng.choice(_WORDS) for _ in range(rng.randint(1, 20)))) for _ in range(COUNT)]
    return [*pictures, *texts][:COUNT]


def keep(encoder: Encoder, folder: Path) -> None:
    """Encode the canaries and keep their vectors in the folder of an index."""
    encoder = _bare(encoder)
    vectors = as_float32(encoder.encode(canaries(encoder)))
    with replacing(folder / FILE) as neighbour:
        save_file({"vectors": vectors}, neighbour, metadata={"model": encoder.fingerprint})


def drift(encoder: Encoder, folder: Path, model: str) -> float | None:
    """Mean cosine of the canaries' vectors with what was kept; None if nothing was.

    Args:
        encoder: to encode them with.
        folder: of the index.
        model: fingerprint that the encoder must have.

    Raises:
        ArtifactError: what was kept cannot be read.
    """
    path = folder / FILE
    if not path.is_file() or encoder.fingerprint != model:
        return None
    try:
        with safe_open(path, "numpy") as file:
            kept, made_by = file.get_tensor("vectors"), (file.metadata() or {}).get("model")
    except (OSError, SafetensorError, KeyError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}): build the index again with --rebuild") from error
    if made_by != model:  # of a build that another has taken the place of
        return None
    encoder = _bare(encoder)
    now = as_float32(encoder.encode(canaries(encoder)))
    if now.shape != kept.shape:
        raise ArtifactError(
            f"{path} holds vectors of shape {list(kept.shape)}, not {list(now.shape)}: build again with --rebuild"
        )
    # As well as float64 can: identical vectors must give 1 whatever the rounding of their lengths.
    one, other = now.astype(np.float64), kept.astype(np.float64)
    cosines = (one * other).sum(axis=1) / (np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1))
    return float(cosines.mean())


def _bare(encoder: Encoder) -> Encoder:
    """Without a cache around it, which would give the vectors that it has kept."""
    inner = getattr(encoder, "encoder", encoder)
    return inner if isinstance(inner, Encoder) else encoder


def _picture(number: int) -> bytes:
    size, made = 96, io.BytesIO()
    rows, columns = np.mgrid[0:size, 0:size]
    colours = [(rows * (number + 1) // 2) % 256, (columns * (number + 2)) % 256, ((rows + columns) * (number % 3)) % 256]
    Image.fromarray(np.stack(colours, axis=-1).astype(np.uint8)).save(made, "PNG")
    return made.getvalue()
