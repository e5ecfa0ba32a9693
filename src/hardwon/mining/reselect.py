"""`reselect`: choose again from a ledger with other thresholds. The judge has spoken; no model is needed."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hardwon.errors import ArtifactError, DataError, RecipeError
from hardwon.items import Example, Item
from hardwon.mining import ledger as books
from hardwon.mining.calibration import Calibration
from hardwon.mining.choose import Found, Hit, looked_at
from hardwon.mining.judging import believe
from hardwon.mining.ledger import Entry, Said
from hardwon.mining.retrieval import barred, pools, rows_to_mine
from hardwon.mining.run import Mined, decided, depends_on
from hardwon.mining.settings import Mining
from hardwon.models import Judgements
from hardwon.models.left_out import dropped

FIXED = ("within_source", "queries", "seed")  # what is retrieved, for whom, and on what the judge was checked


def reselect(made: Mined | Path, examples: Sequence[Example], *, settings: Mining) -> Mined:
    """What `mine` would have given with these settings, from what it found and judged: the same to the last bit.

    `keep`, `beta`, `selector`, `fallback`, `rest` and `min_auc` may be anything. `copies`, `ceiling`, `skip`, `depth` and
    `judged` may be anything that asks for no candidate that was not retrieved or judged then; a candidate that the judge was
    to be asked about but was not (a budget) stays "beyond the budget". So the ceiling can only be lowered, and where that
    leaves out candidates others have to take their place: mine with more depth than is wanted afterwards.

    Args:
        made: what `mine` returned, or the folder where it was written.
        examples: those that were mined for.
        settings: the new ones.

    Raises:
        RecipeError: settings that need a model; says which.
        DataError: other examples than those that were mined for; or nothing to choose from, as in `mine`.
        JudgeError: as in `mine`.
        ArtifactError: a folder without a ledger, or with one of another version.
    """
    entries, calibration, about, left_out = _opened(made)
    examples = dropped(examples, about.get("left out", ()))
    _check_settings(about["settings"], settings)
    if calibration is not None:
        believe(calibration, settings)
    judged = about["judge"] is not None
    old = Mining(**about["settings"])
    found, said = [], []
    for row, before, pool in _retrieved(entries, examples, settings):
        lines = _below(row, before, old, settings)
        new = _looked_at(row, lines, pool, settings)
        found.append(new)
        if judged and lines:
            asked = {before[rank].candidate for rank in _looked_at(row, before, pool, old).ranks[: old.judged]}
            missing = [rank for rank in new.ranks[: settings.judged] if lines[rank].candidate not in asked]
            if missing:
                raise RecipeError(
                    f"these settings look at candidates that the judge was never asked about (example {row}, rank {missing[0]})"
                    ": mine again with them, or change skip and judged so that they only leave out more"
                )
            said.append(_judgements(lines, new, settings))
        else:
            said.append(None)
    if not any(f.items for f in found):
        raise DataError(
            "the ledger holds nothing to choose from with these settings: lower skip, or mine again with a higher ceiling"
        )
    about = {**about, "settings": depends_on(settings)}
    return replace(decided(examples, zip(found, said, strict=True), calibration, about, settings=settings), left_out=left_out)


def _opened(made: Mined | Path) -> tuple[Sequence[Entry], Calibration | None, Mapping[str, Any], tuple[str, ...]]:
    if isinstance(made, Mined):
        return made.ledger, made.calibration, made.about, made.left_out
    file = made / "ledger.parquet"
    if not file.is_file():
        raise ArtifactError(f"{made} holds no ledger.parquet: give the folder that `hardwon mine` wrote")
    about = books.about(file)
    if "settings" not in about:
        raise ArtifactError(f"{file} does not say what it was made with: another version of hardwon wrote it; mine again")
    told = json.loads((made / "summary.json").read_text(encoding="utf-8"))
    calibration = None if told["calibration"] is None else Calibration.from_json(told["calibration"])
    return books.read(file), calibration, about, tuple(told.get("left out", ()))


def _check_settings(old: Mapping[str, Any], settings: Mining) -> None:
    for name in FIXED:
        if getattr(settings, name) != old[name]:
            raise RecipeError(
                f"{name} was {old[name]!r} when the ledger was made and is to be {getattr(settings, name)!r}: "
                "what is retrieved, for which queries, and how the judge is checked depend on it, so mine again"
            )
    if settings.copies is not None and old["copies"] is None:
        raise RecipeError("copies was None when the ledger was made, so nobody looked for them: mine again, or leave it None")
    if old["ceiling"] is not None and (settings.ceiling is None or settings.ceiling > old["ceiling"]):
        raise RecipeError(
            f"ceiling was {old['ceiling']:g} when the ledger was made and is to be {settings.ceiling}: what lies above it was "
            "never retrieved, so mine again"
        )
    if settings.depth > old["depth"]:
        raise RecipeError(f"depth is to be {settings.depth}, but only {old['depth']} candidates were retrieved: mine again")


def _retrieved(
    entries: Sequence[Entry], examples: Sequence[Example], settings: Mining
) -> Iterator[tuple[int, list[Entry], Mapping[str, Item]]]:
    """Number, lines by rank and the pool that they are from for every example that was mined for."""
    rows = rows_to_mine(examples, settings)
    by_row: dict[int, list[Entry]] = {row: [] for row in rows}
    for entry in entries:
        if entry.row not in by_row:
            raise DataError(f"the ledger names example {entry.row}: it was made for other examples than these {len(examples)}")
        by_row[entry.row].append(entry)
    by_source = pools(examples, settings)
    for row in rows:
        example, lines = examples[row], sorted(by_row[row], key=lambda entry: entry.rank)
        pool = by_source[example.source if settings.within_source else ""]
        strange = [e for e in lines if e.query != example.query.key or e.candidate not in pool]
        if strange or barred(example, [e.content for e in lines]):
            raise DataError(f"example {row} is not what it was when the ledger was made ({example.query.label}): mine again")
        yield row, lines, pool


def _below(row: int, before: Sequence[Entry], old: Mining, settings: Mining) -> list[Entry]:
    """The lines of what would be retrieved with the new depth and ceiling, with their new ranks."""
    ceiling = np.inf if settings.ceiling is None else settings.ceiling
    lines = [entry for entry in before if entry.similarity < ceiling]
    # Of a full list nobody knows what comes after it.
    if len(before) == old.depth and len(lines) < settings.depth:
        raise RecipeError(
            f"below ceiling {settings.ceiling} the ledger has {len(lines)} candidates of example {row}, and depth is to be "
            f"{settings.depth}: others have to take the place of what it leaves out, so mine again, or take a smaller depth"
        )
    return [replace(entry, rank=rank) for rank, entry in enumerate(lines[: settings.depth])]


def _looked_at(row: int, lines: Sequence[Entry], pool: Mapping[str, Item], settings: Mining) -> Found:
    hits = [Hit(pool[entry.candidate], entry.similarity, entry.rank, entry.apart) for entry in lines]
    return looked_at(row, hits, lines[0].gold_similarity if lines else 0.0, settings)


def _judgements(lines: Sequence[Entry], found: Found, settings: Mining) -> Judgements:
    """What the judge said of the positives and of the candidates that are looked at."""
    by_rank, first = {entry.rank: entry for entry in lines}, lines[0]
    said = [Said(first.gold_yes, first.gold_no, first.gold_grade, first.gold_problem), *first.other_golds]
    asked = (by_rank[rank] for rank in found.ranks[: settings.judged])
    said += [Said(e.yes, e.no, e.grade, e.problem) for e in asked]
    problems = {n: one.problem for n, one in enumerate(said) if one.problem}
    return Judgements(_numbers([one.yes for one in said]), _numbers([one.no for one in said]), problems)


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float32)
