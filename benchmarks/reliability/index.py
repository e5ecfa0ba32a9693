"""Group F: indexes.

The tests try a sample of the same: what does the work lies in tests/stocked.py.
"""

import contextlib
import io
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[2] / "tests"))

import stocked
from fakes import FakeEncoder
from stocked import BACKENDS, SPACE, entry, unit

from benchmarks.reliability.trial import Outcome, Trial
from hardwon.errors import ArtifactError, HardwonError
from hardwon.items import Item
from hardwon.search import canaries, open_index, stores
from hardwon.search.compressed import Compressed, Form, recalls
from hardwon.search.retrieve import nearest
from hardwon.stages.indexing import Wanted, index_path

SERVERS = 20  # of a server or a data base on disk a write takes this many times as long, and so many times fewer are tried
KINDS = {
    "model": "other",
    "width": 32,
    "dim": 8,
    "dtype": "float16",
    "instruction": "find it",
    "metric": "euclid",
    "layout": 99,
}


@contextlib.contextmanager
def places() -> Iterator[dict[str, str]]:
    """What `--store` says for each kind, with a real PostgreSQL for a while."""
    with stocked.postgres() as address:
        yield {kind: address if kind == "postgresql" else kind for kind in BACKENDS}


@contextlib.contextmanager
def quiet() -> Iterator[Path]:
    """A folder for a while, without the bars of many runs."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        yield Path(folder)


def mismatches(times: int, seed: int) -> Outcome:
    """F1: opened with something else, and searched by another model."""
    from hardwon.search.stores import base

    wrong, tried, before = [], 0, base.METRICS
    with quiet() as folder, places() as found:
        for kind, store in found.items():
            stores.create(store, folder, "rows", SPACE).close()
            base.METRICS = (*before, "euclid")
            for field, value in KINDS.items():
                tried += 1
                with contextlib.suppress(ArtifactError):
                    stores.opened(store, folder, "rows", replace(SPACE, **{field: value})).close()
                    wrong.append(f"{kind}: {field}")
            base.METRICS = before
            out, file = folder / f"idx-{kind}", folder / "a.txt"
            file.write_text("a text")
            index_path(FakeEncoder(dim=16), "m", file, out, Wanted(store=store))
            tried += 1
            with contextlib.suppress(ArtifactError):
                open_index(out, FakeEncoder("fake-2", dim=16)).search(Item(text="x"))
                wrong.append(f"{kind}: another model's query")
            stores.drop(store, folder, "rows")
    return Outcome(
        tried, len(wrong), f"let through: {', '.join(wrong) or 'none'}; {len(KINDS) + 1} kinds x {len(found)} stores"
    )


def operations(times: int, seed: int) -> Outcome:
    """F2: random writes against a dict."""
    told, tried, wrong = [], 0, 0
    with quiet() as folder, places() as found:
        for kind, store in found.items():
            count = times if kind == "embedded" else max(1, times // SERVERS)
            name = stocked.stores_name(seed)
            stores.create(store, folder, name, SPACE).close()
            differ = stocked.random_steps(
                lambda store=store, name=name: stores.opened(store, folder, name, SPACE), count, seed, look=0.05
            )
            told.append(f"{kind} {count:,} with {differ} differences")
            tried, wrong = tried + count, wrong + differ
    return Outcome(tried, wrong, "; ".join(told) + "; an id twice in one write is an error")


def vectors(times: int, seed: int) -> Outcome:
    """F3: vectors that are not finite, not of unit length, or of another width."""
    tried = wrong = 0
    with quiet() as folder, places() as found:
        for kind, store in found.items():
            opened = stores.create(store, folder, "bad", SPACE)
            opened.upsert([entry(n) for n in range(3)], unit(3, seed))
            kept = {entry(n).id: (entry(n).payload, unit(3, seed)[n]) for n in range(3)}
            for number, bad in enumerate(stocked.bad_vectors(times // len(found), seed)):
                tried += 1
                wrong += not stocked.refused(opened, [entry(n) for n in (1, 2, 9)], bad)
                if number % 25 == 0:
                    wrong += bool(stocked.differs(opened, kept, number))
            wrong += bool(stocked.differs(opened, kept, seed))
            opened.close()
            stores.drop(store, folder, "bad")
            assert kind
    return Outcome(tried, wrong, "all refused, nothing changed" if not wrong else f"{wrong} let through or changed something")


def damage(times: int, seed: int) -> Outcome:
    """F4: files cut or with a flipped bit; and how long looking takes (CPU: the machine may have more to do)."""
    with quiet() as folder:
        missed = stocked.damaged(folder, times, seed)
        rate = _seconds_per_gb(folder)
    return Outcome(
        times, len(missed) + (rate >= 1), f"not found out: {', '.join(missed) or 'none'}; {rate:.2f} s of CPU a GB of checksums"
    )


def _seconds_per_gb(folder: Path) -> float:
    from hardwon.artifacts import checksum

    (folder / "large").write_bytes(bytes(64 << 20))
    seconds = []
    for _ in range(20):
        start = time.process_time()
        checksum(folder / "large")
        seconds.append(time.process_time() - start)
    return min(seconds) * 16


def kills(times: int, seed: int) -> Outcome:
    """F5: SIGKILL while writing."""
    told, wrong, tried = [], 0, 0
    with quiet() as folder, places() as found:
        for kind, store in found.items():
            (folder / kind).mkdir()
            lost, torn, slow, batches = stocked.killed(store, folder / kind, times, seed)
            told.append(f"{kind}: {batches} batches, {lost} rows lost, {torn} torn, {slow} slow to open")
            # Qdrant's local mode writes point by point: what nobody acknowledged may be there in part.
            wrong, tried = wrong + lost + slow + (0 if kind == "qdrant" else torn), tried + times
    return Outcome(tried, wrong, "; ".join(told))


def crowds(times: int, seed: int) -> Outcome:
    """F6: processes that write while others read."""
    told, wrong, tried = [], 0, 0
    with quiet() as folder, places() as found:
        for kind, store in found.items():
            if kind == "qdrant":
                first = stores.create(store, folder, "one", SPACE)
                try:
                    stores.opened(store, folder, "one", SPACE)
                    wrong += 1
                except ArtifactError as error:
                    told.append(
                        "qdrant's local mode says that it is for one process" if "one at a time" in str(error) else str(error)
                    )
                    wrong += "one at a time" not in str(error)
                first.close()
                continue
            count, wanted, errors = stocked.together(store, folder, 4, times, 2, seed)
            told.append(f"{kind}: {count:,} of {wanted:,} rows, {len(errors)} errors{': ' + errors[0][:80] if errors else ''}")
            wrong, tried = wrong + (count != wanted) + len(errors), tried + 4 * times
    return Outcome(tried, wrong, "; ".join(told))


class Versioned(FakeEncoder):
    """An encoder whose index can be told from that of another version."""


def swaps(times: int, seed: int) -> Outcome:
    """F7: rebuilds under queries; each version's texts name it, so a mixed answer shows."""
    mixed = errors = asked = 0
    seen: set[str] = set()
    with quiet() as folder:
        data, out = folder / "data", folder / "idx"
        data.mkdir()
        encoder = FakeEncoder(dim=16)
        _write_version(data, 0)
        index_path(encoder, "m", data, out)
        index, ended = open_index(out, FakeEncoder(dim=16)), threading.Event()
        goal = times * 500

        def ask() -> None:
            nonlocal mixed, errors, asked
            while not ended.is_set() or asked < goal:
                try:
                    versions = {hit.item.text.split()[1] for hit in index.search(Item(text=f"query {asked}"), 10)}
                except HardwonError:
                    errors += 1
                else:
                    mixed += len(versions) != 1
                    seen.update(versions)
                asked += 1

        reader = threading.Thread(target=ask)
        reader.start()
        for version in range(1, times + 1):
            _write_version(data, version)
            index_path(FakeEncoder(dim=16), "m", data, out, Wanted(rebuild=True))
            while asked < version * 500 * 0.9 and reader.is_alive():
                time.sleep(0.01)
        ended.set()
        reader.join()
    told = f"{times} swaps under {asked:,} queries: {errors} errors, {mixed} mixed answers; {len(seen)} versions seen"
    return Outcome(asked, mixed + errors + (len(seen) < min(3, times + 1)), told)


