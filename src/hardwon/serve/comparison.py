"""The page that shows where two models differ: every data set, and queries that one of them answers better.

One HTML file without a network and without scripts, under the same content security policy as the report of a run.
"""

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from hardwon.artifacts import write_atomically
from hardwon.items import Item
from hardwon.serve.report import TEMPLATES, templates
from hardwon.serve.report_pictures import Thumbnails

PICTURES = 12_000_000  # bytes of encoded pictures in one page


@dataclass(frozen=True, slots=True)
class Answered:
    """A query that the models answer differently.

    Attributes:
        row: number of the query in its data set.
        query: the query.
        gold: what belongs to it.
        first: what the first model put first; None if its report does not say.
        second: what the second model put first.
        ranks: rank of the gold for each model.
    """

    row: int
    query: Item
    gold: tuple[Item, ...]
    first: Item | None
    second: Item | None
    ranks: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Line:
    """A data set or a mean in the table.

    Attributes:
        name: what it is called.
        mean: difference of the means, first minus second, in [-1, 1].
        low: lower end of the interval.
        high: upper end.
        p: permutation p value.
        verdict: what the first model is: "above", "below" or "not distinguishable".
        won: queries that the first model answers better.
        lost: queries that it answers worse.
    """

    name: str
    mean: float
    low: float
    high: float
    p: float
    verdict: str
    won: int
    lost: int


@dataclass(frozen=True, slots=True)
class Moved:
    """Queries of one data set that changed, those that are shown.

    Attributes:
        line: the data set's line of the table.
        won: queries that the first model answers better.
        lost: queries that it answers worse.
    """

    line: Line
    won: tuple[Answered, ...]
    lost: tuple[Answered, ...]


@dataclass(frozen=True, slots=True)
class ComparisonPage:
    """What the page says.

    Attributes:
        title: headline.
        first: label of the first model.
        second: label of the second model.
        about: what is known of each model and of the method, by name.
        means: lines of means, the headline first.
        tasks: lines of data sets.
        moved: queries that changed, by data set; empty when the benchmark is not at hand.
        missing: why no queries are shown; "" when they are.
    """

    title: str
    first: str
    second: str
    about: tuple[tuple[str, str], ...]
    means: tuple[Line, ...]
    tasks: tuple[Line, ...]
    moved: tuple[Moved, ...]
    missing: str = ""


def write_comparison(content: ComparisonPage, path: Path) -> None:
    """Write the page as one self-contained HTML file.

    Pictures are embedded as thumbnails, each distinct one once, up to `PICTURES` bytes; then placeholders say so.

    Raises:
        OSError: the file cannot be written.
    """
    write_atomically(path, render(content).encode("utf-8", "replace"))


def render(content: ComparisonPage) -> str:
    """The page as text; see `write_comparison`."""
    thumbnails, known = Thumbnails(PICTURES), templates()
    body = known.get_template("compare_body.html").render(content=content, thumbnail=thumbnails)
    files = [(TEMPLATES / name).read_text(encoding="utf-8") for name in ("report.css", "inspect.css", "compare.css")]
    style = "".join(files) + thumbnails.css() + "\n"
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return known.get_template("page.html").render(
        content=content, body=Markup(body), style=Markup(style), digest=Markup(digest)
    )
