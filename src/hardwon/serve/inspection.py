"""The page on which a person checks what was mined: queries, their positive, and what became of every candidate.

One HTML file without a network. Its one script, which sorts and filters the cards, is let through by its hash; it handles
numbers and sorts elements, and never makes markup of a text.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from hardwon.artifacts import write_atomically
from hardwon.items import Item
from hardwon.serve.report import TEMPLATES, templates
from hardwon.serve.report_content import Calibration
from hardwon.serve.report_pictures import Thumbnails

PICTURES = 12_000_000  # bytes of encoded pictures in one page
SPARE_SHOWN = 8  # candidates of a query that were neither kept nor rejected


@dataclass(frozen=True, slots=True)
class Seen:
    """A candidate as the page shows it.

    Attributes:
        item: the candidate; None if it is not in the data any more.
        rank: place in the retrieval, from 1.
        similarity: cosine of the embedder.
        grade: the judge's, in [0, 1]; None without a judgement.
        verdict: "kept", "rejected" or "spare".
        rule: the rule that decided, with the problem of the judgement if it had one.
        disagreement: see `hardwon.mining.Entry.disagreement`.
    """

    item: Item | None
    rank: int
    similarity: float
    grade: float | None
    verdict: str
    rule: str
    disagreement: float | None


@dataclass(frozen=True, slots=True)
class Asked:
    """A query with its positive and its candidates, by rank.

    Attributes:
        row: number of the example in the data.
        source: name of the data set.
        query: the query; None if it is not in the data any more.
        positive: its first positive.
        similarity: cosine of query and positive.
        grade: the judge's grade of the positive.
        problem: why the positive has no grade.
        candidates: what was retrieved.
        bar: grade above which a candidate is a likely false negative; None where that is not known.
    """

    row: int
    source: str
    query: Item | None
    positive: Item | None
    similarity: float
    grade: float | None
    problem: str
    candidates: tuple[Seen, ...]
    bar: float | None = None

    @property
    def false_negative(self) -> float:
        """How likely there is a false negative among the candidates: the highest grade that the bar rejects, 0 to 1.

        Whether it was rejected or, by a fallback, kept all the same.
        """
        graded = [(c, c.grade) for c in self.candidates if c.grade is not None]
        return max((grade for c, grade in graded if c.verdict == "rejected" or self._above(grade)), default=0.0)

    @property
    def kept_false(self) -> bool:
        """Whether a likely false negative was kept: a model that is trained with it learns the mistake."""
        return any(c.verdict == "kept" and c.grade is not None and self._above(c.grade) for c in self.candidates)

    def _above(self, grade: float) -> bool:
        return self.bar is not None and grade > self.bar

    @property
    def wrong_label(self) -> float:
        """How likely the positive is none, 0 to 1."""
        return 0.0 if self.grade is None else 1 - self.grade

    @property
    def disagreement(self) -> float:
        """The largest disagreement of embedder and judge on a candidate.

        Without a judge: how much more similar than the positive the best candidate is, at least 0.
        """
        said = [c.disagreement for c in self.candidates if c.disagreement is not None]
        return max(said, default=max([0.0, *(c.similarity - self.similarity for c in self.candidates)]))

    @property
    def suspicion(self) -> float:
        """The larger of `false_negative` and `wrong_label`; the disagreement where nothing was judged.

        With 1 added where a likely false negative was kept, so that this comes first.
        """
        judged = self.grade is not None or self.bar is not None
        return (max(self.false_negative, self.wrong_label) if judged else self.disagreement) + self.kept_false


@dataclass(frozen=True, slots=True)
class Inspection:
    """What the page says.

    Attributes:
        title: headline.
        total: queries in the ledger; `asked` may be fewer.
        asked: the queries that are shown.
        candidates: candidates in the ledger.
        rules: how many candidates each verdict and rule has.
        counts: queries by what happened to them.
        judge: calibration; None without a judge.
        made_with: what else is known, by name.
    """

    title: str
    total: int
    asked: tuple[Asked, ...]
    candidates: int
    rules: Mapping[str, int]
    counts: Mapping[str, int]
    judge: Calibration | None
    made_with: Mapping[str, str]


def most_telling(asked: Sequence[Asked], most: int | None) -> tuple[Asked, ...]:
    """The queries to show, the most suspicious first: by turns one that is suspicious and one that is disagreed on.

    Args:
        asked: all of them.
        most: how many at most; None for all.
    """
    suspicious = sorted(asked, key=lambda a: (-a.suspicion, a.row))
    if most is None or most >= len(asked):
        return tuple(suspicious)
    disagreed = sorted(asked, key=lambda a: (-a.disagreement, a.row))
    turns = [a for pair in zip(suspicious, disagreed, strict=True) for a in pair]
    rows = set(list(dict.fromkeys(a.row for a in turns))[:most])
    return tuple(a for a in suspicious if a.row in rows)


def write_inspection(content: Inspection, path: Path) -> None:
    """Write the page as one self-contained HTML file.

    Pictures are embedded as thumbnails, each distinct one once, up to `PICTURES` bytes; then placeholders say so.

    Raises:
        OSError: the file cannot be written.
    """
    write_atomically(path, render(content).encode("utf-8", "replace"))


def render(content: Inspection, home: str = "") -> str:
    """The page as text; see `write_inspection`. With `home`, the address of another page, it leads there."""
    thumbnails = Thumbnails(PICTURES)
    known = templates()
    parts = {"content": content, "thumbnail": thumbnails, "spare_shown": SPARE_SHOWN, "home": home}
    body = known.get_template("inspect_body.html").render(parts)
    files = [(TEMPLATES / name).read_text(encoding="utf-8") for name in ("report.css", "inspect.css")]
    style = "".join(files) + thumbnails.css() + "\n"
    script = (TEMPLATES / "inspect.js").read_text(encoding="utf-8")
    return known.get_template("inspect.html").render(
        title=content.title,
        body=Markup(body),
        style=Markup(style),
        script=Markup(script),
        style_digest=Markup(_digest(style)),
        script_digest=Markup(_digest(script)),
    )


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