def _write_version(data: Path, version: int) -> None:
    lines = (json.dumps({"text": f"version {version} row {n}", "id": str(n)}) + "\n" for n in range(60))
    (data / "rows.jsonl").write_text("".join(lines))


def decay(times: int, seed: int) -> Outcome:
    """F8: recall of every form after a third of the rows has gone and another has changed."""
    rng, told, wrong = np.random.default_rng(seed), [], 0
    rows, space = 40 * times, replace(SPACE, width=64, dim=64)
    centres = unit(rows // 20, seed, dim=64)
    first = centres[rng.integers(0, len(centres), rows)] + 0.1 * unit(rows, seed + 1, dim=64) * 3
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    with quiet() as folder:
        store = stores.Embedded.create(folder / "s", space)
        for start in range(0, rows, 500):
            store.upsert([entry(n) for n in range(start, min(start + 500, rows))], first[start : start + 500])
        order = rng.permutation(rows)
        gone, changed = order[: rows * 3 // 10], order[rows * 3 // 10 : rows * 6 // 10]
        store.delete([entry(int(n)).id for n in gone])
        store.upsert([entry(int(n), "new") for n in changed], first[rng.permutation(changed)])
        store.refresh()
        ids = [row.id for row in store.rows()]
        left, queries = store.vectors(ids), first[rng.integers(0, rows, times)]
        place, truth = {key: n for n, key in enumerate(ids)}, nearest(queries, left, 10)
        found = store.search(queries, 10)
        exact = _recall([[place[m.entry.id] for m in row] for row in found], truth, left, queries)
        told.append(f"whole vectors {exact:.4f}")
        wrong += exact < 0.95
        from hardwon.search.compressed import enough

        for kind in ("int8", "binary"):
            form = enough(left, Form(kind), 0.99).form
            share = _recall(Compressed(left, form).search(queries, 10).ids.tolist(), truth, left, queries)
            told.append(f"{form} {share:.4f}")
            wrong += share < 0.95
        coarse = recalls(left, [Form("binary", 8, 1)])[0].value.mean
        told.append(f"a form that loses much is told to: {coarse:.2f}")
    return Outcome(rows, wrong, f"recall@10 of {times:,} queries after 30 % deleted and 30 % changed: {'; '.join(told)}")


def _recall(found: list[list[int]], truth: object, vectors: np.ndarray, queries: np.ndarray) -> float:
    """Share of the best ten found; what ties with the tenth counts."""
    shares = [
        ((vectors[places].astype(np.float64) @ query) >= scores[-1] - 1e-6).sum() / 10
        for places, query, scores in zip(found, queries.astype(np.float64), truth.scores, strict=True)  # type: ignore[attr-defined]
    ]
    return float(np.mean(shares))


class Drifting(FakeEncoder):
    """Vectors of another runtime: turned by an angle."""

    angle: float = 0.0

    def encode(self, items, *, progress=""):  # type: ignore[no-untyped-def]
        """As `Encoder.encode`."""
        rows = super().encode(items)
        other = unit(len(rows), 99, dim=self.dim)
        other -= (other * rows).sum(axis=1, keepdims=True) * rows
        other /= np.linalg.norm(other, axis=1, keepdims=True)
        return (np.cos(self.angle) * rows + np.sin(self.angle) * other).astype(np.float32)


def drift(times: int, seed: int) -> Outcome:
    """F9: canaries of the same model (restarts) and of vectors turned by more and more."""
    false, missed = 0, 0
    with quiet() as folder:
        file = folder / "a.txt"
        file.write_text("a text")
        index_path(Drifting(dim=64), "m", file, folder / "idx")
        for number in range(times):
            encoder = Drifting(dim=64)
            false += open_index(folder / "idx", encoder).drift() < canaries.ALARM
            encoder.angle = np.arccos(0.9985 - 0.5 * number / times)
            missed += not open_index(folder / "idx", encoder).drift() < canaries.ALARM
    return Outcome(
        2 * times,
        false + missed,
        f"{canaries.COUNT} canaries: {false} false alarms in {times} restarts, {missed} drifts missed",
    )


TRIALS = (
    Trial("F1", "opened with another model, width, type, prompt ...", "all refused, in 4 stores", 32, mismatches),
    Trial("F2", "random writes against a dict", "0 differences; an id twice is an error", 10_000, operations),
    Trial("F3", "vectors that are not finite, of length 1 or of the width", "all refused, the index unchanged", 1_000, vectors),
    Trial("F4", "files of an index cut or with a flipped bit", "all found out; below 1 s a GB", 200, damage),
    Trial("F5", "SIGKILL of a writer, each store", "0 acknowledged rows lost, opens in 5 s", 50, kills),
    Trial("F6", "4 processes write while 2 read, each store", "every row there, 0 errors", 250, crowds),
    Trial("F7", "an index rebuilt under queries", "0 errors, every answer of one version", 20, swaps),
    Trial("F8", "recall after 30 % deleted and 30 % changed", "at least 0.95 of exact", 500, decay),
    Trial("F9", "canaries of an index", "alarm below 0.999, no false one", 100, drift),
)
