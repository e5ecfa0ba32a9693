"""The report of a run: one HTML file that a person opens from disk, without a network and without scripts.

Everything that came from data or a user is escaped by the templates; the only trusted markup is the templates' own.
A content security policy, with the hash of the one style sheet, forbids everything else: should a text ever break out,
it could still neither run nor fetch anything.
"""

import base64
import datetime
import hashlib
from pathlib import Path

import jinja2
from markupsafe import Markup

from hardwon.artifacts import write_atomically
from hardwon.items import Picture
from hardwon.serve import report_charts
from hardwon.serve.report_content import Estimate, ReportContent
from hardwon.serve.report_pictures import Thumbnails

TEMPLATES = Path(__file__).parent / "templates"
LONGEST_TEXT = 280  # characters of an item that are shown
SECTIONS = (
    ("results", "Results", "results"),
    ("notes", "Notes", "notes"),
    ("examples", "What each round found", "examples"),
    ("searches", "Searches", "searches"),
    ("pairs", "Training data", "data"),
    ("negatives", "Mined negatives", "negatives"),
    ("judge", "The judge", "judge"),
    ("curves", "Training", "training"),
    ("stages", "Time", "time"),
    ("command", "How it was made", "environment"),
)


def write_report(content: ReportContent, path: Path) -> None:
    """Write a report as one self-contained HTML file.

    Pictures are embedded as thumbnails, each distinct one once; one that cannot be read becomes a placeholder. Long
    texts and long lists are cut, and the page says so; with up to a hundred data sets the file stays below 6 MB.

    Args:
        content: what to show; empty parts are left out.
        path: the file, replaced if it exists; its folder must exist.

    Raises:
        OSError: the file cannot be written.
    """
    # A text may hold half of a surrogate pair, which no encoding can write: it becomes a question mark.
    write_atomically(path, render(content).encode("utf-8", "replace"))


def render(content: ReportContent) -> str:
    """The page as text; see `write_report`."""
    thumbnails = Thumbnails()
    known = templates()
    sections = [(name, title, file) for name, title, file in SECTIONS if getattr(content, name)]
    # The body goes first: it finds out which pictures the style sheet has to carry.
    body = known.get_template("body.html").render(content=content, thumbnail=thumbnails, sections=sections)
    style = (TEMPLATES / "report.css").read_text(encoding="utf-8") + thumbnails.css() + "\n"
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return known.get_template("page.html").render(
        content=content, body=Markup(body), style=Markup(style), digest=Markup(digest)
    )


def templates() -> jinja2.Environment:
    """The templates, with the filters that write numbers, times and long texts."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "percent": percent,
        "points": points,
        "p_value": p_value,
        "duration": duration,
        "score": score,
        "moment": moment,
        "clip": clip,
        "across": across,
        "best": best,
    }
    made.globals |= {
        "zip": zip,
        "forest": report_charts.forest,
        "panels": report_charts.panels,
        "histogram": report_charts.histogram,
    }
    return made


def percent(share: float) -> str:
    """A share in [0, 1] as percent with one decimal.

    >>> percent(0.7128)
    '71.3'
    """
    return f"{100 * share:.1f}"


def points(difference: float) -> str:
    """A difference of shares in percentage points, always with a sign.

    >>> points(0.094), points(-0.0312)
    ('+9.4', '−3.1')
    """
    return f"{100 * difference:+.1f}".replace("-", "−")


def p_value(p: float) -> str:
    """A p value with two digits that count.

    >>> p_value(0.0321), p_value(0.0002)
    ('p = 0.032', 'p < 0.001')
    """
    return "p < 0.001" if p < 0.001 else f"p = {p:.2f}" if p >= 0.1 else f"p = {p:.3f}"


def duration(seconds: float) -> str:
    """A duration in the two largest units that fit.

    >>> duration(0.42), duration(72.0), duration(5400.0)
    ('0.4 s', '1 min 12 s', '1 h 30 min')
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def score(value: float) -> str:
    """A cosine or judge score with two decimals.

    >>> score(-0.317)
    '−0.32'
    """
    return f"{value:.2f}".replace("-", "−")


def moment(at: str) -> str:
    """A time in ISO form as people write it; any other text stays as it is.

    >>> moment("2026-03-01T09:30:00+00:00")
    '1 March 2026, 09:30 UTC'
    """
    try:
        when = datetime.datetime.fromisoformat(at)
    except ValueError:
        return at
    return f"{when.day} {when:%B %Y, %H:%M %Z}".strip()


def clip(text: str) -> str:
    """A text, cut when it is longer than a report has room for; says how much is missing."""
    if len(text) <= LONGEST_TEXT:
        return text
    return f"{text[:LONGEST_TEXT].rstrip()} … ({len(text) - LONGEST_TEXT:,} more characters)"


def across(video: tuple[Picture, ...]) -> tuple[Picture, ...]:
    """Up to four frames of a video, from its first to its last.

    >>> across((b"0", b"1", b"2", b"3", b"4", b"5", b"6"))
    (b'0', b'2', b'4', b'6')
    """
    shown = min(len(video), 4)
    return tuple(video[n * (len(video) - 1) // max(shown - 1, 1)] for n in range(shown))


def best(estimates: tuple[Estimate, ...]) -> str:
    """The highest value as `percent` shows it: everything that reads the same counts as best."""
    return percent(max(e.value for e in estimates))
