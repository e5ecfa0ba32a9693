"""What becomes of the candidates of one query: which are likely false negatives, which are chosen, and what the ledger says.

No model is asked here, so that a ledger can be selected from again: see `reselect`.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np

from hardwon.items import Candidate, Example, Item
from hardwon.mining.ledger import Entry, Said, Verdict
from hardwon.mining.select import Selector, Survivors
from hardwon.models import Judgements
from hardwon.randomness import generator

Fallback = Literal["none", "paper"]

# What is counted in `summary.json`, in queries.
NOTHING_FOUND = "nothing retrieved"
FEWER = "fewer chosen than wanted"
NONE = "none chosen"
LOW_POSITIVE = "positive graded no higher than beta, so that nothing can survive"  # of several the median
UNJUDGED_POSITIVE = "positive without a usable judgement"
REPEATED = "filled by repeating the chosen"
DRAWN = "filled at random, graded 1.0"


@runtime_checkable
class Rules(Protocol):
    """What choosing has to know; see `Mining`."""

    @property
    def keep(self) -> int:
        """Hard negatives at most."""
        ...

    @property
    def beta(self) -> float:
        """How far below the positive's grade, of several the median, a candidate has to be."""
        ...

    @property
    def selector(self) -> Selector:
        """Chooses among the survivors."""
        ...

    @property
    def fallback(self) -> Fallback:
        """What to do for a query of which too few survive."""
        ...

    @property
    def seed(self) -> int:
        """Of draws."""
        ...


@runtime_checkable
class Limits(Protocol):
    """Which of the retrieved candidates are looked at; see `Mining`."""

    @property
    def copies(self) -> float | None:
        """Candidates no further than this from being a copy of a positive are rejected."""
        ...

    @property
    def skip(self) -> int:
        """So many of the most similar of the others are left out."""
        ...


class Hit(NamedTuple):
    """A retrieved candidate.

    Attributes:
        item: the candidate.
        similarity: cosine of the embedder.
        rank: place in the retrieval.
        apart: how far it is from being a copy of a positive; None where that is not known.
    """

    item: Item
    similarity: float
    rank: int
    apart: float | None = None


@dataclass(frozen=True)
class Left:
    """A retrieved candidate that is left out before the judge is asked.

    Attributes:
        hit: the candidate.
        rule: why.
        verdict: "rejected" for what belongs to the query, else "spare".
    """

    hit: Hit
    rule: str
    verdict: Verdict = "spare"


@dataclass(frozen=True)
class Found:
    """Retrieved candidates of one example.

    Attributes:
        row: number of the example.
        items: the candidates to judge and to choose from, best first.
        similarities: cosines of the embedder.
        ranks: places in the retrieval.
        gold_similarity: cosine of the example's first positive.
        left: the other retrieved candidates.
        apart: how far each of `items` is from being a copy of a positive; empty where nobody looked.
    """

    row: int
    items: tuple[Item, ...]
    similarities: tuple[float, ...]
    ranks: tuple[int, ...]
    gold_similarity: float
    left: tuple[Left, ...] = ()
    apart: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Chosen:
    """What became of one query.

    Attributes:
        example: with its hard negatives.
        entries: the ledger's lines.
        counts: what happened to the query that is worth counting.
    """

    example: Example
    entries: list[Entry]
    counts: tuple[str, ...] = ()


def looked_at(row: int, hits: Sequence[Hit], gold_similarity: float, limits: Limits) -> Found:
    """What was retrieved, best first, without copies of a positive, and without so many to skip."""
    kept, left = [], []
    skipped = 0
    for hit in hits:
        if limits.copies is not None and hit.apart is not None and hit.apart <= limits.copies:
            left.append(Left(hit, f"a copy of the positive, apart <= {limits.copies:g}", "rejected"))
        elif skipped < limits.skip:
            skipped += 1
            left.append(Left(hit, f"one of the {limits.skip} most similar, skipped"))
        else:
            kept.append(hit)
    items, similarities, ranks, apart = zip(*kept, strict=True) if kept else ((), (), (), ())
    return Found(row, items, similarities, ranks, gold_similarity, tuple(left), apart)


def positives(example: Example) -> tuple[Item, ...]:
    """The positives of a query, each once: what its candidates are judged beside, in this order."""
    return tuple(dict.fromkeys(example.gold))


