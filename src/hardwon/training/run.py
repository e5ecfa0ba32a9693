"""`train`: a model, examples and a loss; the same for embedders and rerankers."""

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from hardwon.distributed import World
from hardwon.errors import DataError, Diverged, RecipeError
from hardwon.items import Example, Item
from hardwon.losses import GradientReport, Loss
from hardwon.models import Embedder, ListwiseReranker, Reranker
from hardwon.models.memory import checkpointed
from hardwon.models.precision import computed_in
from hardwon.progress import bar
from hardwon.randomness import generator
from hardwon.training import checkpoint, divergence
from hardwon.training.batches import batches, draw, listed, plan_epoch, shuffled, told, with_strangers
from hardwon.training.groups import agreed
from hardwon.training.log import Row, Spikes, in_words, metrics_log, step_row
from hardwon.training.loop import Settings, Step, fit, optimizer_for, without_dropout
from hardwon.training.objective import Objective
from hardwon.training.sharded import Shards, sharded
from hardwon.training.step import embedder_step, reranker_step
from hardwon.training.stopping import interruptible, stop
from hardwon.training.trackers import check_usable
from hardwon.training.usable import RERANKERS, Usable, ready

Model = TypeVar("Model", bound=Embedder | Reranker | ListwiseReranker)
SAVE_EVERY_S = 30.0


def train(
    model: Model,
    examples: Sequence[Example],
    loss: Loss,
    *,
    steps: int,
    settings: Settings | None = None,
    out: Path | None = None,
    validate: tuple[int, Callable[[], float]] | None = None,
    title: str = "training",
) -> Model:
    """Train a model in place and return it.

    With `out`, progress is written to `out/metrics.jsonl` and checkpoints to `out/checkpoint`, from which an interrupted run
    with the same arguments goes on: losses and weights are those of an undisturbed run. `settings.track` names trackers that
    show the metrics as well.

    Args:
        model: an `Embedder` learns from in-batch and its examples' own negatives, a `Reranker` or a `ListwiseReranker` from the
            latter alone.
        examples: the training set; each with at least one gold candidate.
        loss: any objective of `hardwon.losses`, or a function with their signature.
        steps: updates in all.
        settings: everything else; defaults suit a small model.
        out: folder for metrics and checkpoints; nothing is written if None.
        validate: (every so many steps, function that gives a number to log as "validation").
        title: name of the progress bar.

    Raises:
        DataError: no examples, or a reranker's without negatives; several processes that do not have the same data.
        BadItems: items that cannot be used, before the first step; `settings.on_error` can leave them out instead.
        Diverged: a loss or gradient that is not finite (more often than `settings.skips` allows); the last checkpoint is whole.
        ArtifactError: a checkpoint that cannot be written; the one before is whole.
        Stopped: SIGTERM came, and there is a checkpoint; the program ends with exit code 0.
        ProcessLost: another process has ended or hangs.
        MissingExtra: a tracker that is not installed.
        ModelError: an item too large for memory, or gradient checkpointing of an architecture that has none.
    """
    settings, world = settings or Settings(), World.current()
    check_usable(settings.track, out)
    if settings.shard and validate:
        raise RecipeError("with shard=True no process holds the whole model, so none can validate it: leave validate out")
    settings, found = _prepared(model, examples, steps, settings, world)
    examples, groups = found.examples, None
    if settings.groups and isinstance(model, Embedder):
        groups = agreed(examples, model, settings.groups, seed=settings.seed, out=out)
    objective = _objective(loss, settings, model.body.model.device)
    optimizer = optimizer_for(model.module, settings, objective.log_temperature)
    written, checked = (out, validate) if world.first else (None, None)
    plan = _Plan(steps, 0, settings, out, written, checked, title, world, groups, _parameters(model, objective), None)
    with torch.random.fork_rng(), _begun(model, optimizer, plan) as (plan, damaged), _log(plan) as log:
        _note(log, damaged, found.left_out if plan.start == 0 else ())
        _run(model, examples, objective, plan, optimizer, log)
    model.module.eval()
    return model


