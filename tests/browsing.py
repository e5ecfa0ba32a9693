"""What tests ask of a page in a headless browser: the fixtures that open one stand in serve/conftest.py."""

import re

CONTROLS = (
    "[...document.querySelectorAll('button, select, input:not([type=checkbox]), a, canvas')].filter((c) => c.checkVisibility())"
)
UNNAMED = f"""{CONTROLS}.filter((c) => !(c.getAttribute('aria-label') || c.textContent.trim() || c.labels?.length))
    .map((c) => c.outerHTML)"""
SMALL = f"""{CONTROLS}.map((c) => [c.id, c.getBoundingClientRect()])
    .filter(([, box]) => box.width < 24 || box.height < 24).map(([id]) => id)"""


def told(page, words, place="#status", seconds=90):
    """Waits until the page says these words."""
    says = "([place, words]) => document.querySelector(place).textContent.includes(words)"
    page.wait_for_function(says, arg=[place, words], timeout=1000 * seconds)
    return page.text_content(place)


def ids(page):
    return page.eval_on_selector_all(".hit", "all => all.map(each => each.dataset.id)")


def ask(page, words):
    page.evaluate("document.getElementById('status').textContent = ''")
    page.fill("#words", words)
    page.press("#words", "Enter")
    told(page, "The nearest")


def tones(page):
    """How light the background and the words of a page are, 0 to 765."""
    style = "getComputedStyle(document.body)"
    colours = page.evaluate(f"[{style}.backgroundColor, {style}.color]")
    return [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours]
