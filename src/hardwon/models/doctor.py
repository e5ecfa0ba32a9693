"""Whether a model gives the same vectors however it is asked: by us, by sentence-transformers, saved, in batches.

Everything is held against one truth: the vector of a probe that is encoded alone, by hardwon, from the folder itself.
"""

import gc
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hardwon.errors import ModelError
from hardwon.models.body import Body
from hardwon.models.card import pooling_of
from hardwon.models.embedder import Embedder
from hardwon.models.examination import (
    APART,
    COARSE,
    COPY,
    ENCODED,
    FILLED,
    FINITE,
    KEPT,
    ONE,
    ORDER,
    PLAIN,
    PLAIN_COPY,
    PLAIN_TOGETHER,
    READ,
    REVERSED,
    TOGETHER,
    Check,
    Examination,
)
from hardwon.models.facts import Facts, collect
from hardwon.models.golden import DRIFT, changed, kept
from hardwon.models.loading import settle_filling, settle_frames, settle_vectors
from hardwon.models.lora import has_adapter
from hardwon.models.plain import encode_plainly, load_plainly, plainly
from hardwon.models.precision import GAIN, bf16_gain
from hardwon.models.preflight import refusal
from hardwon.models.probes import Probe, long_probes, short_probes
from hardwon.progress import bar

WHOLE, HALF = 1e-5, 1e-3  # differences of cosine that are allowed: weights in float32, and in 16 bits
ALIKE = 0.999999  # two probes with a higher cosine than this are one to the model
UNIT = 1e-3  # how far from 1 the length of a vector may be
LENGTH = 512  # tokens to which texts are cut during the examination, unless pictures need more
HEAVY = 2**28  # bytes of weights
BATCH_TOKENS = 16_384  # of the batches that probes are compared in
STEPS = (READ, TOGETHER, REVERSED, ENCODED, FILLED, COARSE, "speed", "saving", PLAIN, PLAIN_TOGETHER, COPY, PLAIN_COPY)


@dataclass(frozen=True)
class _Case:
    """The truth about a model, and how it was asked, after the model itself has been let go."""

    probes: tuple[Probe, ...]
    truth: np.ndarray
    limit: float
    length: int  # tokens to which texts are cut here
    own_length: int  # and outside
    size: int  # probes of a batch
    wide: bool  # whether the weights are in float32
    heavy: bool  # whether they are many
    fused: bool
    settings: dict[str, Any]  # as hardwon has them
    rows: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def compare(self, name: str, made: Callable[[], np.ndarray], plain: bool = False) -> np.ndarray:
        """Add a row: how far vectors [n d] are from the truth. `plain`: they were asked of sentence-transformers."""
        chosen = self.plain if plain else list(range(len(self.probes)))
        row = Check(name, len(chosen), math.inf, limit=None if name == COARSE else self.limit)
        try:
            vectors = made()
            apart = difference(self.truth[chosen], vectors)
        except Exception as error:  # whatever goes wrong inside a model is what the doctor looks for
            self.rows.append(replace(row, remark=_brief(error)))
            return np.zeros((0, 1))
        at = int(np.argmax(apart))
        self.rows.append(replace(row, largest=float(apart[at]), worst=self.probes[chosen[at]].name))
        return vectors

    @property
    def plain(self) -> list[int]:
        """Positions of probes that sentence-transformers must read as we do."""
        return [n for n, probe in enumerate(self.probes) if not probe.ours]


def examine(path: str | Path, *, device: str | None = None, tolerance: float | None = None, progress: str = "") -> Examination:
    """Encode a fixed set of probes in every way in which a model is used, and compare.

    The model is loaded four times, one after the other, and saved once, into a temporary folder.

    Args:
        path: folder of a model or of an adapter, or a name on the hub; remote code is never run.
        device: "cpu", "cuda" ...; the best there is if None.
        tolerance: difference of cosine that passes; None: 1e-5 for weights in float32, 1e-3 for narrower ones.
        progress: what to call the bar; no bar if empty.

    Raises:
        ModelError: nothing there, not a model, or one that reads none of the probes.
        MissingExtra: the model's processor needs a package that is not installed.
    """
    watched = bar(progress, len(STEPS), "steps", shown=bool(progress))
    with watched as advance, tempfile.TemporaryDirectory(prefix="hardwon-doctor-") as scratch:
        copy = Path(scratch) / "copy"
        case, facts = _ours(path, device, tolerance, copy, advance)
        _release(case)
        _theirs(case, path, device, advance)
        _release(case)
        _copies(case, copy, device, advance)
    rows = sorted(case.rows, key=lambda row: ORDER.index(row.name))
    return Examination(str(path), tuple(rows), facts, tuple(case.notes))


def difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """1 - cosine of each pair of rows [n d], as half the squared distance of unit vectors: exact also when it is tiny.

    Infinite for rows that are zero or not finite.
    """
    if one.shape != other.shape:
        raise ModelError(f"vectors of shape {other.shape} instead of {one.shape}")
    with np.errstate(all="ignore"):
        left, right = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (one.astype(float), other.astype(float)))
        made = ((left - right) ** 2).sum(axis=1) / 2
    return np.where(np.isfinite(made), made, np.inf)


def _ours(
    path: str | Path, device: str | None, tolerance: float | None, copy: Path, advance: Callable[..., None]
) -> tuple[_Case, Facts]:
    """All that can be asked of the model as hardwon loads it; it is saved under `copy` at the end."""
    embedder = Embedder.load(path, device=device)
    model = embedder.body.model
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
    own_length = int(model.max_seq_length)
    probes, notes = short_probes(embedder.body)
    if Path(path).is_dir() and not (Path(path) / "modules.json").exists():
        notes.append(
            f"It has no modules.json, so hardwon had to guess how to pool: {pooling_of(model) or 'the model does'}. If it was "
            "trained otherwise, say so once, Embedder.load(path, pooling=...), and save it."
        )
    read = [probe.item for probe in probes if not refusal(embedder.body, (probe.item,))]
    length = min(own_length, max(LENGTH, 2 * max(map(embedder.cost, read), default=0)))
    if length < own_length:
        notes.append(f"Texts were cut at {length:,} tokens to save time; the model takes {own_length:,}.")
    model.max_seq_length = length
    if "text" in embedder.body.modalities:
        probes += long_probes(length, "image" in embedder.body.modalities and embedder.body.fused)
    with torch.no_grad(), embedder.evaluating():
        case = _truth(embedder, probes, notes, tolerance, own_length)
        _since(case, path, model.device.type)
        advance(note=TOGETHER)
        _in_batches(case, embedder, advance)
    advance(note="speed")
    facts = collect(embedder, own_length)
    model.max_seq_length = own_length
    advance(note="saving")
    embedder.save(copy)
    if has_adapter(model):
        case.notes.append(
            "It is an adapter: the saved copy holds the adapter alone and needs the base model to stay where it is."
        )
    return case, facts