def _prepared(model: Any, examples: Sequence[Example], steps: int, settings: Settings, world: World) -> tuple[Settings, Usable]:
    """Settings that hold here, the model as it will learn, and the examples that can be used."""
    _check(model, examples, steps, settings)
    settings = _settled(settings, model.body.model.device, world)
    model.freeze(settings.freeze)
    model.body.settle_vision()
    if not settings.dropout:
        without_dropout(model.module)
    found = ready(model, examples, settings, world)
    _check(model, found.examples, steps, settings)  # again: what is left must do
    return settings, found


@dataclass(frozen=True)
class _Plan:
    """What `_run` needs to know beside model and data.

    `written` is `out` in the process that writes; `parameters` is what is learned, by name.
    """

    steps: int
    start: int
    settings: Settings
    out: Path | None
    written: Path | None
    validate: tuple[int, Callable[[], float]] | None
    title: str
    world: World
    groups: list[int] | None
    parameters: Mapping[str, nn.Parameter]
    shards: Shards | None


def _settled(settings: Settings, device: torch.device, world: World) -> Settings:
    """With "auto" replaced by what the first process finds faster: they measure, so two of them could disagree."""
    if settings.precision != "auto":
        return settings
    lower = world.first and computed_in("auto", device.type) == "bf16"
    agreed = bool(world.sum(torch.tensor(float(lower), device=device)))
    return replace(settings, precision="bf16" if agreed else "fp32")


@contextmanager
def _log(plan: _Plan) -> Iterator[Callable[[Row], None]]:
    """`metrics_log` of the first process; where it cannot be opened, because of a tracker say, all of them stop."""
    with ExitStack() as stack:
        with plan.world.all_or_none("opening the log of metrics"):
            track = plan.settings.track if plan.world.first else ()
            log = stack.enter_context(metrics_log(plan.written, plan.start, plan.title, track))
        yield log


def _note(log: Callable[[dict], None], damaged: Sequence[Any], left_out: Sequence[Any]) -> None:
    for event, problems in (("damaged checkpoint passed over", damaged), ("left out", left_out)):
        for problem in problems:
            log({"event": event, "problem": str(problem)})


def _objective(loss: Loss, settings: Settings, device: torch.device) -> Objective:
    return Objective(
        loss,
        rules=settings.false_negatives,
        widths=settings.widths,
        temperature=settings.temperature,
        device=device,
    )


def _parameters(model: Any, objective: Objective) -> dict[str, Any]:
    """Everything that is learned, by name."""
    found = {name: p for name, p in model.module.named_parameters() if p.requires_grad}
    return found if objective.log_temperature is None else found | {"objective.log_temperature": objective.log_temperature}


def _check(model: Any, examples: Sequence[Example], steps: int, settings: Settings) -> None:
    if steps < 1:
        raise RecipeError(f"steps must be at least 1, got {steps}")
    if len(examples) < 2:
        raise DataError(f"training needs at least 2 examples, got {len(examples)}")
    unused = [name for name in ("widths", "temperature", "groups") if getattr(settings, name)]
    if isinstance(model, RERANKERS) and unused:
        raise RecipeError(f"settings.{unused[0]} is about vectors; a reranker has none")
    if isinstance(model, RERANKERS) and settings.false_negatives and settings.false_negatives.copies is not None:
        raise RecipeError("settings.false_negatives.copies compares vectors; a reranker has none")
    if isinstance(model, RERANKERS) and (settings.negatives < 1 or not any(e.negatives for e in examples)):
        raise DataError("a reranker learns from each example's own negatives: mine some first, and set settings.negatives")
    if isinstance(model, ListwiseReranker):
        # A shorter one would leave some labels to chance that the model is going to be asked for.
        most, window = settings.negatives, model.listing.window
        longest = max(len(e.gold) + min(most, len(e.negatives)) for e in examples) + settings.random_negatives
        if longest != window:
            raise RecipeError(
                f"lists of up to {longest} candidates (gold, settings.negatives and settings.random_negatives) do not fill "
                f"the model's window of {window}: load it with Listing(window={longest}), or take other numbers of negatives"
            )


