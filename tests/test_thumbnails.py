"""Pictures of hits in a terminal: which terminals get them, and that nothing else does."""

import fcntl
import json
import os
import pty
import re
import select
import struct
import sys
import termios
import time

import pytest
import tiny

from hardwon import cli

BLOCK = "▀"  # which shows two pixels
# What of a search shows pictures, alone: it loads no model.
SHOWS = """
import sys
from pathlib import Path
from rich.console import Console
from hardwon.commands.search import _shower
console = Console()
shown = _shower(None, console.is_terminal)
print("none" if shown is None else "some")
if shown is not None:
    console.print(shown(Path(sys.argv[1])))
print("done")
"""


@pytest.fixture
def picture(tmp_path):
    (tmp_path / "photos").mkdir()
    tiny.draw("red", "square").save(tmp_path / "photos/kite.png")
    return tmp_path / "photos/kite.png"


@pytest.fixture
def search(picture, tmp_path, monkeypatch, capsys):
    """Runs `hardwon search` over an index of one picture, in what is no terminal; gives what it prints."""
    pytest.importorskip("textual_image")
    from fakes import FakeEncoder
    from textual_image import renderable

    from hardwon.models import Embedder
    from hardwon.stages.indexing import index_path

    monkeypatch.setattr(Embedder, "load", lambda path, device=None: FakeEncoder())
    monkeypatch.setattr(renderable, "Image", renderable.HalfcellImage)
    index_path(FakeEncoder(), "some/model", picture.parent, tmp_path / "idx")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["hardwon", "search", str(tmp_path / "idx"), "kite", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        return capsys.readouterr().out

    return run


@pytest.mark.filterwarnings("ignore:Image.Image.getdata is deprecated")  # textual-image's own
def test_a_hit_is_shown_when_that_is_asked_for_and_else_only_in_a_terminal(search):
    shown = search("--thumbnails")
    assert "picture" in shown and max(line.count(BLOCK) for line in shown.splitlines()) == 24  # as wide as it should be
    for arguments in ((), ("--no-thumbnails",)):
        told = search(*arguments)
        assert "1 items searched" in told and BLOCK not in told and "picture" not in told
    assert json.loads(search("--json"))["place"] == "photos/kite.png"


def test_a_terminal_that_shows_no_pictures_gets_them_only_when_asked(picture, monkeypatch):
    pytest.importorskip("textual_image")
    from textual_image import renderable

    from hardwon.commands.search import _shower

    for kind, some in (("HalfcellImage", False), ("UnicodeImage", False), ("SixelImage", True), ("TGPImage", True)):
        monkeypatch.setattr(renderable, "Image", getattr(renderable, kind))
        assert (_shower(None, True) is not None) == some
        assert _shower(None, False) is None and _shower(False, True) is None
        assert _shower(True, False) is not None


def in_terminal(answers, picture):
    """What a terminal gets that answers so: what it is asked (a pattern) -> what it says."""
    child, terminal = pty.fork()
    if not child:
        os.execv(sys.executable, [sys.executable, "-c", SHOWS, str(picture)])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 800, 480))  # rows, columns, pixels
    got, said, end = "", 0, time.monotonic() + 120
    try:
        while "done" not in got:
            assert time.monotonic() < end, got
            if not select.select([terminal], [], [], 1)[0]:
                continue
            try:
                got += os.read(terminal, 65536).decode(errors="replace")
            except OSError:  # the other side has ended
                break
            for asked, answer in answers:
                for match in re.finditer(asked, got[said:]):
                    os.write(terminal, match.expand(answer).encode())
                    said = len(got)
        return got
    finally:
        os.close(terminal)
        os.waitpid(child, 0)


DEVICE = r"\x1b\[c"
NO_SIXEL = (DEVICE, "\x1b[?62;1;6c")
SIXEL = (DEVICE, "\x1b[?62;4;6c")
KITTY = (r"\x1b_G[^\x1b]*i=(\d+)[^\x1b]*\x1b\\", "\x1b_Gi=\\1;OK\x1b\\\\")


@pytest.mark.parametrize(
    ("answers", "told", "picture_begins"),
    [((SIXEL,), "some", "\x1bP"), ((NO_SIXEL, KITTY), "some", "\x1b_G"), ((NO_SIXEL,), "none", "")],
    ids=["sixel", "kitty", "neither"],
)
def test_a_terminal_is_asked_what_it_can(picture, answers, told, picture_begins):
    pytest.importorskip("textual_image")
    for _ in range(5):  # it waits a tenth of a second for an answer, which a busy machine may not give in time
        got = in_terminal(answers, picture)
        if told in got:
            break
    _, _, after = got.partition(told)
    shown, done, _ = after.partition("done")  # behind it a terminal may echo its answers
    assert done, got
    assert picture_begins in shown
    assert BLOCK not in got and (told == "some" or "\x1bP" not in got)
