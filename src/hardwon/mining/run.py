"""`mine`: retrieve globally, let a judge grade, exclude likely false negatives, select, and keep the ledger.

After UniME-V2 (arXiv:2510.13515), whose mining and judging were never released. A candidate is rejected when its grade exceeds
the positive's minus beta. Raw judgements are kept, so other thresholds need no model.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from hardwon.artifacts import checksum, describe, write_json
from hardwon.errors import DataError
from hardwon.items import Example, write_examples
from hardwon.mining import ledger as books
from hardwon.mining.calibration import Calibration
from hardwon.mining.choose import Found, select
from hardwon.mining.judging import judge_all
from hardwon.mining.ledger import Entry
from hardwon.mining.retrieval import retrieve_all, rows_to_mine
from hardwon.mining.settings import Mining
from hardwon.models import CachedEncoder, Encoder, Judgements, Scorer, YesNo
from hardwon.models.left_out import readable
from hardwon.models.scorer import name_of

FILES = ("examples.jsonl", "ledger.parquet", "summary.json")


@dataclass(frozen=True)
class Mined:
    """What mining gives.

    Attributes:
        examples: the mined examples, each with its hard negatives and their grades; rejected candidates are `related`. What
            an example had before is graded where it was found, and never added again. With `Mining.rest`, those not mined for
            stand among them.
        ledger: every retrieved candidate with verdict and rule.
        calibration: of the judge; None without one.
        left_out: what could not be read, with place and reason; see `Mining.on_error`. Examples are then counted without it.
        counts: queries by what happened to them: too few candidates, a positive that the judge graded low ...
        about: what the ledger was made with: fingerprints "embedder" and "judge" (None without one), "judge name" if it has
            one, and the "settings" that retrieval and judging depended on; and "left out", if anything was: numbers of examples
            and candidates.
    """

    examples: tuple[Example, ...]
    ledger: tuple[Entry, ...]
    calibration: Calibration | None
    counts: Mapping[str, int] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    @property
    def stats(self) -> dict[str, int]:
        """Numbers for people: queries with candidates, candidates kept and rejected."""
        kept, rejected = (sum(entry.verdict == verdict for entry in self.ledger) for verdict in ("kept", "rejected"))
        return {"queries": len({entry.row for entry in self.ledger}), "kept": kept, "rejected": rejected}

    def write(self, folder: Path, root: Path) -> None:
        """Write `examples.jsonl` (pictures named relative to `root`), `ledger.parquet`, `summary.json` and a manifest."""
        folder.mkdir(parents=True, exist_ok=True)
        write_examples(folder / "examples.jsonl", self.examples, root)
        books.write(folder / "ledger.parquet", self.ledger, self.about)
        calibration = asdict(self.calibration) if self.calibration else None
        told = {
            "ledger": books.summary(self.ledger),
            "queries": self.counts,
            "calibration": calibration,
            "judged": books.judged(self.ledger) if self.calibration else None,
            "left out": self.left_out,
        }
        write_json(folder / "summary.json", told)
        files = {name: checksum(folder / name) for name in FILES}
        describe(folder, "negatives", self.about, self.stats, files)


def depends_on(settings: Mining) -> dict[str, Any]:
    """The settings that decide what is retrieved, judged and checked; the others can be changed without a model."""
    names = ("depth", "judged", "copies", "ceiling", "skip", "within_source", "queries", "seed")
    return {name: getattr(settings, name) for name in names}


def mine(
    examples: Sequence[Example],
    embedder: Encoder,
    judge: YesNo | Scorer | None = None,
    *,
    settings: Mining | None = None,
    store: Path | None = None,
) -> Mined:
    """Hard negatives for the examples.

    Args:
        examples: the training set; its candidates are the pool.
        embedder: retrieves. The workers of a `SpreadEncoder` search, too.
        judge: grades; a scorer's scores are log-odds. None: candidates are kept unjudged, without grades.
        settings: see `Mining`.
        store: folder where vectors and judgements are kept as they come, so that an interrupted run goes on. Give all runs of
            a project the same one: what is kept there of the same model, item or pair is not computed again, so a round with
            another embedder judges only pairs that were never judged. None: nothing is written.

    Raises:
        DataError: no examples, or nothing in the pool but positives.
        BadItems: items that cannot be read, all of them; with `Mining(on_error="skip")` too many of them.
        JudgeError: the judge cannot tell gold from random pairs (see `Mining.min_auc`), or gives too few usable answers.
        RecipeError: a budget that does not reach for what is always judged.
    """
    settings = settings or Mining()
    if not examples:
        raise DataError("nothing to mine: there are no examples")
    encoder = embedder if isinstance(embedder, CachedEncoder) else CachedEncoder(embedder, store)
    known = readable(
        examples,
        lambda some: retrieve_all(some, rows_to_mine(some, settings), encoder, settings, store),
        settings,
        "mining",
    )
    found = known.made
    if not any(f.items for f in found):
        raise DataError("the pool holds nothing but the positives: mining needs candidates of other examples")
    said: Sequence[Judgements | None] = [None] * len(found)
    calibration = None
    if judge is not None:
        said, calibration = judge_all(known.examples, found, judge, settings, store)
    about = {"embedder": embedder.fingerprint, "judge": judge.fingerprint if judge else None, "settings": depends_on(settings)}
    if name := name_of(judge):
        about["judge name"] = name
    if known.places:
        about["left out"] = [list(place) for place in known.places]
    mined = decided(known.examples, zip(found, said, strict=True), calibration, about, settings=settings)
    return replace(mined, left_out=tuple(map(str, known.left_out)))


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
