"""Trainings that are killed, asked to end, starved of disk and left alone by their neighbours: what tests and trials share."""

import contextlib
import errno
import hashlib
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import processes
import tiny
import torch

from hardwon import artifacts
from hardwon.distributed import World
from hardwon.errors import DataError
from hardwon.items import Candidate, Example, Item
from hardwon.losses import InfoNCE
from hardwon.models import Embedder
from hardwon.training import Groups, Settings, checkpoint, groups, log, train

STEPS = 12  # of 8 of 20 examples: two batches an epoch
SETTINGS = Settings(batch_size=8, negatives=1, dropout=True, learning_rate=1e-3, save_every_s=0.0)
LIMIT_S = 6.0  # how long a step waits, here
POINTS = ("half a state", "before the manifest", "after the manifest", "while old ones go", "after the update", "half a line")


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        code: its exit code; None if it had to be killed because it did not end.
        said: the error that it ended with, or what its work returned.
        seconds: from its start.
    """

    code: int | None
    said: str
    seconds: float


class Team:
    """Some processes that work together, each on its own port of the loopback.

    Args:
        size: how many.
        folder: where they say what they have to say.
        work: what each of them does, and with what.
    """

    def __init__(self, size: int, folder: Path, work: Any, *given: Any):
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("said-*"):
            old.unlink()
        multiprocessing.set_forkserver_preload(["hardwon.training.run", "sentence_transformers"])  # as `processes.together`
        context, port = multiprocessing.get_context("forkserver"), processes._free_port()
        self.folder, self.began = folder, time.monotonic()
        self.members = [
            context.Process(target=_member, args=(rank, size, port, str(folder), work, given)) for rank in range(size)
        ]
        for member in self.members:
            member.start()

    def ended(self, patience: float = 200.0, of: int | None = None) -> list[Ended]:
        """How each ended, by rank; who has not within so many seconds, or is not among the first `of`, is killed."""
        times: dict[int, float] = {}
        while not set(range(len(self.members))[:of]) <= set(times) and time.monotonic() - self.began < patience:
            for rank, member in enumerate(self.members):
                if rank not in times and member.exitcode is not None:
                    times[rank] = time.monotonic() - self.began
            time.sleep(0.01)
        made = []
        for rank, member in enumerate(self.members):
            hung = member.exitcode is None
            member.kill()
            member.join()
            path = self.folder / f"said-{rank}"
            said = path.read_text() if path.exists() else ""
            made.append(Ended(None if hung else member.exitcode, said, times.get(rank, patience)))
        return made


def _member(rank: int, size: int, port: int, folder: str, work: Any, given: Sequence[Any]) -> None:
    os.environ.update(HARDWON_TIMEOUT_S=str(LIMIT_S), HF_HUB_OFFLINE="1")
    if size > 1:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(size))
    sys.stderr = open(os.devnull, "w")  # what they say is in a file
    torch.set_num_threads(1)
    code = 0
    try:
        said = str(work(*given))
    except SystemExit as end:
        said, code = f"{type(end).__name__}: {end}", int(end.code or 0)
    except BaseException as error:
        said, code = f"{type(error).__name__}: {error}", 1
    (Path(folder) / f"said-{rank}").write_text(said)
    os._exit(code)  # as a program that has nothing more to say: its connections are closed


def command_line(*arguments: str) -> None:
    """`hardwon ARGUMENTS`, by this process."""
    from hardwon import cli

    sys.argv = ["hardwon", *arguments]
    cli.main()


def learn(embedder: str, out: str, fault: tuple[str, int, int] | None = None, pause: float = 0.0, **changed: Any) -> str:
    """Train for `STEPS` steps, or as far as it gets.

    Args:
        embedder: folder of a model of text.
        out: folder of the run.
        fault: (one of `POINTS`, how often it is passed unharmed, rank): there the process kills itself.
        pause: seconds that each step takes longer.
        changed: fields of the settings.

    Returns:
        sha256 of the weights.
    """
    settings = replace(SETTINGS, **changed)
    if fault is not None and World.current().rank == fault[2]:
        _arm(fault[0], fault[1], Path(out))
    model = Embedder.load(embedder, device="cpu")
    if pause:
        step = torch.optim.AdamW.step
        torch.optim.AdamW.step = lambda self, *given: [time.sleep(pause), step(self, *given)][1]  # type: ignore[method-assign]
    train(model, tiny.texts(), InfoNCE(0.1), steps=STEPS, settings=settings, out=Path(out))
    return digest(model)


def learn_until(embedder: str, out: str, last: int, shard: bool) -> str:
    """Train as `learn`, without dropout, but end as after SIGTERM when so many steps are done in all."""
    start = checkpoint.read(Path(out) / "checkpoint")[0]
    left, step = [last - start], torch.optim.AdamW.step

    def counting(self: Any, *given: Any) -> None:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGTERM)
        step(self, *given)

    torch.optim.AdamW.step = counting  # type: ignore[method-assign]
    return learn(embedder, out, dropout=False, shard=shard)


def resized(folder: Path, embedder: str, sizes: Sequence[int], shard: bool) -> tuple[list[str], list[Any]]:
    """What went wrong with a run that goes on with another number of processes each time, and its losses."""
    wrong = []
    for n, size in enumerate(sizes, 1):
        last = STEPS * n // len(sizes)
        ended = Team(size, folder / "team", learn_until, embedder, str(folder / "run"), last, shard).ended()
        wrong += [f"{size} processes: {end.said[:300]} ({end.code})" for end in ended if end.code != 0]
        if n < len(sizes):
            wrong += [f"{size} processes: {end.said[:300]}" for end in ended if f"after step {last};" not in end.said]
    return wrong, losses(folder / "run")


def digest(model: Any) -> str:
    """sha256 of the weights."""
    made = hashlib.sha256()
    for name, value in sorted(model.module.state_dict().items()):
        made.update(name.encode() + value.numpy().tobytes())
    return made.hexdigest()


def _arm(point: str, passes: int, out: Path) -> None:
    """Kill this process when it comes to a point the n-th time."""
    left = [passes]

    def due() -> bool:
        left[0] -= 1
        return left[0] < 0

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if point == "half a state":
        save = checkpoint.save_file

        def half(tensors: Any, path: Path) -> None:
            save(tensors, path)
            if due():
                os.truncate(path, path.stat().st_size // 2)
                die()

        checkpoint.save_file = half
    elif point in ("before the manifest", "after the manifest"):
        write = artifacts.write_json

        def written(path: Path, value: Any) -> None:
            now = path.name == artifacts.MANIFEST and due()
            if now and point.startswith("before"):
                die()
            write(path, value)
            if now:
                die()

        artifacts.write_json = written
    elif point == "while old ones go":
        remove = checkpoint.shutil.rmtree

        def removing(path: Path, ignore_errors: bool = False) -> None:
            if not ignore_errors and due():
                (Path(path) / artifacts.MANIFEST).unlink(missing_ok=True)
                die()
            remove(path, ignore_errors=ignore_errors)

        checkpoint.shutil.rmtree = removing
    elif point == "after the update":
        step = torch.optim.AdamW.step

        def stepped(self: Any, *given: Any) -> None:
            step(self, *given)
            if due():
                die()

        torch.optim.AdamW.step = stepped  # type: ignore[method-assign]
    else:
        dumps = json.dumps

        def torn(row: Any) -> str:
            if "gradient_norm" in row and due():
                with open(out / "metrics.jsonl", "a") as file:
                    file.write(dumps(row)[:40])
                die()
            return dumps(row)

        log.json = SimpleNamespace(dumps=torn, loads=json.loads)


def losses(out: Path) -> list[tuple[int, float, float]]:
    """Step, loss and norm of each row of the log."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"], row["gradient_norm"]) for row in rows if "loss" in row and "event" not in row]


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int = 8) -> Iterator[bool]:
    """A file system of its own of so many megabytes at `folder`, where the system allows it. Yields whether it does."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


@contextlib.contextmanager
def files_below(size: int) -> Iterator[None]:
    """No file may become larger than so many bytes: what a full disk says, where none can be had."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def scenarios(names: Sequence[str], embedder: str, seeing: str, pictures: dict[str, Path], out: str) -> str:
    """Several scenarios one after the other, by the same processes."""
    said = {scenario(name, embedder, seeing, pictures, f"{out}/{n}") for n, name in enumerate(names)}
    return " ".join(said)


