"""The report: complete, escaped, self-contained, and kind to whoever reads it."""

import base64
import dataclasses
import doctest
import hashlib
import html
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hardwon.items import Item
from hardwon.serve import report, write_report
from hardwon.serve.report_content import (
    Calibration,
    Curve,
    Difference,
    Estimate,
    Found,
    Hit,
    MeanRow,
    Mined,
    Negative,
    Pairs,
    Point,
    ReportContent,
    Results,
    Round,
    Search,
    Stage,
    TaskRow,
)

HEADINGS = [
    "Results",
    "Notes",
    "What each round found",
    "Searches",
    "Training data",
    "Mined negatives",
    "The judge",
    "Training",
    "Time",
    "How it was made",
]
VOID = {"meta", "link", "br"}
TAGS = set(
    "html head meta link title style body div header p time h1 h2 h3 h4 ol ul li small span bdi nav a main section article "
    "figure figcaption table thead tbody tr th td caption abbr b dl dt dd details summary pre code br".split()
) | set("svg g path rect circle line text tspan title desc".split())
ATTRIBUTES = set(
    "lang charset http-equiv content name rel href class id role title tabindex scope colspan open aria-label "
    "aria-labelledby aria-hidden width height x y x1 x2 y1 y2 cx cy r rx d viewbox preserveaspectratio overflow "
    "text-anchor".split()
)
PAYLOADS = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style><script>alert(1)</script>",
    "' onmouseover='alert(1)",
    "{{ 7 * 7 }}{% include 'body.html' %}",
    "<meta http-equiv=refresh content='0;url=http://127.0.0.1/'>",
    "&lt;script&gt;",
]


def png(colour: str | tuple[int, int, int], side: int = 90) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(file, "PNG")
    return file.getvalue()


def bmp(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "BMP")
    return file.getvalue()


RED, BLUE = Item(images=(png("red"),)), Item(images=(png("blue"),))


def full(text: str = "a kite", picture: Item = RED) -> ReportContent:
    """A report with something in every part; `text` wherever a person's or a data set's words can stand."""
    words = Item(text=text, instruction=text)
    both = Item(text=text, images=picture.images)
    labels = ("chance", "untrained", f"round 1 {text}")
    estimates = (Estimate(0.02), Estimate(0.0512, 0.04, 0.07), Estimate(0.7128, 0.68, 0.7449))
    results = Results(
        labels,
        (TaskRow(f"colours {text}", "retrieval", "ood", 1200, 50, estimates),),
        (MeanRow("all data sets", 1, estimates),),
        (Difference(labels[2], labels[1], 0.094, 0.06, 0.13, 0.0001), Difference(labels[1], labels[0], 0.01, -0.02, 0.04, 0.3)),
    )
    negatives = (Negative(both, 1, 0.91, None, False, f"same content {text}"), Negative(BLUE, 7, 0.55, 0.12, True, "kept"))
    return ReportContent(
        title=f"A run {text}",
        subtitle=text,
        command=f"hardwon demo {text}",
        environment={"versions": {"torch": "2.13.0"}, "hardware": {"cores": 2, text: text}, "at": "2026-03-01T09:30:00+00:00"},
        stages=(Stage(f"train {text}", 72.0, text), Stage("mine", 5.04)),
        pairs=(Pairs(f"captions {text}", 4210, ((words, picture), (both, BLUE))),),
        results=results,
        curves=(Curve(f"round 1 {text}", (Point(1, 2.5), Point(50, 1.25, 0.4), Point(100, 0.625, 0.6))),),
        examples=(Found(words, (picture,), (Round(text, (Hit(BLUE, 0.8), Hit(picture, 0.7, gold=True))),), text),),
        negatives=(Mined(words, picture, negatives),),
        judge=Calibration(0.9737, 0.0412, (1, 3, 16), (30, 8, 2)),
        searches=(Search("by words", words, (Hit(both, 0.62),)),),
        notes=(f"What this does not show: {text}",),
    )


class Page(HTMLParser):
    """What a browser would see: elements, attributes, text; complains about elements that do not nest."""

    def __init__(self, page: str):
        super().__init__()
        self.stack: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.headings: list[str] = []
        self.feed(page)
        self.close()
        assert not self.stack

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if "style" not in self.stack:
            self.words.append(data + " ")
        if self.stack and self.stack[-1] == "h2":
            self.headings.append(data)

    def values(self, name: str) -> list[str]:
        return [value for _, n, value in self.attributes if n == name]


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(report.render(full()))


def test_every_section_is_present_and_linked(page):
    assert page.headings == HEADINGS
    anchors = [value for tag, name, value in page.attributes if (tag, name) == ("a", "href")]
    assert [f"#{ident}" for ident in page.values("id") if f"#{ident}" in anchors] == anchors
    assert len(anchors) == len(HEADINGS)


def test_ids_are_unique(page):
    assert len(page.values("id")) == len(set(page.values("id")))


