"""UniME-V2's form of mined data: what a row of its released JSON files says, as an Example, and back.

A file is a JSON list. A row has `query_text`, `query_image`, `pos_text`, `pos_image` (strings, "" for none; images are paths
relative to a root), `query_pos_scores` (the judge's grade of the positive), `hard_negatives` ([text, image] each, in the
order of the retrieval) and `hard_negatives_scores`. Where there is an image, its text begins with a placeholder; an item here
knows that it has a picture, so the placeholder is taken away when a row is read and put back when it is written.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hardwon.artifacts import replacing
from hardwon.errors import DataError
from hardwon.items import Candidate, Example, Item

COLUMNS = (
    *("query_text", "query_image", "pos_text", "pos_image", "query_pos_scores"),
    *("hard_negatives", "hard_negatives_scores"),
)
PLACEHOLDER = "<|image_1|>\n"
NEGATIVES = 10  # of a row; the released loader takes the same number from every one


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        rows: one for each graded positive of an example that has graded negatives.
        filled: rows whose negatives were repeated, since there were too few.
        left_out: examples that make no row: without a negative, or with nothing graded to make one of.
        positives: those without a grade, which are left out.
        negatives: those without a grade, likewise: mostly ones that the data set gave and the embedder did not retrieve.
    """

    rows: int
    filled: int
    left_out: int
    positives: int = 0
    negatives: int = 0


def example(row: Mapping[str, Any], item: Callable[[Mapping[str, Any], str], Item]) -> Example:
    """The example that a row states; a negative that is a copy of the positive is left out.

    Args:
        row: columns by name.
        item: makes an item from an object and the name of what it is, and says what is wrong with it.

    Raises:
        DataError: the row cannot be used; the message is the reason.
    """
    missing = [name for name in COLUMNS if row.get(name) is None]
    if missing:
        raise DataError(f"has no {missing[0]}")
    negatives, grades = row["hard_negatives"], row["hard_negatives_scores"]
    if not isinstance(negatives, list) or not isinstance(grades, list) or len(negatives) != len(grades):
        raise DataError("hard_negatives and hard_negatives_scores must be lists of the same length")
    query = item(_parts(row["query_text"], row["query_image"], "query"), "query")
    positive = item(_parts(row["pos_text"], row["pos_image"], "pos"), "pos")
    candidates = [Candidate(positive, _grade(row["query_pos_scores"], "query_pos_scores"), "gold")]
    for n, (pair, grade) in enumerate(zip(negatives, grades, strict=True), start=1):
        name = f"hard negative {n}"
        if not isinstance(pair, list) or len(pair) != 2:
            raise DataError(f"{name} must be a list of a text and an image, got {str(pair)[:60]!r}")
        negative = Candidate(item(_parts(pair[0], pair[1], name), name), _grade(grade, f"the score of {name}"), "mined")
        if negative.item != positive:
            candidates.append(negative)
    return Example(query, tuple(candidates))


def _parts(text: Any, image: Any, name: str) -> dict[str, str]:
    if not isinstance(text, str) or not isinstance(image, str):
        raise DataError(f'{name} must have a text and an image, both strings ("" for none)')
    return {"text": text.removeprefix(PLACEHOLDER) if image else text, "image": image}


def _grade(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise DataError(f"{name} must be a number in [0, 1], got {str(value)[:60]!r}")
    return float(value)


def write(path: Path, examples: Iterable[Example], root: Path, *, negatives: int = NEGATIVES) -> Written:
    """Write examples in this form.

    Args:
        path: the JSON file.
        examples: graded by a judge. A row is nothing without grades, so what has none is left out, and counted.
        root: folder that images are named relative to.
        negatives: of every row: the first ones; where there are fewer, they are repeated, as the paper does.

    Raises:
        DataError: no row, since grades are missing; or an item that the form has no place for (a video, several pictures).
    """
    rows = filled = left_out = 0
    ungraded = {"gold": 0, "negative": 0}
    with replacing(path) as beside, open(beside, "w", encoding="utf-8", errors="surrogatepass") as file:
        file.write("[")
        for given in examples:
            everything = {"gold": [c for c in given.candidates if c.origin == "gold"], "negative": pushed_away(given)}
            graded = {name: [c for c in those if c.relevance is not None] for name, those in everything.items()}
            for name, those in everything.items():
                ungraded[name] += len(those) - len(graded[name])
            golds, usable = graded["gold"], graded["negative"]
            if not golds or not usable:
                left_out += 1
                continue
            chosen = [usable[n] for n in sorted((list(range(len(usable))) * negatives)[:negatives])]
            for gold in golds:
                file.write(("," if rows else "") + "\n" + json.dumps(_row(given.query, gold, chosen, root), ensure_ascii=False))
                rows += 1
                filled += len(usable) < negatives
        file.write("\n]\n")
        if not rows and any(ungraded.values()):
            raise DataError(
                f"there is no row to write: {ungraded['gold']} positives and {ungraded['negative']} negatives have no grade: "
                "mine with a judge"
            )
    return Written(rows, filled, left_out, ungraded["gold"], ungraded["negative"])


def pushed_away(given: Example) -> list[Candidate]:
    """The negatives of an example, without any that may belong to its query (gold, or related to it)."""
    may_belong = {item.content for item in given.gold} | given.related
    return [candidate for candidate in given.negatives if candidate.item.content not in may_belong]


def _row(query: Item, gold: Candidate, negatives: Sequence[Candidate], root: Path) -> dict[str, Any]:
    (query_text, query_image), (pos_text, pos_image) = _two(query, root), _two(gold.item, root)
    return {
        "query_text": query_text,
        "query_image": query_image,
        "pos_text": pos_text,
        "pos_image": pos_image,
        "query_pos_scores": gold.relevance,
        "hard_negatives": [list(_two(c.item, root)) for c in negatives],
        "hard_negatives_scores": [c.relevance for c in negatives],
    }


def _two(item: Item, root: Path) -> tuple[str, str]:
    """Text and image of an item."""
    if item.video or len(item.images) > 1:
        raise DataError(
            f"{item.label} holds {'a video' if item.video else 'several pictures'}: the form has one image for an item"
        )
    text = " ".join(part for part in (item.instruction, item.text) if part)
    image = item.to_json(root).get("images", [""])[0]
    return (PLACEHOLDER + text if image else text), image