def played(name: str, folder: Path, models: Sequence[Any]) -> list[str]:
    """What goes wrong when two processes play a scenario; `models` are the arguments between name and folder."""
    team = Team(2, folder, scenario, name, *models, str(folder / "run"))
    ended = team.ended(of=1 if None in SCENARIOS[name] else None)
    wrong = survived(name, ended)
    if None in SCENARIOS[name] and ended[0].seconds > 60 + LIMIT_S + 10:  # a minute for models to load
        wrong.append(f"process 0 waited for {ended[0].seconds:.0f} s")
    return wrong


def scenario(name: str, embedder: str, seeing: str, pictures: dict[str, Path], out: str) -> str:
    """One of `SCENARIOS`; run by two processes."""
    late = name == "the first one comes later than a step may take"
    if late and os.environ["RANK"] == "0":
        time.sleep(1.5 * LIMIT_S)
    world = World.current()
    last, folder = world.rank == world.size - 1, Path(out)
    plain = Settings(batch_size=8, negatives=1, learning_rate=1e-3)
    model, rows, settings, more = Embedder.load(embedder, device="cpu"), tiny.texts(), plain, {}
    if name == "a last short batch":
        rows, settings = rows[:7], replace(plain, batch_size=5)
    elif name == "a process without queries":
        rows, settings = rows[:2], replace(plain, batch_size=2, negatives=0)
    elif name == "a broken picture is left out":
        rows, settings = list(tiny.examples(pictures)), replace(plain, on_error="skip", max_bad_fraction=0.2)
        rows[3] = replace(rows[3], candidates=(Candidate(Item(images=(Path("/no/such.png"),)), origin="gold"),))
        model = Embedder.load(seeing, device="cpu")
    elif name == "pictures in one process alone":
        rows, settings = (*tiny.examples(pictures)[:2], *tiny.texts()[:6]), replace(plain, batch_size=2, negatives=0)
        model = Embedder.load(seeing, device="cpu")
    elif name == "the first one groups for longer than a step may take":
        settings = replace(plain, groups=Groups(size=2, skip=0))
        found = groups.group
        groups.group = lambda *given, **how: [time.sleep(1.5 * LIMIT_S), found(*given, **how)][1]
    elif name == "the first one validates for longer than a step may take":
        more = {"validate": (2, lambda: time.sleep(1.5 * LIMIT_S) or 0.0)}
    elif name == "the first one cannot save":
        settings = replace(plain, save_every_s=0.0)
        if world.first:

            def full(*_given: Any) -> None:
                raise OSError(errno.ENOSPC, "No space left on device")

            checkpoint.save_file = full
    elif name == "one reads other data":
        rows = rows[::-1] if last else rows
    elif last and not late:
        _spoil(model, name)
    train(model, rows, InfoNCE(0.1), steps=4, settings=settings, out=folder, **more)
    return "finished"