def _truth(embedder: Embedder, probes: Sequence[Probe], notes: list[str], tolerance: float | None, own_length: int) -> _Case:
    """Every probe alone, and what can be said about those vectors."""
    made: dict[Probe, np.ndarray] = {}
    refused: dict[str, str] = {}
    for probe in probes:
        try:
            made[probe] = _numbers(embedder.forward([probe.item]))[0]
        except Exception as error:  # whatever goes wrong inside a model is what the doctor looks for
            if probe.odd:
                notes.append(f"It refuses the probe {probe.name!r}: {_brief(error)}")
            else:
                refused[probe.name] = _brief(error)
    if not made:
        name, why = next(iter(refused.items()), ("", notes[-1]))
        raise ModelError(f"the model reads none of the probes; the first is {name!r}: {why}")
    body = embedder.body
    wide = all(p.dtype in (torch.float32, torch.float64) for p in body.model.parameters())
    longest = max(embedder.cost(probe.item) for probe in made)
    case = _Case(
        probes=tuple(made),
        truth=np.stack(list(made.values())),
        limit=tolerance if tolerance is not None else WHOLE if wide else HALF,
        length=int(body.model.max_seq_length),
        own_length=own_length,
        size=max(2, BATCH_TOKENS // longest),
        wide=wide,
        heavy=sum(p.numel() * p.element_size() for p in body.model.parameters()) > HEAVY,
        fused=body.fused,
        settings=_settings(body.model),
        notes=notes,
    )
    worst, why = next(iter(refused.items()), ("", ""))
    case.rows.append(Check(READ, len(made) + len(refused), float(len(refused)), worst, 0.0, why))
    wrong = [probe.name for probe, vector in made.items() if not np.isfinite(vector).all()]
    case.rows.append(Check(FINITE, len(made), float(len(wrong)), next(iter(wrong), ""), 0.0))
    off = np.abs(np.linalg.norm(case.truth.astype(float), axis=1) - 1)
    off = np.where(np.isfinite(off), off, np.inf)
    case.rows.append(Check(ONE, len(made), float(off.max()), case.probes[int(off.argmax())].name if off.max() else "", UNIT))
    case.rows.append(_apart(embedder, case))
    return case


def _apart(embedder: Embedder, case: _Case) -> Check:
    """The two probes that are most alike, but for those of which the tokenizer makes the very same."""
    rows = np.nan_to_num(case.truth.astype(float))
    cosines = rows @ rows.T
    pairs = [(one, other) for one in range(len(rows)) for other in range(one)]
    same: dict[int, int] = {}
    found = Check(APART, len(rows), 0.0, limit=ALIKE)
    for one, other in sorted(pairs, key=lambda pair: -cosines[pair]):
        mine, its = case.probes[one], case.probes[other]
        if cosines[one, other] <= ALIKE or _tokens(embedder.body, mine) != _tokens(embedder.body, its):
            found = replace(found, largest=float(cosines[one, other]), worst=f"{its.name} / {mine.name}")
            break
        same[one] = min(other, same.get(one, other))
    for first in sorted(set(same.values()) - set(same)):
        names = [case.probes[first].name, *(case.probes[n].name for n in sorted(same) if same[n] == first)]
        case.notes.append(f"Its tokenizer makes the very same of these probes: {', '.join(names)}.")
    return found


def _since(case: _Case, path: str | Path, device: str) -> None:
    """What has changed since the model was saved."""
    vectors, about = kept(path)
    chosen = [n for n, probe in enumerate(case.probes) if probe.item.key in vectors]
    if not chosen:
        return
    apart = difference(np.stack([vectors[case.probes[n].item.key] for n in chosen]), case.truth[chosen])
    at = int(np.argmax(apart))
    case.rows.append(Check(KEPT, len(chosen), float(apart[at]), case.probes[chosen[at]].name, DRIFT))
    case.notes.extend(f"Since it was saved: {what}." for what in changed(about, device))


def _tokens(body: Body, probe: Probe) -> dict[str, bytes]:
    """What the model is shown, in bytes."""
    features = body.features([[probe.item]], body.prompt(probe.item))
    made = {name: value for name, value in features.items() if isinstance(value, torch.Tensor)}
    return {name: value.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes() for name, value in made.items()}


def _in_batches(case: _Case, embedder: Embedder, advance: Callable[..., None]) -> None:
    """Batches, other orders, padding on the other side, another number format."""
    items = [probe.item for probe in case.probes]

    def batches(model: Embedder, chosen: list[Any]) -> np.ndarray:
        return np.concatenate([_numbers(model.forward(chosen[n : n + case.size])) for n in range(0, len(chosen), case.size)])

    case.compare(TOGETHER, lambda: batches(embedder, items))
    advance(note=REVERSED)
    case.compare(REVERSED, lambda: batches(embedder, items[::-1])[::-1])
    advance(note=ENCODED)
    case.compare(ENCODED, lambda: embedder.encode(items))
    advance(note=FILLED)
    body = embedder.body
    if pooling_of(body.model) == "lasttoken" and body.tokenizer.padding_side in ("left", "right"):
        side = body.tokenizer.padding_side
        body.tokenizer.padding_side = "right" if side == "left" else "left"
        case.compare(FILLED, lambda: batches(embedder, items))
        body.tokenizer.padding_side = side
    advance(note=COARSE)
    if case.wide and bf16_gain(body.model.device.type) >= 1 / GAIN:
        coarse = Embedder(Body(body.model, precision="bf16"))
        with coarse.evaluating():
            case.compare(COARSE, lambda: batches(coarse, items))


def _theirs(case: _Case, path: str | Path, device: str | None, advance: Callable[..., None]) -> None:
    """The model as anybody loads it."""
    advance(note=PLAIN)
    model, notes = load_plainly(path, device)
    case.notes.extend(notes)
    if any(model.prompts.get(probe.item.modality) for probe in case.probes):
        case.notes.append(
            "It has an instruction for each kind of item. Plain sentence-transformers is asked with it by name: "
            "encode(texts, prompt_name='text'), likewise 'image' and 'image+text'."
        )
    if (theirs := _settings(model)) != case.settings:
        _note_settings(case, model, theirs)
        settle_vectors(model, path, None)
        settle_filling(model)
        settle_frames(model)
    vectors = case.compare(PLAIN, lambda: _encoded(case, model, 1), plain=True)
    advance(note=PLAIN_TOGETHER)
    case.compare(PLAIN_TOGETHER, lambda: _encoded(case, model, case.size), plain=True)
    if len(vectors):
        _note_order(case, model)
    lengths = np.linalg.norm(vectors, axis=1)
    if len(lengths) and np.abs(lengths - 1).max() > 10 * UNIT:  # 16 bits cannot be nearer
        case.notes.append(
            f"SentenceTransformer(path) gives vectors of length {lengths.min():.3g} to {lengths.max():.3g}, hardwon those of "
            "length 1: compare by cosine, or encode with normalize_embeddings=True. What hardwon saves does so by itself."
        )


def _note_settings(case: _Case, model: Any, theirs: dict[str, Any]) -> None:
    """Say what is different for people who load the model without hardwon, and by how much."""
    told = [f"{name} {mine!r} instead of {theirs[name]!r}" for name, mine in case.settings.items() if mine != theirs[name]]
    try:
        alone, together = (_encoded(case, model, size) for size in (1, case.size))
        off, spread = difference(case.truth[case.plain], alone).max(), difference(alone, together).max()
        if max(off, spread) <= case.limit:
            return
        how = f"are off by up to {off:.2g}" + (" and depend on what shares their batch" if spread > case.limit else "")
    except Exception as error:  # whatever goes wrong inside a model
        how = f"cannot be made ({_brief(error)})"
    case.notes.append(
        f"hardwon loads it with {' and '.join(told)}, and keeps that in what it saves. SentenceTransformer(path) does not: "
        f"its vectors {how}. The rows are about SentenceTransformer with hardwon's settings."
    )


def _settings(model: Any) -> dict[str, Any]:
    """What hardwon may have settled otherwise than the folder says."""
    return {"pooling": pooling_of(model), "processing_kwargs": dict(getattr(model[0], "processing_kwargs", None) or {})}


def _copies(case: _Case, copy: Path, device: str | None, advance: Callable[..., None]) -> None:
    """What was saved, as we load it and as anybody does."""
    advance(note=COPY)

    def checked(model: Any) -> Any:
        if model.max_seq_length != case.own_length:
            raise ModelError(f"its maximum length is {model.max_seq_length}, that of the original is {case.own_length}")
        return model

    def again() -> np.ndarray:
        embedder = Embedder.load(copy, device=device)
        checked(embedder.body.model).max_seq_length = case.length
        with torch.no_grad(), embedder.evaluating():
            return np.concatenate([_numbers(embedder.forward([probe.item])) for probe in case.probes])

    def theirs() -> np.ndarray:
        return _encoded(case, checked(load_plainly(copy, device)[0]), 1)

    case.compare(COPY, again)
    _release(case)
    advance(note=PLAIN_COPY)
    case.compare(PLAIN_COPY, theirs, plain=True)
    advance()


def _encoded(case: _Case, model: Any, size: int) -> np.ndarray:
    """Vectors of plain sentence-transformers, [n d]."""
    model.max_seq_length = case.length
    return encode_plainly(model, [case.probes[n].item for n in case.plain], size, case.fused)


def _note_order(case: _Case, model: Any) -> None:
    """Say whether the order matters in which an item's parts are named."""
    rows = [plainly(case.probes[n].item) for n in case.plain]
    both = next((row for row in rows if {"image", "text"} <= set(row)), None)
    if both is None:
        return
    asked = [both, {"text": both["text"], "image": both["image"]}]
    one, other = (model.encode([row], show_progress_bar=False) for row in asked)
    if (apart := difference(one, other).max()) > case.limit:
        case.notes.append(
            "SentenceTransformer shows the parts of an item in the order in which its dict names them. hardwon names pictures "
            f"first and text last; {{'text': ..., 'image': ...}} gives another vector, off by {apart:.2g}."
        )


def _numbers(vectors: torch.Tensor) -> np.ndarray:
    return vectors.float().cpu().numpy()


def _brief(error: Exception) -> str:
    told = " ".join(str(error).split("\n", 2)[:2])  # of many items the first
    return f"{type(error).__name__}: {' '.join(told.split())[:240]}"


def _release(case: _Case) -> None:
    """Give the memory of a model back before the next is loaded."""
    if case.heavy:  # its parts refer to each other; for a small model a collection takes longer than it is worth
        gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