def test_empty_parts_are_left_out():
    bare = Page(report.render(ReportContent("t", "s", "hardwon demo", {})))
    assert bare.headings == ["How it was made"]
    assert "hardwon demo" in bare.text


@pytest.mark.parametrize("payload", PAYLOADS)
def test_words_cannot_become_markup(payload, tmp_path):
    name = re.sub(r"[/\x00]", "_", payload)[:60]
    (tmp_path / f"{name}.png").write_bytes(png("red"))
    (tmp_path / f"{name}-broken.png").write_bytes(b"no picture")
    item = Item(images=(tmp_path / f"{name}.png", tmp_path / f"{name}-broken.png"))
    seen = Page(report.render(full(payload, item)))
    assert seen.tags <= TAGS
    assert {name for _, name, _ in seen.attributes} <= ATTRIBUTES
    assert " ".join(payload.split()) in seen.text
    assert any(name.replace("-", " ").replace("_", " ") in label for label in seen.values("aria-label"))


@settings(max_examples=25, deadline=None)
@given(st.text(min_size=1, max_size=60))
def test_any_text_can_be_written(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("report") / "r.html"
    write_report(full(text), path)
    seen = Page(path.read_text(encoding="utf-8"))
    assert seen.tags <= TAGS
    assert seen.headings == HEADINGS


def test_half_a_surrogate_pair_is_replaced(tmp_path):
    write_report(full("broken \ud83d emoji"), tmp_path / "r.html")
    assert "broken ? emoji" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_nothing_is_fetched_or_run(page):
    text = report.render(full())
    assert "http://" not in text and "https://" not in text
    assert not page.values("src")
    assert all(href.startswith("#") or href == "data:," for href in page.values("href"))
    assert not {"script", "img", "iframe", "object", "use", "image"} & page.tags
    assert not [name for _, name, _ in page.attributes if name.startswith("on") or name == "style"]
    assert set(re.findall(r"url\((.{0,16})", text)) == {"data:image/webp;"}
    assert "@import" not in text


def test_policy_allows_exactly_the_one_style_sheet(tmp_path):
    write_report(full(), tmp_path / "r.html")
    text = (tmp_path / "r.html").read_bytes().decode()
    (policy,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', text)
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"


def test_numbers_are_formatted(page):
    for shown in (
        *("71.3", "68.0–74.5", "5.1", "4.0–7.0", "2.0"),  # estimates
        *("+9.4 points", "95 % interval +6.0 to +13.0, p < 0.001", "−2.0 to +4.0, p = 0.30"),
        *("1,200 queries × 50", "4,210 pairs", "1 min 12 s", "5.0 s", "1 min 17 s in all"),
        *("0.974", "0.041", "gold pairs (20)", "random pairs (40)", "loss 0.625 at step 100"),
        *("rank 1 · similarity 0.91 · not judged", "rank 7 · similarity 0.55 · judge 0.12", "1 March 2026, 09:30 UTC"),
    ):
        assert shown in page.text, shown


def test_verdicts_follow_the_interval(page):
    assert "above, interval excludes zero" in page.text
    assert "not distinguishable" in page.text
    assert Difference("b", "a", -0.1, -0.2, -0.05, 0.01).verdict == "below, interval excludes zero"
    assert Difference("b", "a", 0.1, 0.0, 0.2, 0.05).verdict == "not distinguishable"


def test_best_of_a_row_is_marked_and_ties_share_it():
    row = (Estimate(0.5), Estimate(0.70004, 0.6, 0.8), Estimate(0.70001, 0.6, 0.8))
    content = dataclasses.replace(full(), results=Results(("a", "b", "c"), (TaskRow("t", "vqa", "ind", 9, 9, row),), ()))
    table = report.render(content).split('class="numbers"')[1].split("</table>")[0]
    cells = re.findall(r"<td( class=\"best\")?>([\d.]+)", table)
    assert cells == [("", "50.0"), (' class="best"', "70.0"), (' class="best"', "70.0")]


def test_charts_have_titles_descriptions_and_axes(page):
    charts = [value.split() for tag, name, value in page.attributes if tag == "svg" and name == "aria-labelledby"]
    assert len(charts) == 4
    assert {ident for pair in charts for ident in pair} <= set(page.values("id"))
    for label in ("precision at 1 (%)", "step", "loss", "held-out precision at 1 (%)", "judge's score", "share of pairs (%)"):
        assert f" {label} " in page.text


def test_rank_of_gold_is_said():
    hits = tuple(Hit(Item(text=f"answer {i}"), 0.5, gold=i == 5) for i in range(7))
    found = Found(Item(text="q"), (Item(text="g"),), (Round("a", hits), Round("b", hits[5:]), Round("c", hits[2:])))
    seen = Page(report.render(dataclasses.replace(full(), examples=(found,))))
    assert "a not in the first 5" in seen.text
    assert "b right answer 5 ✓" in seen.text
    assert "c right at 4 answer 2" in seen.text
    assert [r.rank for r in found.rounds] == [6, 1, 4]


def test_long_texts_and_lists_are_cut_and_say_so(tmp_path):
    found = full().examples * 30
    candidates = tuple(Negative(Item(text=f"c{i}"), i, 0.5, 0.5, True, "kept") for i in range(1, 31))
    content = dataclasses.replace(full("x" * 100_000), examples=found, negatives=(Mined(RED, BLUE, candidates),))
    seen = Page(report.render(content))
    assert "The first 24 of 30 examples are shown." in seen.text
    assert "The first 8 of 30 candidates are shown." in seen.text
    assert "… (99,720 more characters)" in seen.text


def test_a_picture_is_embedded_once_and_small(tmp_path):
    noisy = Image.effect_noise((900, 600), 90).convert("RGB")
    noisy.save(tmp_path / "one.png")
    noisy.save(tmp_path / "copy.png")
    items = tuple(Hit(Item(images=(tmp_path / name,)), 0.5) for name in ("one.png", "copy.png", "one.png"))
    content = ReportContent("t", "s", "c", {}, searches=(Search("by picture", RED, items),))
    uris = re.findall(r"url\(data:image/webp;base64,([^)]*)\)", report.render(content))
    assert len(uris) == 2
    sizes = [Image.open(io.BytesIO(base64.b64decode(uri))).size for uri in uris]
    assert sorted(sizes) == [(72, 48), (72, 72)]


def test_a_video_is_shown_by_four_of_its_frames(tmp_path):
    frames = tuple(tmp_path / f"{n}.png" for n in range(9))
    for n, path in enumerate(frames):
        Image.new("RGB", (8, 8), (n * 25, 0, 0)).save(path)
    long, short = Item(video=frames), Item("two", RED.images, video=frames[:2])
    seen = Page(report.render(ReportContent("t", "s", "c", {}, searches=(Search("k", long, (Hit(short, 1.0),)),))))
    assert seen.values("aria-label")[1:] == [f"picture: {n}" for n in (0, 2, 5, 8)] + ["picture", "picture: 0", "picture: 1"]
    assert "9 frames" in seen.text and "2 frames" in seen.text


def test_pictures_that_cannot_be_shown_become_placeholders(tmp_path):
    (tmp_path / "half.png").write_bytes(png("red")[:60])
    (tmp_path / "empty.png").write_bytes(b"")
    pictures = (tmp_path / "half.png", tmp_path / "empty.png", tmp_path / "never-was.png", b"junk")
    content = ReportContent("t", "s", "c", {}, searches=(Search("k", Item(images=pictures), (Hit(RED, 1.0),)),))
    seen = Page(report.render(content))
    labels = [label for label in seen.values("aria-label") if label.startswith("picture that cannot be read")]
    assert [label.split(": ")[1] for label in labels] == ["half", "empty", "never was", "unnamed"]
    assert sum("lost" in value for value in seen.values("class")) == 4


def test_whole_file_stays_small(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (240, 4, 72, 72, 3), dtype=np.uint8)
    pairs = [(Item(images=tuple(bmp(pixels) for pixels in four), text="\u4e2d" * 10_000), RED) for four in noise]
    points = tuple(Point(step, 1 / (step + 1), 0.5) for step in range(20_000))
    sources = tuple(Pairs(f"s{i}", 10, tuple(pairs[i * 6 : i * 6 + 6])) for i in range(40))
    content = dataclasses.replace(full(), pairs=sources, curves=(Curve("long", points),) * 4)
    write_report(content, tmp_path / "r.html")
    # The pictures alone would be larger, and nearly all of their room is used.
    assert 4_500_000 < (tmp_path / "r.html").stat().st_size < 6_000_000


def test_an_older_report_is_replaced_and_nothing_else_is_left(tmp_path):
    for title in ("first", "second"):
        write_report(dataclasses.replace(full(), title=title), tmp_path / "r.html")
    assert "<title>second</title>" in (tmp_path / "r.html").read_text(encoding="utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]


def test_same_content_gives_the_same_bytes(tmp_path):
    write_report(full(), tmp_path / "a.html")
    write_report(full(), tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_report(full(), tmp_path / "nowhere" / "r.html")


def test_every_style_that_the_page_uses_is_defined(page):
    css = (report.TEMPLATES / "report.css").read_text(encoding="utf-8")
    used = {name for value in page.values("class") for name in value.split()}
    unstyled = {name for name in used if not re.search(rf"\.{re.escape(name)}\b", css) and not re.fullmatch(r"p\d+", name)}
    # These only name what a thing is, for whoever reads the page's source.
    assert unstyled <= {"later", "miss", "stage", "pair", "kept", "text"}


def test_doctests_of_the_formats():
    assert doctest.testmod(report).failed == 0
    assert report.duration(59.6) == "1 min 0 s"
    assert report.moment("yesterday") == "yesterday"
    assert html.escape(report.clip("<b>")) == "&lt;b&gt;"


def test_templates_are_part_of_the_package():
    assert Path(report.__file__).parent in report.TEMPLATES.parents
    assert {file for *_, file in report.SECTIONS} <= {p.stem for p in report.TEMPLATES.glob("*.html")}