SCENARIOS = {  # by name, what the processes have to say: nothing is said twice, and nobody waits for ever
    "the first one comes later than a step may take": ("finished", "finished"),
    "a last short batch": ("finished", "finished"),
    "a process without queries": ("finished", "finished"),
    "a broken picture is left out": ("finished", "finished"),
    "pictures in one process alone": ("finished", "finished"),
    "the first one groups for longer than a step may take": ("finished", "finished"),
    "the first one validates for longer than a step may take": ("finished", "finished"),
    "the first one cannot save": (
        "ArtifactError: the checkpoint of step 1 cannot be written",
        "HardwonError: saving a checkpoint failed",
    ),
    "one reads other data": (
        "DataError: the processes do not learn the same (step 1)",
        "DataError: the processes do not learn the same (step 1)",
    ),
    "one has a bug": ("ProcessLost: process 0 of 2 (step 3, gathering what was encoded)", "ZeroDivisionError: a bug"),
    "one meets an item that has gone bad": (
        "ProcessLost: process 0 of 2 (step 3, gathering what was encoded)",
        "DataError: the disk is gone",
    ),
    "one is killed": ("ProcessLost: process 0 of 2 (step 3, gathering what was encoded)", ""),
    "one hangs": ("ProcessLost: process 0 of 2 (step 3, gathering what was encoded)", None),
}  # fmt: skip


