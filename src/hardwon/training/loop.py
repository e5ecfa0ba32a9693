"""The loop: a generator that yields once per update, so that logging, saving and evaluating are the caller's business."""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from torch import Tensor, nn

from hardwon.errors import Diverged, OnError, RecipeError, unknown
from hardwon.losses import FalseNegatives
from hardwon.models.body import trainable
from hardwon.models.precision import Precision, computed_in
from hardwon.training.groups import Groups
from hardwon.training.objective import LearnedTemperature
from hardwon.training.step import Memory
from hardwon.training.trackers import check_names


@dataclass(frozen=True)
class Settings:
    """How to train; everything but data, model, loss and number of steps.

    Attributes:
        batch_size: queries per step. All of them, and all their candidates, meet in one score matrix.
        negatives: of each example's own negatives, how many join a batch at most.
        random_negatives: for rerankers, gold of other examples of the same source that joins each list: what belongs together
            at all is learned from these, what tells near-misses apart from the former.
        groups: for embedders, batches made of groups of examples that the model, as it is before the first step, takes for
            each other; at random if None.
        learning_rate: peak, after a linear warm-up and before a cosine decay to 5 % of it.
        rates: (start of parameter names, peak learning rate) for parts that learn at a pace of their own.
        warmup: share of the steps that the learning rate rises.
        weight_decay: of AdamW.
        clip: largest gradient norm.
        false_negatives: rules that take candidates out of the comparison; none if None.
        widths: Matryoshka: the loss also counts on the first so many components of each vector.
        temperature: learn the loss's temperature; it is fixed if None.
        report_every: steps between two gradient reports in the log; 0 for none.
        track: trackers that show the metrics: "tensorboard" (files in `out/tensorboard`; pip install 'hardwon[track]'),
            "trackio", "wandb" (pip install them by these names). Where those two send them, if anywhere, their own environment
            variables say.
        freeze: parts that are not trained; see `Embedder.freeze`.
        dropout: False switches dropout off, which suits short trainings.
        precision: "fp32", "bf16" to compute in bfloat16 where that is safe (scores and losses stay in float32), or "auto" for
            the faster of the two on this machine (on that of the first process, if there are several).
        memory: what a step may hold.
        on_error: about items that cannot be used (a damaged picture, something that the model does not read), which are
            looked for before the first step: "raise" names them all; "skip" goes on without them and lists them. An example
            goes if its query or every gold is bad; another candidate goes alone.
        max_bad_fraction: with "skip", the share of the examples (0 to 1) above which training fails all the same.
        shard: of several processes each holds a part of weights, gradients and optimizer state (FSDP2), for models that one
            device cannot hold; else each holds all.
        skips: steps of one run that are left out, and counted in the log, where their loss or gradient is not finite; the next
            one ends the training. 0 ends it at the first.
        save_every_s: seconds between two checkpoints; half a minute if None.
        seed: of order, draws and dropout.
    """

    batch_size: int = 64
    negatives: int = 0
    random_negatives: int = 0
    groups: Groups | None = None
    learning_rate: float = 3e-4
    rates: tuple[tuple[str, float], ...] = ()
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0
    false_negatives: FalseNegatives | None = None
    widths: tuple[int, ...] = ()
    temperature: LearnedTemperature | None = None
    report_every: int = 0
    track: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()
    dropout: bool = False
    precision: Precision = "fp32"
    memory: Memory = field(default_factory=Memory)
    on_error: OnError = "raise"
    max_bad_fraction: float = 0.01
    shard: bool = False
    skips: int = 0
    save_every_s: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, valid in (("precision", get_args(Precision)), ("on_error", get_args(OnError))):
            if getattr(self, name) not in valid:
                raise RecipeError(unknown(name, getattr(self, name), valid))
        if not 0 <= self.max_bad_fraction <= 1:
            raise RecipeError(f"max_bad_fraction must lie in [0, 1], got {self.max_bad_fraction}")
        check_names(self.track)
        for name in ("skips", "save_every_s"):
            if (getattr(self, name) or 0) < 0:
                raise RecipeError(f"{name} must not be below 0, got {getattr(self, name)}")
        for name in ("batch_size", "learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise RecipeError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.batch_size < 2:
            raise RecipeError("batch_size must be at least 2: in-batch negatives come from the other examples")


@dataclass(frozen=True)
class Step:
    """One update.

    Attributes:
        number: from 0.
        loss: of the batch, before the update.
        norm: of the gradient, before clipping.
        rate: learning rate as a share of its peak.
        items: distinct items that were encoded for it, queries and candidates; for a reranker, pairs that were scored.
        seconds: it took, from asking for the batch on; what the caller does between two updates does not count.
        masked: pairs of the batch that were not compared, since they are known to belong together.
        skipped: why there was no update after all; "" if there was one.
        source: of the batch's examples.
    """

    number: int
    loss: float
    norm: float
    rate: float
    items: int
    seconds: float
    masked: int = 0
    skipped: str = ""
    source: str = ""


def schedule(step: int, steps: int, warmup: float) -> float:
    """Share of the peak learning rate at a step: linear rise, cosine fall to 5 %."""
    rise = max(round(warmup * steps), 1)
    if step < rise:
        return (step + 1) / rise
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(steps - rise, 1)))


