from pathlib import Path

from hardwon.items import Item
from hardwon.stages.learn import shown


def test_an_item_in_one_line():
    red, blue = Path("far/away/red.png"), Path("blue.png")
    assert shown(Item("as blue", (red, b"x"), "Change it.")) == "<red.png> <picture> Change it. as blue"
    assert shown(Item(images=(blue,), video=(red, blue, blue))) == "<blue.png> <3 frames from red.png>"