def grade(odds: np.ndarray) -> np.ndarray:
    """Log-odds as a grade in [0, 1]: the softmax over Yes and No."""
    return 1 / (1 + np.exp(-np.clip(odds.astype(np.float64), -50, 50)))


def select(example: Example, found: Found, judged: Judgements | None, rules: Rules) -> Chosen:
    """Choose the hard negatives of one example.

    A candidate without a usable judgement is never chosen: it may belong to the query.

    Args:
        example: as it was.
        found: what was retrieved for it.
        judged: judgements of its `positives` and of the first of `found.items`, in this order; None without a judge.
        rules: of choosing.
    """
    # What shows the positive once more belongs to the query, whatever a judge would say.
    example = example.adding((), related={left.hit.item.content for left in found.left if left.verdict == "rejected"})
    if not found.items:
        return Chosen(example, _lines(example, found, judged, _Fates()), (NOTHING_FOUND,))
    fates = _fates(example, found, judged, rules)
    chosen, counts = _chosen(example, found, fates, rules)
    fates = replace(fates, kept=dict.fromkeys(chosen, _name(rules, DRAWN in counts)))
    new = [
        Candidate(found.items[n], 1.0 if DRAWN in counts else fates.grades[n] if fates.grades else None, "mined")
        for n in chosen
    ]
    # Judging fills the relevance of gold and of given negatives, too.
    keys = [item.key for item in (*positives(example), *found.items)]
    grades = {key: g for key, g in zip(keys, (*fates.golds, *fates.grades), strict=False) if g is not None}
    filled = tuple(replace(c, relevance=grades.get(c.item.key, c.relevance)) for c in example.candidates)
    related = {found.items[n].content for n in fates.likely_false} - {c.item.content for c in new}
    after = replace(example, candidates=filled).adding(new, related=related)
    return Chosen(after, _lines(example, found, judged, fates), counts)


@dataclass(frozen=True)
class _Fates:
    """What is known of the places in `Found.items`.

    Attributes:
        golds: grades of the positives; empty without a judge, None where there is no usable judgement.
        grades: of the places that were looked at, likewise.
        asked: how many places were looked at.
        likely_false: places of what the judge holds to belong to the query, with all copies.
        unknown: why a place cannot be decided on.
        copies: places of what is there already.
        kept: rule that chose a place.
        false_rule: rule of `likely_false`.
        bar: grade above which a place is likely false; None where no positive has a grade.
    """

    golds: list[float | None] = field(default_factory=list)
    grades: list[float | None] = field(default_factory=list)
    asked: int = 0
    likely_false: frozenset[int] = frozenset()
    unknown: Mapping[int, str] = field(default_factory=dict)
    copies: frozenset[int] = frozenset()
    kept: Mapping[int, str] = field(default_factory=dict)
    false_rule: str = ""
    bar: float | None = None

    @property
    def positive(self) -> float | None:
        """What the judge gives a positive of this query: the median of their grades; None if none has one.

        A candidate is likely to belong to the query if it is graded as its positives are. The lowest grade would let one wrong
        label reject every candidate, the highest would let pass what fits as well as the other positives do, and the first is
        whichever the data set happens to name first. Half of the labels have to be wrong to move the median.
        """
        usable = [g for g in self.golds if g is not None]
        return statistics.median(usable) if usable else None

    @property
    def survivors(self) -> list[int]:
        """Places that may be chosen."""
        return [n for n in range(self.asked) if n not in self.likely_false | self.copies | self.unknown.keys()]

    def verdict(self, n: int) -> tuple[Verdict, str]:
        """Verdict and rule of a place."""
        if n in self.kept:  # first, since a fallback may take what was rejected
            return "kept", self.kept[n]
        if n >= self.asked:
            return "spare", "beyond the judged depth"
        if n in self.likely_false:
            return "rejected", self.false_rule
        if n in self.unknown:
            return "spare", self.unknown[n]
        return "spare", "a copy of another candidate" if n in self.copies else "not selected"


