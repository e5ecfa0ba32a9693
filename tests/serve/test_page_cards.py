"""What the search page calls things, texts longer than their cards, and the page of mined negatives on a phone."""

import pytest
import serving
import tiny
from browsing import SMALL, ids, told, tones

from hardwon.data.gather import Reading
from hardwon.items import Candidate, Example, Item
from hardwon.stages.indexing import Wanted, index_path

LONG = "A sentence about kites that fly over the sea. " * 20
CAPTION = "a kite with a caption that is longer than the two lines of a card have room for"
NAMES = {
    "red kite", "with#hash", CAPTION, "guide.pdf, page 1", "guide.pdf, page 2", "clip.mp4, frame 1", "clip.mp4, frame 2",
    "notes.md, passage 1", "notes.md, passage 2", "rows.jsonl, row a", "rows.jsonl, row 2",
}  # fmt: skip
ALOUD = {  # what the map says: a text by its words and its file, then the source unless the file says it
    "red kite, files", "with#hash, files", f"{CAPTION}, captioned.png, files", "guide.pdf, page 1, docs",
    "guide.pdf, page 2, docs", "clip.mp4, frame 1, files", "clip.mp4, frame 2, files", "first, rows.jsonl, row a",
    "second, rows.jsonl, row 2", f"{LONG.strip()}, notes.md, passage 1, docs", "the end, notes.md, passage 2, docs",
}  # fmt: skip


@pytest.fixture(scope="module")
def mixed(folder, model, tmp_path_factory):
    """A server of an index of files of every kind, with mined negatives."""
    home = tmp_path_factory.mktemp("mixed")
    files = home / "files"
    (files / "docs").mkdir(parents=True)
    for name, colour in (("red-kite", "red"), ("with#hash", "blue"), ("captioned", "green")):
        tiny.draw(colour, "triangle").save(files / f"{name}.png")
    (files / "captioned.txt").write_text(CAPTION)
    pages = [tiny.draw(colour, "square") for colour in ("red", "blue")]
    pages[0].save(files / "docs/guide.pdf", save_all=True, append_images=pages[1:])
    tiny.clip(files / "clip.mp4", [tiny.draw(colour, "circle") for colour in ("red", "green", "blue")])
    (files / "docs/notes.md").write_text(f"{LONG}\n\nthe end")
    (files / "rows.jsonl").write_text('{"text": "first", "id": "a"}\n{"text": "second"}\n')
    index_path(model, str(folder / "vlm"), files, home / "idx", Wanted(reading=Reading(passage=len(LONG), frames=2)))
    drawn = tiny.draw_all(home / "drawn")
    pairs = [Example(Item(text=text), (Candidate(Item(images=(path,)), origin="gold"),)) for text, path in drawn.items()]
    more = ("--negatives", str(serving.mined(home, pairs, model)))
    with serving.running(home, tmp_path_factory.mktemp("mixed-log") / "log", *more) as made:
        yield made


def test_names_tell_files_apart(opened, mixed):
    page = opened(f"{mixed.url}/?words=red+square")
    told(page, "The nearest 11 of 11")
    assert sorted(page.eval_on_selector_all(".name", "all => all.map(each => each.textContent)")) == sorted(NAMES)
    said = page.eval_on_selector_all(".hit", "all => all.map(each => each.getAttribute('aria-label'))")
    assert any(", second, rows.jsonl, row 2, score " in f", {text.partition('., ')[2]}" for text in said)
    places = page.eval_on_selector_all(".label", "all => all.map(each => each.title)")
    assert "files/docs/guide.pdf, page 2" in places and "files/with#hash.png" in places


def test_names_on_the_map(opened, mixed):
    page = opened(f"{mixed.url}/#map")
    told(page, "All 11 items", "#map-status", 120)
    page.focus("#canvas")
    said = {""}
    for key in ("ArrowRight", *["ArrowLeft"] * 8, *["ArrowDown", "ArrowRight"] * 8, *["ArrowUp", "ArrowLeft"] * 8):
        page.keyboard.press(key)
        page.wait_for_timeout(60)
        said.add(page.text_content("#point"))
    said.remove("")
    assert len(said) >= 4 and said <= ALOUD


def test_long_texts_can_be_read_by_keyboard(opened, mixed):
    page = opened(f"{mixed.url}/?words=red+square", width=360)
    told(page, "The nearest")
    below = """() => [...document.querySelectorAll(".ranked:has(.words-of)")].map((card) => {
        const [words, rank] = [".words-of", ".rank"].map((each) => card.querySelector(each).getBoundingClientRect());
        return words.top - rank.bottom;
    })"""
    gaps = page.evaluate(below)
    assert len(gaps) == 4 and min(gaps) >= 0  # the rank does not lie on the words
    long = page.locator("li:has(.read:visible)")
    assert sorted(long.locator(".name").all_text_contents()) == [CAPTION, "notes.md, passage 1"]
    assert page.evaluate("document.documentElement.scrollWidth") <= 360 and page.evaluate(SMALL) == []
    place = ids(page).index(long.filter(has_text="notes.md").locator(".hit").get_attribute("data-id"))
    page.focus("#words")
    for key in ("ArrowDown", *["ArrowRight"] * place, "Tab"):
        page.keyboard.press(key)
    focused = "document.activeElement.getAttribute('aria-label')"
    assert page.evaluate(focused) == "Read all of notes.md, passage 1"
    page.keyboard.press("Enter")
    page.wait_for_selector("#reader[open]")
    assert page.text_content("#reader-words") == LONG.strip()
    assert page.text_content("#reader-place") == "files/docs/notes.md, passage 1"
    assert page.evaluate("document.activeElement.id") == "reader-words"  # so that arrows scroll it
    page.keyboard.press("Escape")
    assert page.is_hidden("#reader") and page.evaluate(focused) == "Read all of notes.md, passage 1"
    page.keyboard.press("Enter")
    page.click("#reader-more")
    told(page, "More like this")
    assert page.is_hidden("#reader") and "like=" in page.url


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_mined_negatives_on_a_phone_and_by_keyboard(opened, mixed, scheme):
    page = opened(f"{mixed.url}/inspect", width=360, color_scheme=scheme)
    page.wait_for_selector(".asked")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360 and page.evaluate(SMALL) == []
    light, ink = tones(page)
    assert ink < 300 and light > 600 if scheme == "light" else ink > 500 and light < 150
    beyond = "all => all.filter(each => each.getBoundingClientRect().right > innerWidth).length"
    assert page.locator(".verdict:visible").count() > 20 and page.eval_on_selector_all(".verdict", beyond) == 0
    for _ in range(9):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "sort":
            break
    outline = "getComputedStyle(document.activeElement).outlineStyle + getComputedStyle(document.activeElement).outlineWidth"
    assert page.evaluate(outline) == "solid2px"
    page.keyboard.press("End")  # the last of its choices
    assert page.input_value("#sort") == "row"
    rows = page.eval_on_selector_all(".asked", "all => all.map(each => Number(each.dataset.row))")
    assert rows == sorted(rows) and len(rows) == 20
    page.focus(".wanted[value=kept]")
    page.keyboard.press("Space")
    assert not page.locator("tr.kept:visible").count() and page.locator("tr.kept").count()
