from pathlib import Path

import pytest

from hardwon.errors import RecipeError
from hardwon.items import Candidate, Example, Item
from hardwon.stages.learn import of_sources, shown


def test_an_item_in_one_line():
    red, blue = Path("far/away/red.png"), Path("blue.png")
    assert shown(Item("as blue", (red, b"x"), "Change it.")) == "<red.png> <picture> Change it. as blue"
    assert shown(Item(images=(blue,), video=(red, blue, blue))) == "<blue.png> <3 frames from red.png>"


def test_some_sources_only():
    gold = (Candidate(Item("gold"), origin="gold"),)
    examples = [Example(Item(f"q{n}"), gold, source) for n, source in enumerate(["tone", "place", "tone", "name"])]
    assert [e.query.text for e in of_sources(examples, ("tone", "name"))] == ["q0", "q2", "q3"]
    with pytest.raises(RecipeError, match="unknown source 'tones': did you mean 'tone'"):
        of_sources(examples, ("tones",))
