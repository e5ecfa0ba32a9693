import base64
import hashlib
import re

import pytest

from hardwon.items import Item
from hardwon.serve.comparison import Answered, ComparisonPage, Line, Moved, render, write_comparison

LINE = Line("words", 0.25, 0.1, 0.4, 0.0005, "above", 3, 1)
MEAN = Line("mean: all data sets", -0.031, -0.2, 0.1, 0.41, "not distinguishable", 3, 1)


def page(**changes):
    from dataclasses import replace

    won = Answered(4, Item("a <b>kite</b>"), (Item(text="gold 4"),), Item(text="right"), Item(text="wrong"), (1.0, 7.5))
    lost = Answered(9, Item(text="nine"), (Item(text="gold 9"),), None, None, (3.0, 1.0))
    content = ComparisonPage(
        "new <against> old", "new", "old", (("new", "fingerprint 1"),), (MEAN,), (LINE,), (Moved(LINE, (won,), (lost,)),)
    )
    return render(replace(content, **changes))


def test_the_page_shows_every_difference_and_what_both_put_first():
    text = page()
    rows = [re.sub(r"<[^>]+>", " ", row).split() for row in re.findall(r"<tr class=.*?</tr>", text)]
    assert rows[0] == "mean: all data sets −3.1 −20.0 to +10.0 p = 0.41 3 1 not distinguishable".split()
    assert rows[1] == "words +25.0 +10.0 to +40.0 p &lt; 0.001 3 1 above".split()
    words = " ".join(re.sub(r"<[^>]+>", " ", text).split())
    assert "query 4 · won · gold at rank 1 and 7.5 query a &lt;b&gt;kite&lt;/b&gt; gold gold 4 new put first right" in words
    assert "old put first wrong" in words
    assert words.count("not in the report: evaluate again") == 2
    assert "The first 1 of 3 queries won are shown" in words
    assert "<against>" not in text


def test_nothing_can_run_or_be_fetched():
    text = page()
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL).group(1)
    assert f"style-src 'sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}'" in policy
    assert "default-src 'none'" in policy
    assert "<script" not in text
    assert not re.search(r'(?:src|href)="(?!#|data:)', text)
    assert "http" not in text.replace("http-equiv", "")


def test_pictures_are_inside_and_broken_ones_say_so(pictures, tmp_path):
    some = Answered(0, Item(images=(pictures["red square"],)), (Item(images=(tmp_path / "gone.png",)),), None, None, (1.0, 2.0))
    content = ComparisonPage("t", "a", "b", (), (MEAN,), (LINE,), (Moved(LINE, (some,), ()),))
    write_comparison(content, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "background-image:url(data:image/webp;base64," in text
    assert "picture that cannot be read: gone" in text


@pytest.mark.parametrize(("missing", "words"), [("", "No query changed."), ("No queries are shown: why", "shown: why")])
def test_without_queries_it_says_why(missing, words):
    text = page(moved=(), missing=missing)
    assert words in text
    assert "<details" not in text