@contextmanager
def _begun(model: Any, optimizer: torch.optim.Optimizer, plan: _Plan) -> Iterator[tuple[_Plan, list[Any]]]:
    """The plan from where a checkpoint left off, with weights that are the same, or parted, in all processes.

    Gives with it what was found damaged.
    """
    settings, world, parameters, shards = plan.settings, plan.world, plan.parameters, None
    with ExitStack() as stack:
        torch.manual_seed(settings.seed + world.rank)  # dropout differs from process to process, the data do not
        stack.enter_context(checkpointed(model.body.transformer, settings.memory.gradient_checkpointing))
        world.wait("getting ready")  # here they may be far apart, but not from here on
        if settings.shard and world.size > 1:
            world.in_step("before the first step").same(parameters.values())
            shards = stack.enter_context(sharded(model, world, optimizer, parameters))
            parameters = shards.parameters
        start, damaged = checkpoint.restore(plan.out / "checkpoint", parameters, optimizer) if plan.out else (0, [])
        if shards is None:
            world.in_step("before the first step").same(parameters.values())  # as the first process has read them
        yield replace(plan, start=start, parameters=parameters, shards=shards), damaged


def _run(
    model: Any,
    examples: Sequence[Example],
    objective: Objective,
    plan: _Plan,
    optimizer: torch.optim.Optimizer,
    log: Callable[[Row], None],
) -> None:
    settings, world = plan.settings, plan.world
    every = SAVE_EVERY_S if settings.save_every_s is None else settings.save_every_s
    now: list[Any] = []  # the batch that is being learned
    gradient = _gradient(model, objective, plan, log, now)
    saved, note = time.monotonic(), _notes(model, objective, settings, log)
    clip = None if plan.shards is None else partial(plan.shards.clip, world=world.in_step("clipping"))
    updates = fit(model, plan.steps, _stream(model, examples, plan), gradient, optimizer, settings, clip=clip)
    shown = bar(plan.title, plan.steps, "steps", shown=world.first)
    with interruptible(terminable=plan.out is not None) as came, shown as advance:
        advance(plan.start)
        try:
            for step in updates:
                done = step.number + 1
                advance(1, note(step))
                if plan.validate and (done % plan.validate[0] == 0 or done == plan.steps):
                    log({"step": done, "validation": plan.validate[1]()})
                    model.body.train()
                # After validation: a run that goes on from here does not look back.
                stopping, saving = _agreed(world, came() if done < plan.steps else 0, time.monotonic() - saved > every)
                if plan.out and (stopping or saving):
                    with world.all_or_none("saving a checkpoint"):
                        tensors = checkpoint.tensors_of(plan.parameters, optimizer, keep=world.first)
                        if plan.written:
                            checkpoint.write(plan.written / "checkpoint", done, tensors)
                    saved = time.monotonic()
                if stopping:
                    stop(stopping, done)
        except Diverged as error:
            raise divergence.explained(error, model, now, plan.out) from error


def _gradient(
    model: Any, objective: Objective, plan: _Plan, log: Callable[[Row], None], now: list[Any]
) -> Callable[[Any], torch.Tensor]:
    """Adds the gradient of a batch to the weights and returns its loss; what is in work is kept in `now`."""
    settings, world = plan.settings, plan.world
    take: Any = reranker_step if isinstance(model, RERANKERS) else embedder_step
    room = settings.memory.room()  # what one step learns of the memory there is, the next ones know

    def gradient(batch: Any) -> torch.Tensor:
        now[:] = [batch]
        # Dropout of a step depends on the step and the process, not on what was drawn before: a resumed run draws the same.
        torch.manual_seed(generator(settings.seed, "dropout", world.rank, batch.number).getrandbits(62))
        due = settings.report_every and batch.number % settings.report_every == 0

        def watch(report: GradientReport | None) -> None:
            shares = report.summary() if report else {}
            rounded = {name: None if math.isnan(value) else round(value, 6) for name, value in shares.items()}
            log({"step": batch.number + 1, "gradient": rounded or None})

        together = world.in_step(f"step {batch.number + 1}")
        if world.size > 1:  # a file that is another one on one of the machines would be learned from without a word
            together.alike(told(batch))
        return take(model, objective, batch, room, together, watch if due else None, plan.shards)

    return gradient