def _fates(example: Example, found: Found, judged: Judgements | None, rules: Rules) -> _Fates:
    contents = [item.content for item in found.items]
    unknown, false = {}, set()
    known, bar = _Fates(asked=len(contents)), None
    if judged is not None:
        every = [None if math.isnan(g) else round(float(g), 6) for g in grade(judged.odds)]
        before = len(positives(example))
        known = _Fates(every[:before], every[before:], len(every) - before)
        bar = None if known.positive is None else known.positive - rules.beta
        for n, mark in enumerate(known.grades):
            if bar is None:
                unknown[n] = "the positive has no usable judgement"
            elif mark is None:
                unknown[n] = "no usable judgement" if before + n in judged.problems else "beyond the budget"
            elif mark > bar:
                # With all copies: the same text or picture may be in the pool under several instructions.
                false.add(contents[n])
    asked = known.asked
    likely_false = frozenset(n for n in range(asked) if contents[n] in false)
    # What the example has already, and a second copy of what is found, would be the same negative twice.
    usable = [n for n in range(asked) if n not in unknown]
    first_of = {contents[n]: n for n in reversed(usable)}
    had = {c.item.content for c in example.candidates}
    copies = frozenset(n for n in usable if contents[n] in had or first_of[contents[n]] != n)
    rule = f"judge > positive - {rules.beta:g}"
    return replace(known, bar=bar, likely_false=likely_false, unknown=unknown, copies=copies, false_rule=rule)


def _chosen(example: Example, found: Found, fates: _Fates, rules: Rules) -> tuple[list[int], tuple[str, ...]]:
    """Chosen places, rising, and what is to be counted."""
    counts = []
    positive = fates.positive
    if fates.golds and positive is None:
        counts.append(UNJUDGED_POSITIVE)
    if positive is not None and positive <= rules.beta:
        counts.append(LOW_POSITIVE)
    places = fates.survivors
    survivors = Survivors([found.similarities[n] for n in places], found.gold_similarity)
    picked = rules.selector(survivors, rules.keep, generator(rules.seed, "select", example.query.key))
    chosen = [places[n] for n in picked]
    if len(chosen) >= rules.keep:
        return chosen, tuple(counts)
    counts.append(FEWER if chosen else NONE)
    if rules.fallback == "paper":
        if not chosen and positive is not None:
            # Any that were judged, likely false or not; but no positive and nothing that the example has.
            pool = [n for n in range(fates.asked) if n not in fates.copies and n not in fates.unknown]
            rng = generator(rules.seed, "fallback", example.query.key)
            chosen = sorted(rng.sample(pool, min(rules.keep, len(pool))))
            counts += [DRAWN] if chosen else []
        if chosen and len(chosen) < rules.keep:
            chosen = sorted((chosen * -(-rules.keep // len(chosen)))[: rules.keep])
            counts.append(REPEATED)
    return chosen, tuple(counts)


def _name(rules: Rules, drawn: bool) -> str:
    return "at random, for none was left" if drawn else type(rules.selector).__name__.lower()


def _lines(example: Example, found: Found, judged: Judgements | None, fates: _Fates) -> list[Entry]:
    """The ledger's lines for all that was retrieved, by rank."""
    before = len(positives(example))
    gold, *others = (_said(judged, n) for n in range(before))

    def line(hit: Hit, place: int | None, verdict: tuple[Verdict, str]) -> Entry:
        said = _said(judged, None if place is None or place >= fates.asked else before + place)
        return Entry(
            found.row,
            example.source,
            example.query.key,
            hit.item.key,
            hit.item.content,
            hit.rank,
            hit.similarity,
            found.gold_similarity,
            *said,
            *gold,
            *verdict,
            hit.apart,
            () if judged is None else tuple(others),
            fates.bar,
        )

    apart = found.apart or [None] * len(found.items)
    hits = map(Hit, found.items, found.similarities, found.ranks, apart)
    lines = [line(hit, n, fates.verdict(n)) for n, hit in enumerate(hits)]
    lines += [line(left.hit, None, (left.verdict, left.rule)) for left in found.left]
    return sorted(lines, key=lambda entry: entry.rank)


def _said(judged: Judgements | None, n: int | None) -> Said:
    """One judgement."""
    if judged is None or n is None:
        return Said(None, None, None, "")
    yes, no = float(judged.yes[n]), float(judged.no[n])
    if math.isnan(yes - no):
        return Said(None, None, None, judged.problems.get(n, ""))
    return Said(yes, no, round(float(grade(judged.yes[n : n + 1] - judged.no[n : n + 1])[0]), 6), "")
