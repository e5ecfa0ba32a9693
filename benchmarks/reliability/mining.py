"""Group D: mining and judging.

The tests try a sample of the same: what does the work lies in tests/ and is shared.
"""

import contextlib
import io
import itertools
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.append(str(Path(__file__).parents[2] / "tests"))

import asking
import killing
import mine_oracle
import planted
import replying
import servers
import stale
import tiny
import vectors
from fakes import AngledEncoder, RuleJudge, odds_by_hash

from benchmarks.reliability.trial import Outcome, Trial
from hardwon.errors import JudgeError
from hardwon.items import Candidate, Example, Item
from hardwon.mining import Mining, mine
from hardwon.mining.judging import INJECTED
from hardwon.models import CachedEncoder, Judgements


@contextlib.contextmanager
def quiet() -> Iterator[Path]:
    """A folder for a while, without the bars of thousands of runs."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        yield Path(folder)


def texts(count: int) -> tuple[Example, ...]:
    """Examples "q0" -> "t0" ..., with words of all lengths around them."""
    draw = random.Random(count)
    words = ["so " * draw.randrange(12) for _ in range(count)]
    return tuple(
        Example(Item(text=f"q{n}"), (Candidate(Item(text=f"{words[n]}t{n}"), origin="gold"),), "s") for n in range(count)
    )


def right(query: Item, item: Item) -> float:
    """Log-odds of a judge that knows."""
    return 4.0 if query.text[1:] == item.text.split("t")[-1] else -4.0


def changes(times: int, seed: int) -> Outcome:
    """D1: is a vector of another model or picture ever returned? And is one kept that is still good?"""
    with quiet() as folder:
        model, shown = tiny.build_vlm(folder / "vlm"), folder / "red.png"
        Image.new("RGB", (64, 64), "red").save(shown)
        CachedEncoder(stale.load(model), folder / "kept").encode(stale.items(shown))
        found = []
        for change in stale.MODEL_CHANGES[: times - 1]:
            other = stale.load(model)
            change(other)
            CachedEncoder(other, folder / "kept").encode(stale.items(shown)[:1])
            found.append((change.__name__, other.embedded == 1))
        same = stale.load(model)
        copy = folder / "copy.png"
        copy.write_bytes(shown.read_bytes())
        CachedEncoder(same, folder / "kept").encode([*stale.items(shown)[::-1], *stale.items(copy)])
        hit = same.embedded == 0
        Image.new("RGB", (64, 64), "blue").save(shown)
        CachedEncoder(same, folder / "kept").encode(stale.items(shown))
        found.append(("bytes of a picture", same.embedded == 2))
    wrong = [name for name, fresh in found if not fresh]
    told = f"stale: {', '.join(wrong) or 'none'}; other order and file names {'hit' if hit else 'MISSED'}"
    return Outcome(len(found), len(wrong) + (not hit), told)


def kills(times: int, seed: int) -> Outcome:
    """D2: SIGKILL at random moments of all stages."""
    with quiet() as folder:
        found = killing.killed(folder, times, seed, queries=max(60, 4 * times))
    stages = Counter(found.repeated)
    done = ", ".join(f"{stages[word]} in flight at {name}" for word, name in killing.STAGES.items())
    told = f"redone: {done}; {len(found.late)} finished pieces; lost {len(found.lost)}; files that differ {len(found.differ)}"
    return Outcome(times, len(found.late) + len(found.lost) + len(found.differ), told)


def replies(times: int, seed: int) -> Outcome:
    """D3: replies that say nothing, or not what they should."""
    ends = replying.read_malformed(times, seed)
    stopped = {share: _stops(share, seed) for share in (0.01, 0.04)}
    wrong = ends["made up"] + stopped[0.01] + (not stopped[0.04])
    told = (
        f"{ends['made up']} numbers made up, {ends['nothing'] / times:.0%} null with a reason, the others as they were said; "
    )
    return Outcome(times, wrong, f"{told}4 % nulls stop a run: {stopped[0.04]}, 1 %: {stopped[0.01]}")


class Forgetful:
    """A judge that gives no answer to a share of the pairs."""

    fingerprint = "forgetful"

    def __init__(self, share: float, seed: int):
        self.share, self.seed = share, seed

    def judge(self, pairs, *, progress=""):
        """As `YesNo.judge`."""
        draw = [random.Random(f"{self.seed}{q.key}{i.key}").random() < self.share for q, i in pairs]
        odds = np.array([np.nan if gone else right(*pair) for gone, pair in zip(draw, pairs, strict=True)], dtype=np.float32)
        return Judgements(odds, odds * 0, {n: "no Yes or No" for n, gone in enumerate(draw) if gone})


def _stops(share: float, seed: int) -> bool:
    with quiet():
        try:
            mine(texts(60), AngledEncoder(dim=3), Forgetful(share, seed), settings=Mining(depth=30))
        except JudgeError as error:
            assert "no usable answer" in str(error)
            return True
    return False


class Placed:
    """A judge that says Yes to the first half of whatever it is given at once."""

    fingerprint = "placed"

    def score_pairs(self, pairs, *, progress=""):
        """As `Scorer.score_pairs`."""
        return np.array([3.0 if n < len(pairs) / 2 else -3.0 for n in range(len(pairs))], dtype=np.float32)


BIASES = {
    "always Yes": lambda query, item: 3.0,
    "longer is better": lambda query, item: len(item.text) / 4 - 4,
    "shorter is better": lambda query, item: 4 - len(item.text) / 4,
    "a prior of the candidate": lambda query, item: odds_by_hash(item, item),
    "a prior of the query": lambda query, item: odds_by_hash(query, query),
    "chance": odds_by_hash,
}


def biases(times: int, seed: int) -> Outcome:
    """D4: judges that look at anything but whether the candidate fits."""
    kinds = [*BIASES, "place"]
    caught, flips = Counter(), {}
    for n in range(times):
        kind, examples = kinds[n % len(kinds)], texts(60 + n)
        judge = Placed() if kind == "place" else RuleJudge(BIASES[kind])
        pairs = [(e.query, other.gold[0]) for e, other in itertools.pairwise(examples)]
        here, back = judge.score_pairs(pairs), judge.score_pairs(pairs[::-1])[::-1]
        flips[kind] = float(((here > 0) != (back > 0)).mean())
        with quiet():
            try:
                mine(examples, AngledEncoder(dim=3), judge, settings=Mining(depth=5, seed=seed + n))
            except JudgeError:
                caught[kind] += 1
    told = "; ".join(f"{kind} flips {share:.0%} in the other order" for kind, share in flips.items() if share) or "no flips"
    return Outcome(times, times - sum(caught.values()), f"refused {sum(caught.values())} ({len(kinds)} kinds of bias); {told}")


def faults(times: int, seed: int) -> Outcome:
    """D5: a server that fails in every way in 30 % of the calls."""
    with servers.fake_server() as address:
        found = asking.through_faults(servers.Plan(address, f"faults-{seed}"), -(-times // 50), 50)
        counted, came = asking.spent(servers.Plan(address, f"budget-{seed}"), 200)
        waited = _waits(servers.Plan(address, f"later-{seed}"))
    costly, over = found.calls > 1.5 * found.pairs, max(counted, came) > 200
    wrong = found.wrong + found.twice + (not found.books) + costly + over + (not waited)
    books = "equal" if found.books else "NOT equal"
    told = f"{found.calls / found.pairs:.2f} calls a pair, {found.twice} twice, books {books} to the server's log, "
    told += f"Retry-After {'kept' if waited else 'BROKEN'}, {came} of a budget of 200 calls"
    return Outcome(found.pairs, wrong, told)


def _waits(plan: servers.Plan) -> bool:
    """Whether nobody calls before the server wants to be called, but who was calling already."""
    plan.set(script=["429"], retry_after="1")
    asking.RemoteJudge(plan.url, settings=replace(asking.QUICK, concurrency=2)).judge(asking.asked(10, 5)[0])
    times = [call["at"] for call in plan.log]
    return sum(at - times[0] < 0.95 for at in times[1:]) <= 1


def false_negatives(times: int, seed: int) -> Outcome:
    """D6: planted copies of positives, re-encoded, cropped and paraphrased; $HARDWON_DEMO names a finished demo."""
    with quiet():
        found = planted.survivors(planted.made(times, seed))
    share, low, high = planted.share(found.kept)
    told = f"with a noisy oracle as judge of {len(found.kept)} planted and retrieved {share:.2%} kept [{low:.2%}, {high:.2%}] "
    told += f"({found})"
    demo = os.environ.get("HARDWON_DEMO")
    for beta in (0.0, 0.1) if demo else ():
        with quiet():
            real = planted.in_demo(Path(str(demo)), seed, beta)
        share, low, high = planted.share(real.kept)
        told += (
            f"; with the models of the demo and beta {beta:g}: of {len(real.kept)} {share:.1%} [{low:.1%}, {high:.1%}] ({real})"
        )
    if not demo:
        told += "; not tried with a real judge: HARDWON_DEMO names no finished demo"
    allowed = int(0.005 * len(found.kept))
    return Outcome(len(found.kept), max(0, int(sum(found.kept)) - allowed), told)


def properties(times: int, seed: int) -> Outcome:
    """D7: everything that mining does, against an oracle."""
    try:
        mine_oracle.cases(times // 2, seed)
    except AssertionError as error:
        return Outcome(times, 1, f"differs from the oracle: {str(error)[:200]}")
    return Outcome(times, 0, "half with a judge, half without; no positive among the negatives, the same set, order and grades")


def shards(times: int, seed: int) -> Outcome:
    """D8: parts of a corpus full of ties, merged."""
    wrong = sum(not vectors.parts_equal_the_whole(1 + n % 8, seed + n) for n in range(times))
    return Outcome(times, wrong, "corpora of 230 vectors in 1 to 8 parts of random sizes, ties at every place")


def injections(times: int, seed: int) -> Outcome:
    """D9: captions that talk to the judge."""
    with quiet() as folder:
        found = planted.injected(folder, times)
        reported = {obeys: _canary(obeys) for obeys in (0.0, 0.25, 1.0)}
    wrong = found.moved + found.unusable + sum(abs(obeys - told) > 1e-9 for obeys, told in reported.items())
    told = f"untrained Qwen2-VL: grades of injected captions move by {found.shift:+.3f} on average, {found.flipped:.0%} flip; "
    told += f"{found.moved} of their neighbours moved, {found.unusable} without an answer; "
    return Outcome(times, wrong, told + "canaries of a run report exactly the share of judges that obey (0, 0.25, 1)")


def _canary(obeys: float) -> float:
    """What a run reports of a judge that obeys for a share of the queries."""
    fooled = {f"q{n}" for n in range(int(20 * obeys))}

    def rule(query: Item, item: Item) -> float:
        return 4.0 if query.text in fooled and item.text.startswith(INJECTED) else right(query, item)

    calibration = mine(texts(20), AngledEncoder(dim=3), RuleJudge(rule), settings=Mining(depth=5)).calibration
    assert calibration is not None and calibration.canary is not None
    return calibration.canary.flipped


TRIALS = (
    Trial("D1", "what vectors depend on changes: weight, prompt, picture ...", "0 stale hits", 12, changes),
    Trial("D2", "SIGKILL while mining, at any moment", "0 lost, 0 redone but the one in flight, same bytes", 50, kills),
    Trial("D3", "malformed replies of a judge", "0 numbers made up; more than 2 % nulls stop", 10_000, replies),
    Trial("D4", "judges with a planted bias", "all refused", 210, biases),
    Trial("D5", "a server that fails in 30 % of its calls", "all answered, 0 twice, at most 1.5 calls a pair", 5_000, faults),
    Trial("D6", "planted false negatives", "at most 0.5 % kept", 1_000, false_negatives),
    Trial("D7", "mining against an oracle", "0 differences", 5_000, properties),
    Trial("D8", "a corpus in 1 to 8 parts", "the same ids in the same order", 800, shards),
    Trial("D9", "captions that tell the judge what to say", "no neighbour moved, the effect reported", 100, injections),
)
