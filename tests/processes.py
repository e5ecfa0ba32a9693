"""Several real processes connected by gloo on this machine, and what the tests let them do.

Whatever is done here by several processes is also done by one: a function called in the test itself finds no others.
"""

import json
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import tiny
import torch
import torch.multiprocessing as mp
from fakes import FakeEncoder
from tiny import gradient_of

from hardwon import distributed
from hardwon.artifacts import write_json
from hardwon.distributed import World
from hardwon.errors import BadItems, Diverged, ModelError
from hardwon.evaluation import Benchmark, Task, evaluate, vectors
from hardwon.items import Candidate, Example, Item
from hardwon.losses import AmplifiedInfoNCE, FalseNegatives, InfoNCE, JudgeAlignment, Listwise, Pairwise, TopKInfoNCE
from hardwon.losses.amplified import Kind
from hardwon.mining import Mining, judging, mine, retrieval
from hardwon.models import Embedder, Judgements, Reranker, cached, precision
from hardwon.search import Budget, Fused
from hardwon.training import Memory, Settings, groups, run, train
from hardwon.training.batches import listed, shared
from hardwon.training.objective import LearnedTemperature, Objective
from hardwon.training.step import embedder_step, reranker_step


def together(size: int, folder: Path, *works: tuple) -> list[list]:
    """By process, what each of `works` returns: pairs of a function of a module and its arguments."""
    folder.mkdir(exist_ok=True)
    # A server that has imported everything makes the processes: each starts in a moment instead of ten seconds.
    multiprocessing.set_forkserver_preload(["hardwon.training.run", "sentence_transformers"])
    entry = (size, _free_port(), str(folder), works)
    context = mp.start_processes(_entry, entry, nprocs=size, join=False, start_method="forkserver")
    try:
        while not context.join():
            pass
    finally:
        for process in context.processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(size)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _entry(rank: int, size: int, port: int, folder: str, works: Sequence[tuple]) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(size))
    torch.set_num_threads(1)
    torch.save([work(*args) for work, *args in works], Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


RULES = FalseNegatives(student=0.1, judge=0.2, copies=0.95)
LEARNED = LearnedTemperature(low=0.05, high=0.2)
SUM = JudgeAlignment(0.2) + 0.5 * InfoNCE(0.1, hardness=2.0, symmetric=True)
# Loss, and the choices around it.
CASES = {
    "plain": (InfoNCE(0.1), {}),
    "hardness": (InfoNCE(0.1, hardness=2.0), {}),
    **{f"amplified, {kind}": (AmplifiedInfoNCE(0.1, kind=kind), {}) for kind in get_args(Kind)},
    "amplified, capped": (AmplifiedInfoNCE(0.1, cap=True), {}),
    "hardest": (TopKInfoNCE(0.1, k=3, beta=0.05), {}),
    "judge": (JudgeAlignment(0.2, judge_temperature=0.1), {}),
    "pairwise": (Pairwise(3.0), {}),
    "listwise": (Listwise(0.1), {}),
    "rules": (InfoNCE(0.1, hardness=2.0), {"rules": RULES}),
    "widths": (InfoNCE(0.1, hardness=2.0), {"widths": (8, 20)}),
    "temperature": (InfoNCE(0.1, hardness=2.0), {"temperature": LEARNED}),
    "sum": (SUM, {}),
    "symmetric": (InfoNCE(0.1, symmetric=True), {}),
    "symmetric, hardness": (InfoNCE(0.1, hardness=2.0, symmetric=True), {}),
    "everything": (SUM, {"rules": RULES, "widths": (8, 20), "temperature": LearnedTemperature(0.05, 0.3)}),
}
LISTS = {
    "pairwise": (Pairwise(), {}),
    "listwise": (Listwise(), {}),
    "sum": (Pairwise(2.0) + 0.5 * Listwise(0.5), {}),
    "rules": (Pairwise() + Listwise(), {"rules": FalseNegatives(student=0.1, judge=0.2)}),
}


def examples() -> tuple[Example, ...]:
    """Seven: items on both sides, several golds, ragged lists, graded, related and too good candidates."""
    crossed = Example(
        Item(text="the square is red"),
        (Candidate(Item(text="red square"), 1.0, "gold"), Candidate(Item(text="blue circle"), 0.3)),
        "texts",
    )
    several = Example(
        Item(text="a bar, a blue one"),
        (
            Candidate(Item(text="the bar is blue"), 0.9, "gold"),
            Candidate(Item(text="blue bar"), 1.0, "gold"),
            Candidate(Item(text="it is the blue bar"), 0.95),
            Candidate(Item(text="the bar is black")),
            Candidate(Item(text="the triangle"), 0.1),
        ),
        "texts",
        related=frozenset({Item(text="the bar is black").content}),
    )
    return (*tiny.texts()[:3], crossed, several, *tiny.texts()[6:8])


def steps(embedder: str, reranker: str, count: int = 7, keep: int | None = None) -> dict:
    """Value and gradients of every case on the first `count` examples, with graphs for `keep` tokens."""
    world, made = World.current(), {}
    memory, some = Memory(60, keep), examples()[:count]
    model = Embedder.load(embedder, device="cpu")
    model.module.eval()  # without dropout
    for name, (loss, around) in CASES.items():
        objective = Objective(loss, **around)
        made[name] = {"value": embedder_step(model, objective, shared(some, 0), memory, world), "gradient": gradient_of(model)}
        if objective.log_temperature is not None:
            made[name]["temperature"] = objective.log_temperature.grad
    ranker = Reranker.load(reranker, device="cpu")
    ranker.module.eval()
    for name, (loss, around) in LISTS.items():
        value = reranker_step(ranker, Objective(loss, **around), listed(some, 0), memory, world)
        made[f"lists, {name}"] = {"value": value, "gradient": gradient_of(ranker)}
    return made


def cramped(embedder: str) -> dict:
    """A step that runs out of memory in the last process alone: in its first pass, and again with its gradients half done."""
    world, failures = World.current(), []
    model = Embedder.load(embedder, device="cpu")
    model.module.eval()
    forward = model.forward

    def limited(items):
        if len(items) > 2:
            failures.append("forward")
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(items)

    def breaks(gradient):
        if "backward" not in failures:
            failures.append("backward")
            raise torch.OutOfMemoryError("CUDA out of memory.")

    if world.rank == world.size - 1:
        model.forward = limited
        model.body.transformer.encoder.layer[0].output.dense.weight.register_hook(breaks)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        value = embedder_step(model, SUM, shared(examples(), 0), Memory(100_000), world)
    return {"value": value, "gradient": gradient_of(model), "failures": set(failures), "told": len(told)}


def weights_of(model) -> dict[str, torch.Tensor]:
    """A copy of all weights."""
    return {name: value.detach().clone() for name, value in model.module.named_parameters()}


SETTINGS = Settings(batch_size=7, negatives=3, learning_rate=1e-3, weight_decay=0.5, memory=Memory(60, 130))
FULL = replace(SETTINGS, false_negatives=RULES, widths=(8, 20), temperature=LEARNED, report_every=2)


def trainings(embedder: str, reranker: str, out: str) -> dict:
    """Weights and outputs after trainings; every process has a folder of its own, to which it may or may not write."""
    own = Path(out) / f"process-{World.current().rank}"
    run.SAVE_EVERY_S = 0.0
    model = train(Embedder.load(embedder, device="cpu"), examples(), SUM, steps=5, settings=FULL, out=own / "vectors")
    items = [item for e in examples() for item in (e.query, *(c.item for c in e.candidates))]
    made = {"vectors": {"weights": weights_of(model), "outputs": torch.from_numpy(model.encode(items))}}
    ranker = Reranker.load(reranker, device="cpu")
    settings = replace(SETTINGS, track=("tensorboard",))
    train(ranker, examples(), Pairwise() + Listwise(), steps=3, settings=settings, out=own / "lists")
    pairs = [(examples()[0].query, item) for item in items]
    return made | {"lists": {"weights": weights_of(ranker), "outputs": torch.from_numpy(ranker.score_pairs(pairs))}}


SHARDED = replace(SETTINGS, shard=True)


def sharding(embedder: str, reranker: str, seeing: str, pictures: dict[str, Path], out: str) -> dict:
    """Weights, losses and outputs of trainings whose weights are divided among the processes."""
    folder, made = Path(out), {}

    def trained(name: str, model, data, loss, settings):
        train(model, data, loss, steps=3, settings=settings, out=folder / name)
        rows = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        losses = [(row["loss"], row["gradient_norm"]) for row in rows if "loss" in row]
        made[name] = {"weights": weights_of(model), "losses": losses, "kinds": {type(p) for p in model.module.parameters()}}
        return model

    def text():
        return Embedder.load(embedder, device="cpu")

    items = [item for e in examples() for item in (e.query, *(c.item for c in e.candidates))]
    everything = replace(FULL, shard=True)
    model = trained("kept", text(), examples(), SUM, replace(everything, memory=Memory(60)))
    made["kept"]["outputs"] = torch.from_numpy(model.encode(items))
    trained("some kept", text(), examples(), SUM, replace(everything, memory=Memory(60, 130, gradient_checkpointing=True)))
    trained("few", text(), examples()[:2], InfoNCE(0.1), replace(SHARDED, batch_size=2))
    trained("lists", Reranker.load(reranker, device="cpu"), examples(), Pairwise() + Listwise(), SHARDED)
    mixed = (*tiny.examples(pictures)[:5], *tiny.texts()[:5])  # a pass of pictures here, one of texts there
    trained("mixed", Embedder.load(seeing, device="cpu"), mixed, InfoNCE(0.1), replace(SHARDED, batch_size=5, clip=0.05))
    return made


def looking(seeing: str, pictures: dict[str, Path], out: str) -> dict:
    """How many pictures the frozen tower looked at in a training with a cache, and what was learned."""
    model, looks = Embedder.load(seeing, device="cpu", vision_cache=Path(out) / "features"), []
    model.body.transformer.vision_tower.register_forward_hook(lambda tower, given, _: looks.append(len(given[0])))
    settings = replace(SETTINGS, batch_size=8, freeze=("vision",), memory=Memory(200))
    train(model, tiny.examples(pictures), InfoNCE(0.1), steps=3, settings=settings, out=Path(out) / "run")
    vectors = model.encode([candidate.item for e in tiny.examples(pictures) for candidate in e.candidates])
    return {"looks": sum(looks), "weights": weights_of(model), "outputs": torch.from_numpy(vectors)}


def skipping(seeing: str, pictures: dict[str, Path]) -> dict:
    """Weights of trainings that leave out a damaged picture and a missing one, and what is said when they may not."""
    rows, made = list(tiny.examples(pictures)), {}
    whole = rows[0].gold[0].images[0].read_bytes()
    place = whole.index(b"IDAT") + 8
    for n, picture in ((0, whole[:place] + bytes(20) + whole[place + 20 :]), (7, Path("/no/such.png"))):
        rows[n] = replace(rows[n], candidates=(Candidate(Item(images=(picture,)), origin="gold"), *rows[n].negatives))
    for name, freeze in (("learning", ()), ("frozen", ("vision",))):
        settings = replace(SETTINGS, batch_size=6, freeze=freeze, on_error="skip", max_bad_fraction=0.2)
        model = Embedder.load(seeing, device="cpu")
        train(model, rows, InfoNCE(0.1), steps=2, settings=settings)
        made[name] = {"weights": weights_of(model)}
        try:
            train(model, rows, InfoNCE(0.1), steps=2, settings=replace(settings, on_error="raise"))
        except BadItems as error:
            made[name]["said"] = str(error)
    return made


def interrupted(embedder: str, out: str, dropout: bool) -> dict:
    """Weights of a training that goes on after Ctrl-C in the last process, and of an undisturbed one."""
    world, steps_of, settings = World.current(), {}, replace(FULL, dropout=dropout, memory=Memory(100_000))  # one pass a step

    def trained(name: str, stop: int | None = None) -> dict:
        model, passes = Embedder.load(embedder, device="cpu"), []
        forward = model.forward

        def watched(items):
            if not torch.is_grad_enabled():  # the trial before the first step
                return forward(items)
            passes.append(len(items))
            if len(passes) == stop and world.rank == world.size - 1:
                os.kill(os.getpid(), signal.SIGINT)
            return forward(items)

        model.forward = watched
        try:
            train(model, examples(), SUM, steps=6, settings=settings, out=Path(out) / name)
        except KeyboardInterrupt:
            steps_of["before"] = len(passes)
        else:
            steps_of[name] = len(passes)
        return weights_of(model)

    whole = trained("whole")
    trained("parts", stop=3)
    return {"whole": whole, "parts": trained("parts"), "steps": steps_of}


def choosing(embedder: str, gains: Sequence[float]) -> dict:
    """Weights of a training with precision "auto" where bfloat16 is `gains[rank]` times as fast; who measured that."""
    world, measured, before = World.current(), [], precision.bf16_gain

    def measure(device: str) -> float:
        measured.append(device)
        return gains[world.rank]

    precision.bf16_gain = measure
    try:
        model = Embedder.load(embedder, device="cpu")
        train(model, examples(), InfoNCE(0.1), steps=2, settings=replace(SETTINGS, precision="auto"))
        asked = len(measured)
        other = Embedder.load(embedder, device="cpu")
        truth = "bf16" if gains[0] > precision.GAIN else "fp32"
        train(other, examples(), InfoNCE(0.1), steps=2, settings=replace(SETTINGS, precision=truth))
    finally:
        precision.bf16_gain = before
    return {"weights": weights_of(model), "truth": weights_of(other), "asked": asked}


def foreign(scores, targets):
    """A loss of somebody else's."""
    return scores.mean()


class Spoiled:
    """A loss that the second process cannot compute."""

    def per_query(self, scores, targets):
        return scores.sum(dim=1) * (torch.nan if World.current().rank == 1 else 1.0)

    def __call__(self, scores, targets):
        return self.per_query(scores, targets).mean()


def refusals(embedder: str) -> dict[str, str]:
    """What a process says of losses and vectors that are no good."""
    world, model, made = World.current(), Embedder.load(embedder, device="cpu"), {}

    def said(name: str, loss) -> None:
        try:
            embedder_step(model, loss, shared(examples(), 4), Memory(), world)
        except (Diverged, ValueError) as error:
            made[name] = f"{type(error).__name__}: {error}"

    said("foreign", foreign)
    said("one process", Spoiled())
    with torch.no_grad():
        model.body.transformer.encoder.layer[1].output.dense.bias[0] = torch.inf
    said("vectors", InfoNCE())
    return made


def sums(bucket: int) -> dict:
    """What becomes of gradients and numbers; `bucket` numbers travel together."""
    world, before = World.current(), distributed.BUCKET
    rank = float(world.rank)
    both, one, none = (torch.nn.Parameter(torch.zeros(size)) for size in ((2, 2), (3,), (2,)))
    both.grad = torch.tensor([[1.0, 2.0], [3.0, 4.0]]) * (1 + rank)
    if world.first:
        one.grad = torch.tensor([5.0, 6.0, 7.0])
    distributed.BUCKET = bucket
    world.sum_gradients([both, one, none])
    distributed.BUCKET = before
    given = torch.tensor([rank, -rank])
    same = [torch.nn.Parameter(torch.tensor([rank + 3.0])), torch.nn.Parameter(torch.tensor([[rank]]))]
    world.same(same)
    world.wait()
    return {
        "gradients": [both.grad, one.grad, none.grad],
        "sum": world.sum(given),
        "largest": world.largest(given),
        "given": given,
        "same": [parameter.detach() for parameter in same],
        "world": (world.rank, world.size, world.first),
    }


class Slow(FakeEncoder):
    """An encoder that logs what it is asked for, and then takes its time."""

    def __init__(self, log: Path, pause: float):
        super().__init__()
        self.log, self.pause = log, pause

    def encode(self, items, *, progress=""):
        with open(self.log, "ab", buffering=0) as file:
            file.write(f"{' '.join(item.key for item in items)}\n".encode())
        time.sleep(self.pause)
        return super().encode(items)


class Logged(FakeEncoder):
    """A slow encoder and judge that log what they are asked about before they answer."""

    def __init__(self, log: Path, pause: float):
        super().__init__()
        self.log, self.pause = log, pause

    def note(self, word: str, keys: Sequence[str]) -> None:
        with open(self.log, "ab", buffering=0) as file:  # in one write: whoever reads the log sees whole calls
            file.write(f"{word} {' '.join(keys)}\n".encode())

    def encode(self, items, *, progress=""):
        self.note("embed", [item.key for item in items])
        time.sleep(self.pause)
        return super().encode(items)

    def judge(self, pairs, *, progress=""):
        keys = [query.key + item.key for query, item in pairs]
        self.note("judge", keys)
        time.sleep(self.pause)
        yes = np.array([int(key, 16) % 8001 / 1000 - 4 for key in keys], dtype=np.float32)
        return Judgements(yes, np.ones_like(yes))


def mining(out: Path, pause: float, queries: int) -> None:
    """Mine; chunks, blocks and batches are small."""
    judging.BATCH, cached.CHUNK, retrieval.BLOCK = 20, 16, 16
    model = Logged(out / "log", pause)
    search = retrieval.nearest_below

    def searching(vectors, corpus, k, ceiling, exclude):
        model.note("search", [f"{row.tobytes().hex()[:32]}" for row in vectors])
        time.sleep(pause)
        return search(vectors, corpus, k, ceiling, exclude=exclude)

    retrieval.nearest_below = searching
    data = [Example(Item(text=f"q{n}"), (Candidate(Item(text=f"t{n}"), origin="gold"),), "s") for n in range(queries)]
    mined = mine(data, model, model, settings=Mining(depth=6, keep=3, min_auc=0.0), store=out / "store")
    (out / "artifact").mkdir()
    mined.write(out / "artifact", out)


def evaluating(embedder: str, reranker: str, out: str) -> dict:
    """Answers of an evaluation of 83 queries, with a store of this process's own and with one that all share."""
    folder, before = Path(out), vectors.SHARE
    vectors.SHARE = 8
    corpus = tuple(Item(text=f"{'square ' * (n % 5)}red {n % 11} bar {n}") for n in range(40))
    queries = tuple(Item(text=f"find the {'blue ' * (n % 7)}bar {n}") for n in range(83))
    tasks = (
        Task("asked", "retrieval", "ind", queries, corpus, tuple((n % 40,) for n in range(83))),
        Task("few", "vqa", "ood", queries[:3], corpus[:5], ((0,), (1,), (2,))),
    )
    model, made = Embedder.load(embedder, device="cpu"), {}
    encode, calls = model.encode, []
    model.encode = lambda items, *, progress="": calls.append([item.key for item in items]) or encode(items)
    ranker = Fused(Reranker.load(reranker, device="cpu"), depth=3, weight=0.5)
    own = folder / f"process-{World.current().rank}"
    thrifty = replace(ranker, budget=Budget(pairs=1.4))
    runs = (("none", None, None), ("shared", folder / "shared", None), ("own", own, ranker), ("budget", own, thrifty))
    for name, store, rerank in runs:
        calls.clear()
        report = evaluate(model, Benchmark("b", tasks), rerank=rerank, store=store)
        made[name] = {"results": [result.to_json() for result in report.results], "calls": list(calls)}
        made[name] |= {"encoded": report.made["items_encoded"], "processes": report.made["processes"]}
        made[name]["rerank"] = report.made["rerank"]
    calls.clear()
    made["again"] = [evaluate(model, Benchmark("b", tasks), store=folder / "shared").made["items_encoded"], list(calls)]
    vectors.SHARE = before
    return made


def failing(size: int) -> list:
    """What a process says when the second of them cannot encode, and what its report says when it goes on."""
    vectors.SHARE, model = 2, FakeEncoder()
    tasks = [
        Task(name, "vqa", "ind", tuple(Item(text=f"{name} {n}") for n in range(count)), (Item(text=name),), ((0,),) * count)
        for name, count in (("fine", 3), ("broken", 9))
    ]
    if World.current().rank == size - 1:
        model.given = {f"broken {n}": np.full(12, np.nan) for n in range(9)}
    try:
        evaluate(model, Benchmark("b", tuple(tasks)))
    except Exception as error:
        said = repr(error)
    return [said, evaluate(model, Benchmark("b", tuple(tasks)), on_error="skip").failed]


def breaking(size: int, ill: bool) -> str:
    """What a process that skips failures says when a reranker breaks down in the second one; `ill`: and fails in the others."""

    class Breaks:
        fingerprint = "breaks"

        def score_pairs(self, pairs: Sequence[tuple[Item, Item]], *, progress: str = "") -> np.ndarray:
            if World.current().rank == size - 1:
                raise ZeroDivisionError("a bug")
            if ill:
                raise ModelError("no usable score")
            return np.zeros(len(pairs), dtype=np.float32)

    corpus = tuple(Item(text=f"t{n}") for n in range(4))
    tasks = tuple(
        Task(name, "vqa", "ind", tuple(Item(text=f"{name} {n}") for n in range(4)), corpus, ((0,),) * 4)
        for name in ("one", "two")
    )
    try:
        evaluate(FakeEncoder(), Benchmark("b", tasks), rerank=Fused(Breaks()), progress=False, on_error="skip")
    except Exception as error:
        return repr(error)
    return "went on"


def measuring(out: Path, pause: float) -> None:
    """Evaluate a hundred items, ten at a time, by a slow encoder that logs what it is asked for."""
    vectors.SHARE, model = 10, Slow(out / "log", pause)
    items = tuple(Item(text=f"q{n}") for n in range(50)), tuple(Item(text=f"t{n}") for n in range(50))
    tasks = Task("whole", "retrieval", "ind", *items, tuple((n,) for n in range(50)))
    report = evaluate(model, Benchmark("b", (tasks,)), store=out / "store")
    write_json(out / "report.json", report.to_json())


def starting(embedder: str) -> str:
    """What a process says of a reranker that starts from an embedder, while the processes are connected."""
    World.current()
    try:
        Reranker.start_from(Embedder.load(embedder, device="cpu"), layers=1)
    except Exception as error:
        return repr(error)
    return "fine"


def untracked(embedder: str, out: str) -> str:
    """What a process says when the tracker of the first one cannot start."""
    folder = Path(out) / "run"
    if World.current().first:
        folder.mkdir(parents=True)
        (folder / "tensorboard").write_text("in the way of a folder")
    try:
        model = Embedder.load(embedder, device="cpu")
        train(model, examples(), InfoNCE(0.1), steps=2, settings=replace(SETTINGS, track=("tensorboard",)), out=folder)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "went on"


def grouped(embedder: str) -> dict:
    """Groups and weights of a training in batches of near misses, and whether this process found the groups itself."""
    asked, before = [], groups.group
    groups.group = lambda *args, **settings: asked.append(1) or before(*args, **settings)
    try:
        model = Embedder.load(embedder, device="cpu")
        how = groups.Groups(size=2, skip=0)
        numbers = groups.agreed(examples(), model, how, seed=0, out=None)
        train(model, examples(), InfoNCE(0.1), steps=2, settings=replace(SETTINGS, groups=how))
    finally:
        groups.group = before
    return {"groups": numbers, "weights": weights_of(model), "asked": len(asked)}


def program(path: str, *arguments: str) -> None:
    """A program with its command line, as torchrun starts it in every process."""
    sys.argv = [path, *arguments]
    runpy.run_path(path, run_name="__main__")