def optimizer_for(module: nn.Module, settings: Settings, temperature: nn.Parameter | None = None) -> torch.optim.AdamW:
    """AdamW over the trainable parameters, with a group of its own for every part in `settings.rates` and the temperature."""
    groups: dict[float, list[Tensor]] = {}
    unused = {part for part, _ in settings.rates}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = settings.learning_rate
        for part, own in settings.rates:
            if part in name:
                rate = own
                unused.discard(part)
        groups.setdefault(rate, []).append(parameter)
    if unused:
        raise RecipeError(f"no trainable parameter belongs to {', '.join(sorted(unused))} (named in rates)")
    listed: list[dict[str, Any]] = [{"params": params, "lr": rate, "peak": rate} for rate, params in groups.items()]
    if temperature is not None and settings.temperature is not None:
        rate = settings.temperature.learning_rate
        listed.append({"params": [temperature], "lr": rate, "peak": rate, "weight_decay": 0.0})
    return torch.optim.AdamW(listed, weight_decay=settings.weight_decay)


def fit(
    model: Any,
    steps: int,
    batches: Iterable[Any],
    gradient: Callable[[Any], Tensor],
    optimizer: torch.optim.Optimizer,
    settings: Settings,
    *,
    clip: Callable[[list[nn.Parameter], float], float] | None = None,
) -> Iterator[Step]:
    """Yield one `Step` per update.

    Args:
        model: an `Embedder` or `Reranker`.
        steps: of the whole training, for the schedule.
        batches: each with a `number`, a `source` and what it comes to, `encoded` and `masked`.
        gradient: adds a batch's gradient to the weights and returns its loss.
        optimizer: made by `optimizer_for`.
        settings: see there.
        clip: makes the gradient of parameters no longer than so much and returns its norm; torch's own if None.

    Raises:
        Diverged: a loss or gradient that is not finite, after `settings.skips` others; the weights are as before the step.
    """
    parameters, left = trainable(model.module), settings.skips
    clock = time.perf_counter()
    model.body.train()
    for batch in batches:
        rate = schedule(batch.number, steps, settings.warmup)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate
        why = ""
        try:
            with _precision(settings.precision, parameters[0].device.type):
                loss = gradient(batch)
            norm = float((clip or nn.utils.clip_grad_norm_)(parameters, settings.clip))
            if not math.isfinite(norm):
                raise Diverged(f"the gradient's norm is {norm}", batch.number, batch_keys(batch), "Lower the learning rate.")
        except Diverged as error:
            optimizer.zero_grad(set_to_none=True)
            if not left:
                raise
            left, why, loss, norm = left - 1, str(error), math.nan, math.nan
        else:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        value = float(loss)  # waits for the device
        yield Step(batch.number, value, norm, rate, batch.encoded, time.perf_counter() - clock, batch.masked, why, batch.source)
        clock = time.perf_counter()


def batch_keys(batch: Any) -> list[str]:
    """Keys of the queries of a batch."""
    return list(getattr(batch, "keys", None) or [query.key for query in batch.queries])


@contextlib.contextmanager
def _precision(precision: Precision, device: str) -> Iterator[None]:
    with torch.autocast(device, dtype=torch.bfloat16, enabled=computed_in(precision, device) == "bf16"):
        yield


def without_dropout(module: nn.Module) -> None:
    """Switch every dropout layer off for good."""
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
