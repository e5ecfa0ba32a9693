"""The code on the pages of docs/ runs, and prints what stands in the comments beneath it."""

import contextlib
import io
import re
from pathlib import Path

import pytest

PAGES = sorted((Path(__file__).parents[1] / "docs").glob("*.md"))


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_there_are_pages_with_code():
    assert any(blocks(page) for page in PAGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_says_is_printed(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a page may write
    names: dict = {}
    for number, block in enumerate(blocks(page)):
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(block, f"{page.name}, block {number}", "exec"), names)
        printed = [line.rstrip() for line in said.getvalue().splitlines()]
        assert printed == [line[2:].rstrip() for line in block.splitlines() if line.startswith("#")], f"block {number}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pictures_of_a_page_are_there(page):
    for target in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).is_file(), target
