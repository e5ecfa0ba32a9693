"""`train`: a model, examples and a loss; the same for embedders and rerankers."""

import math
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from hardwon.distributed import World
from hardwon.errors import DataError, RecipeError
from hardwon.items import Example, Item
from hardwon.losses import GradientReport, Loss
from hardwon.models import Embedder, ListwiseReranker, Reranker
from hardwon.models.memory import checkpointed
from hardwon.models.precision import computed_in
from hardwon.progress import bar
from hardwon.randomness import generator
from hardwon.training import checkpoint
from hardwon.training.batches import batches, draw, listed, plan_epoch, shuffled, with_strangers
from hardwon.training.groups import agreed
from hardwon.training.log import Row, in_words, metrics_log, step_row
from hardwon.training.loop import Settings, fit, optimizer_for, without_dropout
from hardwon.training.objective import Objective
from hardwon.training.step import embedder_step, reranker_step
from hardwon.training.trackers import check_usable
from hardwon.training.usable import RERANKERS, ready

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
        DataError: no examples, or a reranker's examples without negatives.
        BadItems: items that cannot be used, before the first step; `settings.on_error` can leave them out instead.
        Diverged: a loss or gradient that is not finite; the last checkpoint is whole.
        MissingExtra: a tracker that is not installed.
        ModelError: an item too large for memory, or gradient checkpointing of an architecture that has none.
    """
    settings, world = settings or Settings(), World.current()
    _check(model, examples, steps, settings)
    check_usable(settings.track, out)
    settings = _settled(settings, model.body.model.device, world)
    model.freeze(settings.freeze)
    model.body.settle_vision()
    if not settings.dropout:
        without_dropout(model.module)
    found = ready(model, examples, settings, world)
    _check(model, found.examples, steps, settings)  # again: what is left must do
    examples, groups = found.examples, None
    if settings.groups and isinstance(model, Embedder):
        groups = agreed(examples, model, settings.groups, seed=settings.seed, out=out)
    objective = _objective(loss, settings, model.body.model.device)
    optimizer = optimizer_for(model.module, settings, objective.log_temperature)
    parameters = _parameters(model, objective)
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed + world.rank)  # dropout differs from process to process, the data do not
        start, damaged = checkpoint.restore(out / "checkpoint", parameters, optimizer) if out else (0, [])
        world.same(parameters.values())
        written = out if world.first else None
        plan = _Plan(steps, start, settings, written, validate if world.first else None, title, world, groups)
        checkpointing = checkpointed(model.body.transformer, settings.memory.gradient_checkpointing)
        with checkpointing, _log(plan, model.body.model.device) as log:
            _note(log, damaged, found.left_out if start == 0 else ())
            _run(model, examples, objective, plan, optimizer, log)
    model.module.eval()
    return model


@dataclass(frozen=True)
class _Plan:
    """What `_run` needs to know beside model and data."""

    steps: int
    start: int
    settings: Settings
    out: Path | None
    validate: tuple[int, Callable[[], float]] | None
    title: str
    world: World
    groups: list[int] | None


def _settled(settings: Settings, device: torch.device, world: World) -> Settings:
    """With "auto" replaced by what the first process finds faster: they measure, so two of them could disagree."""
    if settings.precision != "auto":
        return settings
    lower = world.first and computed_in("auto", device.type) == "bf16"
    agreed = bool(world.sum(torch.tensor(float(lower), device=device)))
    return replace(settings, precision="bf16" if agreed else "fp32")


@contextmanager
def _log(plan: _Plan, device: torch.device) -> Iterator[Callable[[Row], None]]:
    """`metrics_log` of the first process; where it cannot be opened, because of a tracker say, all of them stop."""
    with ExitStack() as stack:
        with plan.world.all_or_none("opening the log of metrics", device):
            track = plan.settings.track if plan.world.first else ()
            log = stack.enter_context(metrics_log(plan.out, plan.start, plan.title, track))
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


def _run(
    model: Any,
    examples: Sequence[Example],
    objective: Objective,
    plan: _Plan,
    optimizer: torch.optim.Optimizer,
    log: Callable[[Row], None],
) -> None:
    settings, world, saved = plan.settings, plan.world, time.monotonic()
    take: Any = reranker_step if isinstance(model, RERANKERS) else embedder_step
    stream: Iterator[Any] = (
        _lists(model, examples, plan)
        if isinstance(model, RERANKERS)
        else batches(
            examples,
            size=settings.batch_size,
            steps=plan.steps,
            negatives=settings.negatives,
            seed=settings.seed,
            start=plan.start,
            groups=plan.groups,
        )
    )

    def gradient(batch: Any) -> torch.Tensor:
        # Dropout of a step depends on the step and the process, not on what was drawn before: a resumed run draws the same.
        torch.manual_seed(generator(settings.seed, "dropout", world.rank, batch.number).getrandbits(62))
        due = settings.report_every and batch.number % settings.report_every == 0

        def watch(report: GradientReport | None) -> None:
            shares = report.summary() if report else {}
            rounded = {name: None if math.isnan(value) else round(value, 6) for name, value in shares.items()}
            log({"step": batch.number + 1, "gradient": rounded or None})

        return take(model, objective, batch, room, world, watch if due else None)

    room = settings.memory.room()  # what one step learns of the memory there is, the next ones know
    updates = fit(model, plan.steps, stream, gradient, optimizer, settings)
    with interruptible() as pressed, bar(plan.title, plan.steps, "steps", shown=world.first) as advance:
        advance(plan.start)
        for step in updates:
            done = step.number + 1
            row = step_row(step, settings, model.body.model.device, objective.temperature)
            log(row)
            advance(1, in_words(row))
            if plan.validate and (done % plan.validate[0] == 0 or done == plan.steps):
                log({"step": done, "validation": plan.validate[1]()})
                model.body.train()
            # After validation: a run that goes on from here does not look back.
            stop = bool(world.sum(torch.tensor(float(pressed()), device=model.body.model.device))) and done < plan.steps
            if plan.out and (stop or time.monotonic() - saved > SAVE_EVERY_S):
                checkpoint.save(plan.out / "checkpoint", done, _parameters(model, objective), optimizer)
                saved = time.monotonic()
            if stop:
                raise KeyboardInterrupt


def _lists(model: Any, examples: Sequence[Example], plan: _Plan) -> Iterator[Any]:
    """Batches of lists for a reranker; only examples with negatives of their own take part."""

    def room_for(query: Item) -> Callable[[Item], bool]:
        return lambda item: not model.refusal(query, item)

    settings = plan.settings
    usable = [example for example in examples if example.negatives]
    pools: dict[str, list[Item]] = {}
    for example in examples:
        pools.setdefault(example.source, []).extend(example.gold)
    number, epoch = 0, 0
    while number < plan.steps:
        for rows in plan_epoch([e.source for e in usable], settings.batch_size, settings.seed, epoch):
            if number >= plan.steps:
                return
            if number >= plan.start:
                made = []
                for n in rows:
                    rng = generator(settings.seed, "list", epoch, n)
                    drawn = draw(usable[n], settings.negatives, rng)
                    pool, fits = pools[drawn.source], room_for(drawn.query)
                    whole = with_strangers(drawn, pool, settings.random_negatives, rng, fits)
                    made.append(_in_any_order(model, whole, rng) if isinstance(model, ListwiseReranker) else whole)
                yield listed(made, number)
            number += 1
        epoch += 1


def _in_any_order(model: ListwiseReranker, example: Example, rng: random.Random) -> Example:
    """A list as it is shown to a listwise reranker; where it leaves too little room, without its last candidates."""
    kept = example.candidates
    while len(kept) > 1 and not model.fits(example.query, [candidate.item for candidate in kept]):
        kept = kept[:-1]  # gold comes first
    return shuffled(replace(example, candidates=kept), rng)


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Let a step finish when Ctrl-C comes: between steps weights and optimizer belong together, within one they do not.

    Yields a function that says whether Ctrl-C was pressed. A second Ctrl-C stops at once.
    """
    pressed = False

    def note(_signal: int, _frame: Any) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)
