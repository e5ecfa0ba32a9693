"""Groups D, G and A, continued: work over many processes that are killed, and what comes from people one cannot trust."""

import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from benchmarks.reliability.pytests import by_tests
from benchmarks.reliability.trial import Outcome, Trial

sys.path.append(str(Path(__file__).parents[2] / "tests"))

import internet
import sharding

from hardwon.errors import BadMedia
from hardwon.fetch import AllowedHosts, fetch

MALICIOUS = "tests/faults/test_malicious.py"


def killing(engine: str, *, drivers: float, pause: float) -> Callable[[int, int], Outcome]:
    """D2: SIGKILL of workers and of the process that collects; shards of 1,000 rows."""

    def run(times: int, seed: int) -> Outcome:
        with tempfile.TemporaryDirectory() as folder:
            found = sharding.killed(Path(folder), times, seed, engine, drivers=drivers, count=max(20, times), pause=pause)
        wrong = found.lost + found.doubled + max(0, found.redone - found.allowed) + (not found.same)
        who = ", ".join(f"{count} x {name}" for name, count in sorted(found.kills.items()))
        told = f"{max(20, times) * sharding.ROWS:,} rows, {found.lost} lost, {found.doubled} twice; killed while {who}; "
        told += (
            f"{found.redone} shards begun again (of at most {found.allowed}); file {'the same' if found.same else 'DIFFERS'}"
        )
        return Outcome(times, wrong, told)

    return run


def inside(times: int, seed: int) -> Outcome:
    """G1: addresses that would lead to private networks."""
    with tempfile.TemporaryDirectory() as folder, internet.internet(Path(folder)) as web:
        tried = internet.attempts(web, (301, 302, 303, 307, 308))[:times]
        allowed, fetched = AllowedHosts(("*.example.org", internet.HOST)), 0
        for _, url in tried:
            try:
                fetch(url, allowed, web.network)
                fetched += 1
            except BadMedia:
                continue
        astray = [address for address in web.connected if address not in internet.PUBLIC]
    kinds = ", ".join(f"{count} {what}" for what, count in Counter(what for what, _ in tried).items())
    told = f"{kinds}: {fetched} fetched, {len(web.trapped)} connections to a listener behind the private addresses"
    return Outcome(len(tried), fetched + len(web.trapped) + len(astray), told)


TRIALS = (
    Trial("D2w", "SIGKILL of workers that share work, and of who collects", "0 lost, 0 twice, 1 shard redone each, same bytes",
          50, killing("local", drivers=0.2, pause=0.15)),
    Trial("D2r", "the same with workers under Ray", "the same", 50, killing("ray", drivers=0.05, pause=0.15)),
    by_tests("D10", "two processes write one artifact; disk full; folder read-only", "an error or a whole one, never a mix",
             "tests/faults/test_writers.py", each=15, full=150),
    Trial("G1", "pictures' addresses that lead inside: written, resolved, rebound, redirected", "0 connections", 225, inside),
    by_tests("G2", "paths of pictures that lead out of the root", "0 files opened", f"{MALICIOUS} no_path", each=130, full=130),
    by_tests("G9", "folders that run code if they are believed", "0 canaries", f"{MALICIOUS} not no_path", each=41, full=41),
    by_tests("G15", "13 commands on local data, watched by an audit hook", "0 connections to other machines",
             "tests/faults/test_offline.py nobody", each=13, full=13),
    by_tests("A12", "JSON lines: whole, damaged, or anything", "rows read + reported = rows; only our errors",
             "tests/faults/test_json_lines.py", each=110, full=1100),
)  # fmt: skip
