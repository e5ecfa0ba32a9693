import io
import sys

import pytest
from rich.console import Console

from hardwon import progress

SHOW_CURSOR = "\x1b[?25h"  # the last that a terminal gets


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves by hand."""

    class Clock:
        now = 100.0

        def __call__(self):
            return self.now

    made = Clock()
    monkeypatch.setattr(progress.time, "monotonic", made)
    return made


def test_a_log_gets_one_line_at_the_end(capsys, clock):
    with progress.bar("mining", 10, "queries") as advance:
        for _ in range(4):
            advance()
        advance(6, note="loss 0.1")
        clock.now += 2
    told = capsys.readouterr()
    assert told.out == ""  # results can be piped
    assert told.err == "mining: 10/10 queries in 2.0 s\n"


def test_a_long_work_is_heard_of_now_and_then(capsys, clock):
    with progress.bar("judging", 1000, "pairs") as advance:
        for _ in range(40):
            clock.now += 1
            advance(10, note="calm")
    assert capsys.readouterr().err.splitlines() == [
        "judging: 150/1000 pairs, 10.0/s, 85 s left  calm",
        "judging: 300/1000 pairs, 10.0/s, 70 s left  calm",
        "judging: 400/1000 pairs in 40.0 s",
    ]


def test_nothing_done_yet_is_no_division_by_zero(capsys, clock):
    with progress.bar("x", 5) as advance:
        clock.now += 20
        advance(0)
    assert capsys.readouterr().err.splitlines() == ["x: 0/5 items, 0.0/s, inf s left", "x: 0/5 items in 20.0 s"]


def test_work_that_fails_is_not_called_done(capsys):
    with pytest.raises(ZeroDivisionError), progress.bar("x", 5) as advance:
        advance(2)
        raise ZeroDivisionError
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_with_counts_rate_and_note(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(progress, "console", lambda: Console(file=out, force_terminal=True, width=120))
    with progress.bar("training round1", 3, "steps") as advance:
        advance(note="loss 0.5")
        advance()  # the note stays
        advance()
    shown = out.getvalue()
    assert "training round1" in shown
    assert "3/3" in shown
    assert "steps/s" in shown
    assert "loss 0.5" in shown.replace(SHOW_CURSOR, "").splitlines()[-1]


def test_an_ordinary_terminal_has_room_for_the_bar_and_a_long_note(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(progress, "console", lambda: Console(file=out, force_terminal=True, width=80, color_system=None))
    note = "loss 0.693  1,234.5 items/s  lr 3e-05  12.34 GiB"
    with progress.bar("training round1", 2000, "steps") as advance:
        advance(1300, note=note)
    bar, told = out.getvalue().replace(SHOW_CURSOR, "").splitlines()[-2:]
    assert "training round1" in bar
    assert "1300/2000" in bar
    assert "━━━━" in bar
    assert "…" not in bar + told
    assert told.strip() == note


def test_a_terminal_survives_no_work_and_work_that_fails(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(progress, "console", lambda: Console(file=out, force_terminal=True, width=80))
    with progress.bar("nothing", 0):
        pass
    with pytest.raises(ZeroDivisionError), progress.bar("x", 5) as advance:
        advance()
        raise ZeroDivisionError
    assert "0/0" in out.getvalue()
    assert "1/5" in out.getvalue()


def test_the_console_is_standard_error():
    assert progress.console().stderr


def test_commands_are_what_a_shell_finds(tmp_path, monkeypatch):
    """`make demo` puts the program into .venv, which is on nobody's PATH."""
    place = tmp_path / ".venv" / "bin"
    place.mkdir(parents=True)
    monkeypatch.setattr(sys, "executable", str(place / "python"))
    monkeypatch.setenv("PATH", "")
    assert progress.program() == "hardwon"  # it is not there: run by `python -m`, from the source
    (place / "hardwon").write_text("#!/bin/sh\n")
    (place / "hardwon").chmod(0o755)
    assert progress.program() == str(place / "hardwon")
    monkeypatch.chdir(tmp_path)
    assert progress.program() == ".venv/bin/hardwon"
    monkeypatch.setenv("PATH", str(place))
    assert progress.program() == "hardwon"
