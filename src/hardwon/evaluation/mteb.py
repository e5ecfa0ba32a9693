"""Our models as models of mteb, for its tasks of texts and pictures; results come in mteb's own format.

    results = mteb.evaluate(MtebEncoder(Embedder.load(folder), "me/kites"), mteb.get_tasks(["SciFact"]))

mteb comes with the extra `mteb`. Its tasks fetch their data from the hub; a task with data of its own needs no network.
"""

import io
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

from hardwon import artifacts
from hardwon.errors import MissingExtra, ModelError
from hardwon.items import Item
from hardwon.models import Embedder, Reranker
from hardwon.models.body import Body

_READ = ("text", "image", "title", "body", "query", "instruction")  # columns of a batch that we know what to do with
_MODALITIES = ("text", "image")
_PNG = ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")  # kinds of pixels that a PNG holds


class MtebEncoder:
    """An embedder that satisfies mteb's EncoderProtocol.

    mteb keeps results under the revision that it is told, here the fingerprint of the model and, where there are any, of the
    instructions: results of other weights or other words are never found.

    Args:
        embedder: the model.
        name: owner/model, as the leaderboard shows it.
        instructions: what goes before a query, by the name or the type of a task; else the model's own prompts "query" and
            "document" go before queries and documents, where it has them.

    Raises:
        MissingExtra: mteb is not installed.
        ModelError: a name without an owner.
    """

    def __init__(self, embedder: Embedder, name: str, instructions: Mapping[str, str] | None = None):
        self.embedder = embedder
        self.instructions = dict(instructions or {})
        told = sorted(self.instructions.items())
        revision = artifacts.fingerprint([embedder.fingerprint, told]) if told else embedder.fingerprint
        self._meta = _meta(embedder.body, name, revision, "dense", embedder.dim)

    @property
    def mteb_model_meta(self) -> Any:
        """What mteb writes beside the results."""
        return self._meta

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **_: Any,
    ) -> np.ndarray:
        """Unit vectors [n d] of everything in the batches; each distinct item is encoded once."""
        instruction = self._instruction(task_metadata, str(getattr(prompt_type, "value", prompt_type) or ""))
        items = [item for batch in inputs for item in _items(batch, instruction)]
        return self.embedder.encode(items, progress=f"{task_metadata.name}, {hf_subset} {hf_split}")

    def similarity(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:
        """Cosine of every pair."""
        return _vectors(embeddings1) @ _vectors(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:
        """Cosine of the pairs that stand at the same place."""
        return (_vectors(embeddings1) * _vectors(embeddings2)).sum(dim=-1)

    def _instruction(self, task: Any, side: str) -> str:
        if side != "document":
            for name in (task.name, task.type):
                if name in self.instructions:
                    return self.instructions[name]
        return dict(self.embedder.body.model.prompts).get(side) or ""


class MtebReranker:
    """A reranker that satisfies mteb's CrossEncoderProtocol.

    Args:
        reranker: the model.
        name: as of `MtebEncoder`.

    Raises:
        MissingExtra: mteb is not installed.
        ModelError: a name without an owner.
    """

    def __init__(self, reranker: Reranker, name: str):
        self.reranker = reranker
        self._meta = _meta(reranker.body, name, reranker.fingerprint, "cross-encoder", None)

    @property
    def mteb_model_meta(self) -> Any:
        """What mteb writes beside the results."""
        return self._meta

    def predict(
        self,
        inputs1: Iterable[Mapping[str, Any]],
        inputs2: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **_: Any,
    ) -> np.ndarray:
        """Log-odds that each candidate belongs to the query at its place."""
        queries = [item for batch in inputs1 for item in _items(batch, "")]
        found = [item for batch in inputs2 for item in _items(batch, "")]
        pairs = list(zip(queries, found, strict=True))
        return self.reranker.score_pairs(pairs, progress=f"{task_metadata.name}, {hf_subset} {hf_split}")


def _items(batch: Mapping[str, Any], instruction: str) -> list[Item]:
    """The items of a batch of mteb: columns of equal length."""
    columns = {name: batch[name] for name in _READ if name in batch}
    others = sorted(name for name in ("audio", "video") if any(value is not None for value in batch.get(name, ())))
    if others:
        raise ModelError(f"a task with {', '.join(others)} cannot be asked: our adapter reads text and pictures")
    made = []
    for row in range(len(next(iter(columns.values()), ()))):
        value = {name: column[row] for name, column in columns.items()}
        text, picture = value.get("text") or "", value.get("image")
        said = " ".join(part for part in (instruction, value.get("instruction")) if part)
        # mteb appends a query's own instruction to its text as well.
        own = value.get("instruction")
        text = value["query"] if own and value.get("query") else text
        shown = () if picture is None else tuple(map(_encoded, picture if isinstance(picture, list) else [picture]))
        made.append(Item(text if text or shown else " ", shown, said))
    return made


def _encoded(picture: Any) -> bytes:
    """A picture of mteb as the bytes of a PNG, which lose nothing; kinds of pixels that it lacks become RGB."""
    if isinstance(picture, torch.Tensor):
        picture = Image.fromarray(picture.permute(1, 2, 0).cpu().numpy())
    if picture.mode not in _PNG:
        picture = picture.convert("RGB")
    out = io.BytesIO()
    picture.save(out, "PNG", compress_level=1)
    return out.getvalue()


def _vectors(values: Any) -> torch.Tensor:
    made = torch.as_tensor(values, dtype=torch.float32)
    return made if made.ndim > 1 else made[None]


def _meta(body: Body, name: str, revision: str, kind: str, width: int | None) -> Any:
    try:
        from mteb.models import ModelMeta
    except ImportError as error:
        raise MissingExtra("mteb", "mteb") from error
    if name.count("/") != 1 or not all(name.split("/")):
        raise ModelError(f"a model's name for mteb is owner/model, got {name!r}")
    weights = list(body.model.parameters())
    return ModelMeta(
        loader=None,
        name=name,
        revision=revision,
        release_date=None,
        languages=None,
        n_parameters=sum(weight.numel() for weight in weights),
        memory_usage_mb=round(sum(weight.numel() * weight.element_size() for weight in weights) / 2**20, 1),
        max_tokens=float(body.model.max_seq_length),
        embed_dim=width,
        license=None,
        open_weights=None,
        public_training_code=None,
        public_training_data=None,
        framework=["Sentence Transformers", "PyTorch"],
        similarity_fn_name="cosine",  # pyright: ignore[reportArgumentType]
        use_instructions=None,
        training_datasets=None,
        modalities=[kind for kind in _MODALITIES if kind in body.modalities],  # pyright: ignore[reportArgumentType]
        model_type=[kind],  # pyright: ignore[reportArgumentType]
    )