def _spoil(model: Any, name: str) -> None:
    """In the third step this process fails."""
    passes, forward = [], model.forward

    def failing(items: Sequence[Item]) -> torch.Tensor:
        if torch.is_grad_enabled():  # else it is the trial before the first step
            passes.append(len(items))
        if len(passes) == 3:
            if name == "one has a bug":
                raise ZeroDivisionError("a bug")
            if name == "one meets an item that has gone bad":
                raise DataError("the disk is gone")
            if name == "one is killed":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(600)
        return forward(items)

    model.forward = failing


def survived(name: str, ended: Sequence[Ended]) -> list[str]:
    """What is wrong with the end of a scenario; nothing, if the processes ended as they should, and soon."""
    wrong = []
    for rank, (end, expected) in enumerate(zip(ended, SCENARIOS[name], strict=True)):
        if expected is None:  # the one that hangs is the test's to end
            continue
        if not end.said.startswith(expected):
            wrong.append(f"process {rank} said {end.said[:300]!r}, not {expected!r}")
        if (end.code == 0) != (expected == "finished"):
            wrong.append(f"process {rank} ended with {end.code}")
        if end.code is None:
            wrong.append(f"process {rank} hung")
    return wrong


def planted(count: int, draw: Any) -> tuple[Example, ...]:
    """Examples of two sources with copies of each other's positives everywhere, and some that are known as related."""
    answers = [f"answer {draw.randrange(count // 3)}" for _ in range(count)]
    made = []
    for n, answer in enumerate(answers):
        others = {draw.choice(answers) for _ in range(3)} - {answer}
        related = frozenset({Item(text=draw.choice(answers)).content}) if draw.random() < 0.2 else frozenset()
        golds = (Candidate(Item(text=answer), 1.0, "gold"),)
        given = tuple(Candidate(Item(text=other), 0.1) for other in sorted(others))
        made.append(Example(Item(text=f"query {n}"), (*golds, *given), f"source {n % 2}", related))
    return tuple(made)


@dataclass(frozen=True)
class Resumed:
    """What became of runs that were killed again and again.

    Attributes:
        kills: how often a process was killed.
        wrong: what was not as in the undisturbed run.
    """

    kills: int
    wrong: tuple[str, ...]


def calm(folder: Path, embedder: str, size: int) -> tuple[str, list[tuple[int, float, float]]]:
    """Digest and losses of an undisturbed run."""
    (end, *_) = Team(size, folder / "team", learn, embedder, str(folder / "run")).ended()
    assert end.code == 0, end.said
    return end.said, losses(folder / "run")


def killed(folder: Path, embedder: str, size: int, faults: Sequence[tuple[str, int, int] | float], truth: Any) -> Resumed:
    """A run that is killed at each of the faults, and then comes to its end.

    Args:
        folder: of the run.
        embedder: see `learn`.
        size: processes.
        faults: as `learn` takes them, or seconds after the first step at which one of the processes is killed.
        truth: what `calm` gave.
    """
    wrong, kills, out = [], 0, folder / "run"
    for fault in faults:
        timed = isinstance(fault, float)
        team = Team(size, folder / "team", learn, embedder, str(out), None if timed else fault, 0.05)
        if timed:
            _wait_for_a_step(team, out)
            time.sleep(fault)
            team.members[int(fault * 1e6) % size].kill()
        ended = team.ended()
        kills += any(end.code == -signal.SIGKILL for end in ended)
        wrong += [f"{fault}: {end.said[:200]} ({end.code})" for end in ended if end.code is None]
        if size > 1 and any(end.code == -signal.SIGKILL for end in ended):
            wrong += [f"{fault}: went on alone" for end in ended if end.code == 0 and "finished" in end.said]
    ended = Team(size, folder / "team", learn, embedder, str(out)).ended()
    wrong += [f"weights differ: {end.said[:200]}" for end in ended if end.said != truth[0]]
    if losses(out) != truth[1]:
        wrong.append(f"losses differ: {losses(out)}")
    return Resumed(kills, tuple(wrong))


