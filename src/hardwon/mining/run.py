"""`mine`: retrieve globally, let a judge grade, exclude likely false negatives, select, and keep the ledger.

After UniME-V2 (arXiv:2510.13515), whose mining and judging were never released. A candidate is rejected when its grade exceeds
the positive's minus beta. Raw judgements are kept, so other thresholds need no model.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
from safetensors.numpy import load_file, save_file

from hardwon.artifacts import fingerprint, write_json
from hardwon.errors import DataError, JudgeError, RecipeError, unknown
from hardwon.items import Example, Item, write_examples
from hardwon.mining import ledger as books
from hardwon.mining.calibration import Calibration, calibrate
from hardwon.mining.choose import Fallback, Found, grade, looked_at, select
from hardwon.mining.ledger import Entry
from hardwon.mining.select import Cyclic, Selector
from hardwon.models import Encoder, Judgements, Pair, Scorer
from hardwon.progress import bar
from hardwon.randomness import generator
from hardwon.search import retrieve

SHARD = 128  # queries judged between two writes


@dataclass(frozen=True)
class Mining:
    """How to mine.

    Attributes:
        depth: candidates retrieved per query.
        judged: how many of them, from the top, the judge is asked about; None for all.
        keep: hard negatives per query at most.
        beta: a candidate graded above the positive's grade minus beta is a likely false negative.
        ceiling: leave out candidates at or above this similarity (delta of the paper, which gives no value); None for none.
        skip: leave out so many of the most similar candidates; a poor man's judge.
        selector: which survivors are chosen.
        fallback: what to do for a query of which fewer are chosen than wanted. "none" leaves it with fewer and counts it.
            "paper" does as UniME-V2: the chosen are repeated, and where none survived, any that were judged are drawn with
            the grade 1.0, although they are likely false negatives.
        within_source: search only candidates of the query's own data set.
        queries: mine for so many examples, drawn evenly over the sources; None for all.
        rest: give back the examples that were not mined for as well, as they are.
        min_auc: refuse a judge that tells gold from random worse than this.
        seed: of draws.
    """

    depth: int = 50
    judged: int | None = None
    keep: int = 8
    beta: float = 0.1
    ceiling: float | None = None
    skip: int = 0
    selector: Selector = field(default_factory=Cyclic)
    fallback: Fallback = "none"
    within_source: bool = True
    queries: int | None = None
    rest: bool = False
    min_auc: float = 0.8
    seed: int = 0

    def __post_init__(self) -> None:
        if self.depth < 1 or self.keep < 1:
            raise RecipeError(f"depth and keep must be at least 1, got {self.depth} and {self.keep}")
        if not 0 <= self.skip < self.depth:
            raise RecipeError(f"skip ({self.skip}) must be 0 or more and below depth ({self.depth})")
        if self.fallback not in get_args(Fallback):
            raise RecipeError(unknown("fallback", self.fallback, get_args(Fallback)))
        for name in ("judged", "queries"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RecipeError(f"{name} must be at least 1, or None for all, got {value}")


@dataclass(frozen=True)
class Mined:
    """What mining gives.

    Attributes:
        examples: the mined examples, each with its hard negatives and their grades; rejected candidates are `related`. What
            an example had before is graded where it was found, and never added again. With `Mining.rest`, those not mined for
            stand among them.
        ledger: every retrieved candidate with verdict and rule.
        calibration: of the judge; None without one.
        counts: queries by what happened to them: too few candidates, a positive that the judge graded low ...
        about: what the ledger was made with: fingerprints "embedder" and "judge" (None without one), and the "settings" that
            retrieval and judging depended on.
    """

    examples: tuple[Example, ...]
    ledger: tuple[Entry, ...]
    calibration: Calibration | None
    counts: Mapping[str, int] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def stats(self) -> dict[str, int]:
        """Numbers for people: queries with candidates, candidates kept and rejected."""
        kept, rejected = (sum(entry.verdict == verdict for entry in self.ledger) for verdict in ("kept", "rejected"))
        return {"queries": len({entry.row for entry in self.ledger}), "kept": kept, "rejected": rejected}

    def write(self, folder: Path, root: Path) -> None:
        """Write `examples.jsonl` (pictures named relative to `root`), `ledger.parquet` and `summary.json`."""
        write_examples(folder / "examples.jsonl", self.examples, root)
        books.write(folder / "ledger.parquet", self.ledger, self.about)
        calibration = asdict(self.calibration) if self.calibration else None
        told = {"ledger": books.summary(self.ledger), "queries": self.counts, "calibration": calibration}
        write_json(folder / "summary.json", told)


def depends_on(settings: Mining) -> dict[str, Any]:
    """The settings that decide what is retrieved, judged and checked; the others can be changed without a model."""
    names = ("depth", "judged", "ceiling", "skip", "within_source", "queries", "seed")
    return {name: getattr(settings, name) for name in names}


def mine(
    examples: Sequence[Example],
    embedder: Encoder,
    judge: Scorer | None = None,
    *,
    settings: Mining | None = None,
    out: Path | None = None,
) -> Mined:
    """Hard negatives for the examples.

    Args:
        examples: the training set; its candidates are the pool.
        embedder: retrieves.
        judge: grades; its scores are log-odds. None: candidates are kept unjudged, without grades.
        settings: see `Mining`.
        out: folder where judgements are kept as they come, so that an interrupted run goes on; nothing is written if None.

    Raises:
        DataError: no examples, or nothing in the pool but positives.
        JudgeError: the judge cannot tell gold from random pairs (see `Mining.min_auc`), or gives no finite number.
    """
    settings = settings or Mining()
    if not examples:
        raise DataError("nothing to mine: there are no examples")
    rows = rows_to_mine(examples, settings)
    found = _retrieve(examples, rows, embedder, settings)
    if not any(f.items for f in found):
        raise DataError("the pool holds nothing but the positives: mining needs candidates of other examples")
    if judge is None:
        graded: list[np.ndarray | None] = [None] * len(found)
        calibration = None
    else:
        graded = list(_judge(examples, found, judge, settings, out))
        calibration = _calibration(examples, found, graded, judge, settings)
        believe(calibration, settings)
    judged = [None if odds is None else Judgements(odds, np.zeros_like(odds)) for odds in graded]
    about = {"embedder": embedder.fingerprint, "judge": judge.fingerprint if judge else None, "settings": depends_on(settings)}
    return decided(examples, zip(found, judged, strict=True), calibration, about, settings=settings)


def believe(calibration: Calibration, settings: Mining) -> None:
    """Raise JudgeError if the judge is not to be believed."""
    if calibration.auc < settings.min_auc:
        raise JudgeError(
            f"the judge tells gold pairs from random ones with AUC {calibration.auc:.3f}, below {settings.min_auc}: its "
            "word would harm. Train it longer, take a better one, or lower min_auc to go on all the same"
        )


def decided(
    examples: Sequence[Example],
    judged: Iterable[tuple[Found, Judgements | None]],
    calibration: Calibration | None,
    about: Mapping[str, Any],
    *,
    settings: Mining,
) -> Mined:
    """The last stage: choose for every query from what was found and judged. No model is asked."""
    mined: dict[int, Example] = {}
    entries: list[Entry] = []
    counts: Counter[str] = Counter()
    for found, said in judged:
        chosen = select(examples[found.row], found, said, settings)
        mined[found.row] = chosen.example
        entries += chosen.entries
        counts.update(chosen.counts)
    given_back = range(len(examples)) if settings.rest else mined
    kept = tuple(mined.get(n, examples[n]) for n in given_back)
    return Mined(kept, tuple(entries), calibration, dict(sorted(counts.items())), about)


def rows_to_mine(examples: Sequence[Example], settings: Mining) -> list[int]:
    """Rows to mine for: the same share of every source."""
    rows = list(range(len(examples)))
    if settings.queries is None or settings.queries >= len(rows):
        return rows
    groups: dict[str, list[int]] = {}
    for n in rows:
        groups.setdefault(examples[n].source, []).append(n)
    chosen: list[int] = []
    for source, group in sorted(groups.items()):
        share = round(settings.queries * len(group) / len(rows))
        chosen += generator(settings.seed, "mine", source).sample(group, min(max(share, 1), len(group)))
    return sorted(chosen)


def pools(examples: Sequence[Example], settings: Mining) -> dict[str, dict[str, Item]]:
    """The candidates that may be retrieved, by source (by "" if sources are not kept apart) and key."""
    made: dict[str, dict[str, Item]] = {}
    for example in examples:
        pool = made.setdefault(example.source if settings.within_source else "", {})
        pool.update((c.item.key, c.item) for c in example.candidates)
    return made


def _retrieve(examples: Sequence[Example], rows: Sequence[int], embedder: Encoder, settings: Mining) -> list[Found]:
    by_source = pools(examples, settings)
    queries = embedder.encode([examples[n].query for n in rows], progress="embedding queries")
    everything = {key: item for pool in by_source.values() for key, item in pool.items()}
    vectors = dict(zip(everything, embedder.encode(list(everything.values()), progress="embedding candidates"), strict=True))
    found: dict[int, Found] = {}
    for source, pool in by_source.items():
        members = [n for n, row in enumerate(rows) if not settings.within_source or examples[row].source == source]
        if members:
            items = list(pool.values())
            corpus = np.stack([vectors[key] for key in pool])
            contents = [item.content for item in items]
            exclude = [barred(examples[rows[n]], contents) for n in members]
            hits = retrieve(queries[members], corpus, settings.depth, exclude=exclude)
            for n, ids, scores in zip(members, hits.ids, hits.scores, strict=True):
                hit = [
                    (items[i], s, rank) for rank, (i, s) in enumerate(zip(ids.tolist(), scores.tolist(), strict=True)) if i >= 0
                ]
                gold = vectors[examples[rows[n]].gold[0].key]
                found[n] = looked_at(rows[n], hit, _cosine(queries[n], gold), settings)
    return [found[n] for n in range(len(rows))]


def barred(example: Example, contents: Sequence[str]) -> list[int]:
    """Positions in the pool that may belong to the query: copies of its gold, related items, and the query itself."""
    known = {g.content for g in example.gold} | example.related | {example.query.content}
    if example.query.wordless:  # the bare picture that a composed query starts from
        known.add(example.query.wordless.content)
    return [n for n, content in enumerate(contents) if content in known]


def _cosine(query: np.ndarray, other: np.ndarray) -> float:
    """As `retrieve` scores a pair: summed in float64, rounded to float32."""
    return float(np.float32((query.astype(np.float64) * other.astype(np.float64)).sum()))


def _pairs(examples: Sequence[Example], f: Found, settings: Mining) -> list[Pair]:
    """What the judge is asked about one query: its positive first, then the candidates from the top."""
    example = examples[f.row]
    return [(example.query, item) for item in (example.gold[0], *f.items[: settings.judged])]


def _judge(
    examples: Sequence[Example], found: Sequence[Found], judge: Scorer, settings: Mining, out: Path | None
) -> list[np.ndarray]:
    """Log-odds for every query: [positive, candidates ...]. Shards that were judged before are read."""
    answers: list[np.ndarray] = []
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    total = sum(len(_pairs(examples, f, settings)) for f in found)
    with bar("judging", total, "pairs") as advance:
        for start in range(0, len(found), SHARD):
            asked = [_pairs(examples, f, settings) for f in found[start : start + SHARD]]
            counts = [len(pairs) for pairs in asked]
            # Named after what was asked of whom, so that an answer to another question is never taken for this one's.
            asking = [judge.fingerprint, *((query.key, item.key) for pairs in asked for query, item in pairs)]
            file = None if out is None else out / f"judge-{start // SHARD:05d}-{fingerprint(asking)}.safetensors"
            if file is not None and file.exists():
                flat = load_file(file)["logits"]
            else:
                flat = _asked(judge, [pair for pairs in asked for pair in pairs])
                if file is not None:
                    save_file({"logits": flat}, file.with_suffix(".tmp"))
                    file.with_suffix(".tmp").replace(file)
            answers += np.split(flat, np.cumsum(counts)[:-1])
            advance(sum(counts))
    return answers


def _asked(judge: Scorer, pairs: Sequence[Pair]) -> np.ndarray:
    odds = judge.score_pairs(pairs)
    if not np.isfinite(odds).all():
        raise JudgeError(f"the judge gave {int((~np.isfinite(odds)).sum())} scores that are not finite")
    return odds


def _calibration(
    examples: Sequence[Example], found: Sequence[Found], graded: Sequence[Any], judge: Scorer, settings: Mining
) -> Calibration:
    rng = generator(settings.seed, "calibration")
    some = rng.sample(range(len(found)), min(len(found), 400))
    random_pairs = []
    by_source: dict[str, list[Item]] = {}
    for example in examples:
        by_source.setdefault(example.source, []).append(example.gold[0])
    for n in some:
        example = examples[found[n].row]
        known = {g.content for g in example.gold} | example.related
        others = [
            item
            for item in rng.sample(by_source[example.source], min(8, len(by_source[example.source])))
            if item.content not in known
        ]
        random_pairs += [(example.query, others[0])] if others else []
    if not random_pairs:
        raise JudgeError(
            "the judge cannot be checked: within each source all queries share their positives, so there are no random pairs. "
            "Mine without a judge, or give sources whose queries have positives of their own"
        )
    gold = grade(np.array([graded[n][0] for n in some]))
    return calibrate(gold, grade(_asked(judge, random_pairs)))
