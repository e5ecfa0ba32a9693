"""Time of searching a million vectors: exactly against the bare matrix product, and in smaller forms with their recall.

    python -m benchmarks.search --out benchmarks/search_<hardware>_<date>.md
    python -m benchmarks.search --rows 200000 --rounds 3

**Vectors.** Random and clustered ones, as no model of this size can be asked for a million on two cores: `--centres` directions
drawn at random, every vector one of them plus noise whose spread over dimensions falls as of real embeddings (the k-th as
k^-0.5), of unit length. Queries are vectors of the same make that are not among them. Recall on them says what a form costs
here, not on anybody's data: `hardwon index --form` measures that on the index itself, and prints it.

**Floor.** The bare product of queries and vectors in float32, by whichever of numpy and torch was faster in that round, into
memory that is there already. Contenders start at query vectors and end with ids and scores.

**Rounds.** Everything is run once per round, in an order that rotates; p50 is over all calls of all rounds, and the ratios are
medians over rounds of the ratio within one round. Before the first round each is run once, uncounted.

**Contenders.** `exact` is `hardwon.search.retrieve.nearest`, which the embedded store searches whole vectors with: what float32
proposes is scored again in float64, and ties are ordered. The others are `hardwon.search.compressed.Compressed`, with as many
candidates scored again as `enough` finds for a recall@10 of 0.99; recall is against `exact`.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from benchmarks.losses import describe
from hardwon.search.compressed import Compressed, Form, enough
from hardwon.search.retrieve import nearest

K, CALLS, TARGET = 10, 8, 0.99
TUNED_ON = 300  # queries that `enough` is asked with; others than those that are timed and measured
MEASURED = 500  # queries of the recall


def made(rows: int, dim: int, centres: int, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors and queries of the same make."""
    rng = np.random.default_rng(seed)
    spread = (np.arange(1, dim + 1, dtype=np.float32) ** -0.5)[rng.permutation(dim)]
    middle = rng.standard_normal((centres, dim), dtype=np.float32) * spread
    out = np.empty((rows + TUNED_ON + MEASURED, dim), dtype=np.float32)
    for start in range(0, len(out), 100_000):
        part = out[start : start + 100_000]
        part[:] = rng.standard_normal(part.shape, dtype=np.float32)
        part *= spread * noise
        part += middle[rng.integers(0, centres, len(part))]
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return out[:rows], out[rows:]


def floors(queries: np.ndarray, corpus: np.ndarray) -> dict[str, Callable[[], object]]:
    """The bare product, in two ways."""
    q, x, place = torch.from_numpy(queries), torch.from_numpy(corpus), torch.empty(len(queries), len(corpus))
    line, one = np.empty((len(queries), len(corpus)), dtype=np.float32), len(queries) == 1

    def by_numpy() -> object:
        return np.matmul(corpus, queries[0], out=line[0]) if one else np.matmul(queries, corpus.T, out=line)

    def by_torch() -> object:
        return torch.mv(x, q[0], out=place[0]) if one else torch.mm(q, x.T, out=place)

    return {"numpy": by_numpy, "torch": by_torch}


def timed(contenders: dict[str, Callable[[], object]], rounds: int, calls: int) -> dict[str, list[list[float]]]:
    """Seconds of each call, by contender and round."""
    for run in contenders.values():
        run()
    found: dict[str, list[list[float]]] = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(rounds):
        for name in [*names[number % len(names) :], *names[: number % len(names)]]:
            seconds = []
            for _ in range(calls):
                start = time.perf_counter()
                contenders[name]()
                seconds.append(time.perf_counter() - start)
            found[name].append(seconds)
    return found


def recall(found: np.ndarray, truth: np.ndarray) -> float:
    """Share of the true ids that are among the found ones."""
    return float(np.mean([len(set(one) & set(other)) / truth.shape[1] for one, other in zip(found, truth, strict=True)]))


def rows(found: dict[str, list[list[float]]], names: Sequence[str], about: dict[str, tuple[str, str]]) -> list[str]:
    """Lines of the table."""
    base = [min(statistics.median(found[name][n]) for name in ("numpy", "torch")) for n in range(len(found["numpy"]))]
    told = []
    for name in names:
        each = [statistics.median(seconds) for seconds in found[name]]
        p50 = statistics.median([second for seconds in found[name] for second in seconds])
        ratio = statistics.median(one / floor for one, floor in zip(each, base, strict=True))
        against = statistics.median(e / one for one, e in zip(each, map(statistics.median, found["exact"]), strict=True))
        share, size = about.get(name, ("", ""))
        told.append(f"| {name} | {1000 * p50:.1f} | {ratio:.3f} | {against:.2f} | {share} | {size} |")
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"rows": 1_000_000, "dim": 384, "centres": 20_000, "rounds": 5, "threads": 1, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--noise", type=float, default=0.7, help="of a vector around its centre")
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 32])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    # Of everybody, numpy's own BLAS too: the floor would use both cores against contenders that use one.
    with threadpool_limits(args.threads):
        measure(args)


def measure(args: argparse.Namespace) -> None:
    """All sizes of batch, told and written."""
    corpus, others = made(args.rows, args.dim, args.centres, args.noise, args.seed)
    tuned, queries = others[:TUNED_ON], others[TUNED_ON:]
    truth = nearest(queries, corpus, K).ids
    about, forms = {"exact": ("1.0000", f"{4 * args.dim}")}, {}
    for kind in ("float16", "int8", "binary"):
        start = time.perf_counter()
        form = enough(corpus, Form(kind), TARGET, queries=tuned, k=K).form
        forms[str(form)] = Compressed(corpus, form)
        about[str(form)] = f"{recall(forms[str(form)].search(queries, K).ids, truth):.4f}", f"{form.bytes(args.dim)}"
        print(f"{form}: recall {about[str(form)][0]}, found in {time.perf_counter() - start:.0f} s", flush=True)
    lines = [
        f"{args.rows:,} vectors of {args.dim} numbers in {args.centres:,} clusters, noise {args.noise}; k = {K}; "
        f"{args.threads} thread(s)."
    ]
    for size in args.batch:
        asked = np.ascontiguousarray(queries[:size])
        contenders = floors(asked, corpus) | {"exact": lambda asked=asked: nearest(asked, corpus, K)}
        contenders |= {name: lambda form=form, asked=asked: form.search(asked, K) for name, form in forms.items()}
        found = timed(contenders, args.rounds, max(1, CALLS // size))
        lines += ["", f"## {size} {'query' if size == 1 else 'queries'} at a time", ""]
        lines += [
            "| contender | p50 ms | x floor | x faster than exact | recall@10 | bytes a vector |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        lines += rows(found, list(contenders), about)
        print("\n".join(lines[-len(contenders) - 2 :]), flush=True)
    told = describe(sys.argv[1:], "search", "src/hardwon/search")
    text = "\n".join(["# Time of searching", "", *(f"- {k}: {v}" for k, v in told.items()), "", *lines, ""])
    print(text)
    if args.out:
        args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