def _notes(model: Any, objective: Objective, settings: Settings, log: Callable[[Row], None]) -> Callable[[Step], str]:
    """Logs a step, and says it in a few words."""
    spikes = Spikes()

    def note(step: Step) -> str:
        if step.skipped:
            log({"event": "skipped", "step": step.number + 1, "problem": step.skipped})
            return "left out"
        row = step_row(step, settings, model.body.model.device, objective.temperature)
        log(row)
        if usual := spikes(step.loss, step.source):
            log({"event": "loss spike", "step": step.number + 1, "loss": round(step.loss, 6), "usual": round(usual, 6)})
        return in_words(row)

    return note


def _agreed(world: World, signal: int, due: bool) -> tuple[int, bool]:
    """The signal that came to any of the processes, and whether it is time to save, as the first says."""
    said = world.largest(torch.tensor([signal, due and world.first]), "agreeing on what comes next").tolist()
    return said[0], bool(said[1])


def _stream(model: Any, examples: Sequence[Example], plan: _Plan) -> Iterator[Any]:
    settings = plan.settings
    if isinstance(model, RERANKERS):
        return _lists(model, examples, plan)
    return batches(
        examples,
        size=settings.batch_size,
        steps=plan.steps,
        negatives=settings.negatives,
        seed=settings.seed,
        start=plan.start,
        groups=plan.groups,
    )


def _lists(model: Any, examples: Sequence[Example], plan: _Plan) -> Iterator[Any]:
    """`lists` as a model takes them."""

    def arranged(example: Example, rng: random.Random) -> Example:
        return _in_any_order(model, example, rng) if isinstance(model, ListwiseReranker) else example

    def fits(query: Item, item: Item) -> bool:
        return not model.refusal(query, item)

    return lists(examples, plan.settings, plan.steps, start=plan.start, fits=fits, arranged=arranged)


def lists(
    examples: Sequence[Example],
    settings: Settings,
    steps: int,
    *,
    start: int = 0,
    fits: Callable[[Item, Item], bool] = lambda query, item: True,
    arranged: Callable[[Example, random.Random], Example] = lambda example, rng: example,
) -> Iterator[Any]:
    """Batches of lists for a reranker, epoch after epoch; only examples with negatives of their own take part.

    Args:
        examples: the training set; strangers come from the gold of all of them, source by source.
        settings: size of a batch, negatives, strangers, seed.
        steps: batches in all.
        start: the first of them that is given.
        fits: whether a query and a candidate can be read together.
        arranged: puts the candidates of a list in the order in which they are shown.
    """
    usable = [example for example in examples if example.negatives]
    pools: dict[str, list[Item]] = {}
    for example in examples:
        pools.setdefault(example.source, []).extend(example.gold)
    number, epoch = 0, 0
    while number < steps:
        for rows in plan_epoch([e.source for e in usable], settings.batch_size, settings.seed, epoch):
            if number >= steps:
                return
            if number >= start:
                made = []
                for n in rows:
                    rng = generator(settings.seed, "list", epoch, n)
                    drawn = draw(usable[n], settings.negatives, rng)
                    near = partial(fits, drawn.query)
                    made.append(arranged(with_strangers(drawn, pools[drawn.source], settings.random_negatives, rng, near), rng))
                yield listed(made, number)
            number += 1
        epoch += 1


def _in_any_order(model: ListwiseReranker, example: Example, rng: random.Random) -> Example:
    """A list as it is shown to a listwise reranker; where it leaves too little room, without its last candidates."""
    kept = example.candidates
    while len(kept) > 1 and not model.fits(example.query, [candidate.item for candidate in kept]):
        kept = kept[:-1]  # gold comes first
    return shuffled(replace(example, candidates=kept), rng)