def _wait_for_a_step(team: Team, out: Path) -> None:
    """Until one more row is in the log than before, or all have ended."""
    path, deadline = out / "metrics.jsonl", time.monotonic() + 60
    before = path.stat().st_mtime_ns if path.exists() else 0
    while time.monotonic() < deadline and any(member.is_alive() for member in team.members):
        if path.exists() and path.stat().st_size and path.stat().st_mtime_ns > before:
            return
        time.sleep(0.005)


def terminated(folder: Path, embedder: str, size: int, after: float, truth: Any) -> list[str]:
    """What goes wrong with a run that gets SIGTERM so many seconds after its first step, and is started again."""
    team, out = Team(size, folder / "team", learn, embedder, str(folder / "run"), None, 0.1), folder / "run"
    _wait_for_a_step(team, out)
    time.sleep(after)
    asked = time.monotonic()
    for member in team.members if int(after * 1e6) % 2 else team.members[-1:]:  # all of them, as launchers do, or one
        member.terminate()
    ended = team.ended()
    wrong = [f"{end.said[:200]} ({end.code})" for end in ended if end.code != 0]
    wrong += ["too slow"] if max(end.seconds for end in ended) - (asked - team.began) > 10 else []
    stopped = [end for end in ended if end.said.startswith("Stopped: stopped by SIGTERM after step")]
    if len(stopped) not in (0, size):
        wrong.append("not all of them stopped")
    if stopped and not checkpoint.begun(out / "checkpoint"):
        wrong.append("no checkpoint")
    (end, *_) = Team(size, folder / "team", learn, embedder, str(out)).ended()
    return wrong + ([f"weights differ: {end.said[:200]}"] if (end.said, losses(out)) != tuple(truth) else [])


def injections() -> dict[str, Any]:
    """By name, what makes numbers infinite or NaN in a model of text: given the model in the middle of a training."""
    made: dict[str, Any] = {}
    weights = ("word_embeddings.weight", "layer.0.attention.self.query.weight", "layer.1.output.dense.bias", "LayerNorm.weight")
    for part in weights:
        for value in (float("nan"), float("inf"), float("-inf")):
            made[f"{part} {value}"] = _weights(part, value)
    for part in ("word_embeddings", "layer.0.intermediate.dense", "layer.1.attention.self.value"):
        made[f"output of {part}"] = _output(part, float("nan"))
    made["output of the last layer, infinite"] = _output("layer.1.output.LayerNorm", float("inf"))
    made["output of the first layer, beyond float16"] = _output("layer.0.output.dense", 1e39)
    for value in (float("nan"), float("inf")):
        made[f"gradient {value}"] = _gradient(value)
    made["a gradient that overflows"] = _gradient(1e38)
    return made


def _weights(part: str, value: float) -> Any:
    def inject(model: Any) -> None:
        parameter = next(p for name, p in model.module.named_parameters() if part in name)
        parameter.data.view(-1)[::7] = value

    return inject


def _module(model: Any, part: str) -> Any:
    return next(module for name, module in model.module.named_modules() if name.endswith(part))


def _output(part: str, value: float) -> Any:
    def inject(model: Any) -> None:
        _module(model, part).register_forward_hook(lambda _module, _given, made: made * value)

    return inject


def _gradient(value: float) -> Any:
    def inject(model: Any) -> None:
        parameter = next(p for name, p in model.module.named_parameters() if "layer.0.output.dense.weight" in name)
        parameter.register_hook(lambda gradient: torch.full_like(gradient, value))

    return inject
