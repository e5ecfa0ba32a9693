"""`mine`: retrieve globally, let a judge grade, exclude likely false negatives, select, and keep the ledger.

After UniME-V2 (arXiv:2510.13515), whose mining and judging were never released. A candidate is rejected when its grade exceeds
the positive's minus beta. Raw judgements are kept, so other thresholds need no model.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from hardwon.artifacts import fingerprint, write_json
from hardwon.errors import DataError, JudgeError, RecipeError
from hardwon.items import Example, Item, write_examples
from hardwon.mining import ledger as books
from hardwon.mining.calibration import Calibration, calibrate
from hardwon.mining.choose import Found, grade, select
from hardwon.mining.ledger import Entry
from hardwon.mining.select import Cyclic, Selector
from hardwon.models import Encoder, Pair, Scorer
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
    """

    examples: tuple[Example, ...]
    ledger: tuple[Entry, ...]
    calibration: Calibration | None

    def write(self, folder: Path, root: Path) -> None:
        """Write `examples.jsonl` (pictures named relative to `root`), `ledger.parquet` and `summary.json`."""
        write_examples(folder / "examples.jsonl", self.examples, root)
        books.write(folder / "ledger.parquet", self.ledger)
        calibration = asdict(self.calibration) if self.calibration else None
        write_json(folder / "summary.json", {"ledger": books.summary(self.ledger), "calibration": calibration})


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
    rows = _chosen(examples, settings)
    found = _retrieve(examples, rows, embedder, settings)
    if not any(f.items for f in found):
        raise DataError("the pool holds nothing but the positives: mining needs candidates of other examples")
    if judge is None:
        graded: list[np.ndarray | None] = [None] * len(found)
        calibration = None
    else:
        graded = list(_judge(examples, found, judge, settings, out))
        calibration = _calibration(examples, found, graded, judge, settings)
        if calibration.auc < settings.min_auc:
            raise JudgeError(
                f"the judge tells gold pairs from random ones with AUC {calibration.auc:.3f}, below {settings.min_auc}: its "
                "word would harm. Train it longer, take a better one, or lower min_auc to go on all the same"
            )
    mined: dict[int, Example] = {}
    entries = []
    for f, grades in zip(found, graded, strict=True):
        mined[f.row], lines = select(examples[f.row], f, grades, settings)
        entries += lines
    given_back = range(len(examples)) if settings.rest else mined
    return Mined(tuple(mined.get(n, examples[n]) for n in given_back), tuple(entries), calibration)


def _chosen(examples: Sequence[Example], settings: Mining) -> list[int]:
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


def _retrieve(examples: Sequence[Example], rows: Sequence[int], embedder: Encoder, settings: Mining) -> list[Found]:
    pools: dict[str, dict[str, Item]] = {}
    for example in examples:
        pool = pools.setdefault(example.source if settings.within_source else "", {})
        pool.update((c.item.key, c.item) for c in example.candidates)
    queries = embedder.encode([examples[n].query for n in rows], progress="embedding queries")
    everything = {key: item for pool in pools.values() for key, item in pool.items()}
    vectors = dict(zip(everything, embedder.encode(list(everything.values()), progress="embedding candidates"), strict=True))
    found: dict[int, Found] = {}
    for source, pool in pools.items():
        members = [n for n, row in enumerate(rows) if not settings.within_source or examples[row].source == source]
        if members:
            items = list(pool.values())
            corpus = np.stack([vectors[key] for key in pool])
            contents = [item.content for item in items]
            exclude = [_known(examples[rows[n]], contents) for n in members]
            hits = retrieve(queries[members], corpus, settings.depth, exclude=exclude)
            for n, ids, scores in zip(members, hits.ids, hits.scores, strict=True):
                found[n] = _found(rows[n], items, ids, scores, settings)
    return [found[n] for n in range(len(rows))]


def _known(example: Example, contents: Sequence[str]) -> list[int]:
    """Positions in the pool that may belong to the query: copies of its gold, related items, and the query itself."""
    known = {g.content for g in example.gold} | example.related | {example.query.content}
    if example.query.wordless:  # the bare picture that a composed query starts from
        known.add(example.query.wordless.content)
    return [n for n, content in enumerate(contents) if content in known]


def _found(row: int, items: Sequence[Item], ids: np.ndarray, scores: np.ndarray, settings: Mining) -> Found:
    kept = [
        (items[i], float(s), rank)
        for rank, (i, s) in enumerate(zip(ids.tolist(), scores.tolist(), strict=True))
        if i >= 0 and (settings.ceiling is None or s < settings.ceiling)
    ][settings.skip :]
    return Found(row, tuple(item for item, _, _ in kept), tuple(s for _, s, _ in kept), tuple(rank for *_, rank in kept))


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
