"""What becomes of the candidates of one query: which are likely false negatives, which are chosen, and what the ledger says."""

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np

from hardwon.items import Candidate, Example, Item
from hardwon.mining.ledger import Entry, Verdict
from hardwon.mining.select import Selector
from hardwon.randomness import generator


@runtime_checkable
class Rules(Protocol):
    """What choosing has to know; see `Mining`."""

    @property
    def keep(self) -> int:
        """Hard negatives at most."""
        ...

    @property
    def beta(self) -> float:
        """How far below the positive's grade a candidate has to be."""
        ...

    @property
    def selector(self) -> Selector:
        """Chooses among the survivors."""
        ...

    @property
    def seed(self) -> int:
        """Of draws."""
        ...


@dataclass(frozen=True)
class Found:
    """Retrieved candidates of one example."""

    row: int
    items: tuple[Item, ...]
    similarities: tuple[float, ...]
    ranks: tuple[int, ...]


def grade(odds: np.ndarray) -> np.ndarray:
    """Log-odds as a grade in [0, 1]: the softmax over Yes and No."""
    return 1 / (1 + np.exp(-np.clip(odds.astype(np.float64), -50, 50)))


def select(example: Example, f: Found, odds: np.ndarray | None, settings: Rules) -> tuple[Example, list[Entry]]:
    """The example with its hard negatives, and the ledger's lines for all that was retrieved."""
    graded = [] if odds is None else [round(float(g), 6) for g in grade(odds)]
    asked = len(f.items) if odds is None else len(graded) - 1
    # With all copies: the same text or picture may be in the pool under several instructions.
    false = {f.items[n].content for n, g in enumerate(graded[1:]) if g > graded[0] - settings.beta}
    likely_false = {n for n in range(asked) if f.items[n].content in false}
    # What the example has already, and a second copy of what is found, would be the same negative twice.
    first_of = {f.items[n].content: n for n in reversed(range(asked))}
    had = {c.item.content for c in example.candidates}
    copies = {n for n in range(asked) if f.items[n].content in had or first_of[f.items[n].content] != n}
    survivors = [n for n in range(asked) if n not in likely_false | copies]
    kept = set(settings.selector(survivors, settings.keep, generator(settings.seed, "select", example.query.key)))
    chosen = [Candidate(f.items[n], graded[n + 1] if graded else None, "mined") for n in sorted(kept)]
    lines = []
    for n, item in enumerate(f.items):
        judged = bool(graded) and n < asked
        verdict, rule = _verdict(n, asked, likely_false, copies, kept, settings)
        lines.append(
            Entry(
                f.row,
                example.source,
                example.query.key,
                item.key,
                item.content,
                f.ranks[n],
                f.similarities[n],
                float(odds[n + 1]) if odds is not None and judged else None,
                graded[n + 1] if judged else None,
                graded[0] if graded else None,
                verdict,
                rule,
            )
        )
    # Judging fills the relevance of gold and of given negatives, too.
    grades = dict(zip((item.key for item in (example.gold[0], *f.items[:asked])), graded, strict=False))
    filled = tuple(replace(c, relevance=grades.get(c.item.key, c.relevance)) for c in example.candidates)
    example = replace(example, candidates=filled)
    return example.adding(chosen, related=(f.items[n].content for n in likely_false)), lines


def _verdict(
    n: int, asked: int, likely_false: set[int], copies: set[int], kept: set[int], settings: Rules
) -> tuple[Verdict, str]:
    if n >= asked:
        return "spare", "beyond the judged depth"
    if n in likely_false:
        return "rejected", f"judge > positive - {settings.beta:g}"
    if n in copies:
        return "spare", "a copy of another candidate"
    return ("kept", type(settings.selector).__name__.lower()) if n in kept else ("spare", "not selected")
