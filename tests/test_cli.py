"""The command line: every verb, and messages instead of tracebacks."""

import json
import math
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hardwon import artifacts, cli
from hardwon.commands import search
from hardwon.items import Item
from hardwon.progress import program

VERBS = ("demo", "run", "train", "mine", "evaluate", "compare", "index", "search", "serve")
VERBS += ("inspect", "export", "assets", "doctor", "work")
RECIPE = """
import os
import signal
from dataclasses import dataclass
from typing import ClassVar
from hardwon.stages import Stage

@dataclass(frozen=True)
class Note:
    out: str
    text: str = "hello"
    verb: str = "train"
    kind: ClassVar[str] = "note"
    def reads(self): return ()
    def make(self, workspace, draft):
        (draft.path / "note.txt").write_text(self.text)
        if self.text == "stop":
            raise KeyboardInterrupt
        if self.text == "end":
            os.kill(os.getpid(), signal.SIGTERM)
        return self.text

def recipe(): return Note("a"), Note("b", "bye"), Note("c", verb="mine")
def twice(): return Note("a"), Note("a", "bye")
"""


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs `hardwon ARGS` as its entry point does; returns exit code, standard output and standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["hardwon", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "mine.py").write_text(RECIPE)
    return tmp_path / "mine.py"


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_command(verb):
    told = CliRunner().invoke(cli.app, [verb, "--help"], terminal_width=200)
    assert told.exit_code == 0
    assert "Usage" in told.output
    assert len(told.output.splitlines()) > 5


def test_the_commands_are_these():
    assert sorted(command.callback.__name__ for command in cli.app.registered_commands) == sorted(VERBS)
    told = CliRunner().invoke(cli.app, [])
    assert "hardwon demo" in told.output  # without a command: where to start


def test_help_is_quick_and_a_process_of_its_own():
    code = (
        "import sys; sys.argv = ['hardwon', '--help']\n"
        "import hardwon.cli\n"
        "try: hardwon.cli.main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = [m for m in ('torch', 'transformers', 'faiss', 'numpy', 'pyarrow') if m in sys.modules]\n"
        "print('HEAVY', *heavy)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1].split() == ["HEAVY"]
    assert "Usage" in done.stdout


def test_a_message_and_no_traceback_in_a_real_process(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "hardwon.cli", "run", str(tmp_path / "none.py"), "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert re.fullmatch(r"error: there is no recipe '.*none\.py'\.\n", done.stderr)
    assert done.stdout == ""
    assert not (tmp_path / "out").exists()


def test_a_recipe_is_run_and_the_second_time_done_before(call, recipe, tmp_path):
    code, out, err = call("run", recipe, "--out", tmp_path / "out")
    assert code == 0
    assert "3 stages" in out
    assert (tmp_path / "out/b/note.txt").read_text() == "bye"
    assert "done before" not in err
    code, _, err = call("run", recipe, "--out", tmp_path / "out", "--set", "b.text=changed")
    assert code == 0
    assert err.count("done before") == 2
    assert (tmp_path / "out/b/note.txt").read_text() == "changed"


def test_sigterm_is_no_failure_and_the_command_to_go_on_is_printed(call, recipe, tmp_path):
    arguments = ("train", recipe, "--out", tmp_path / "out", "--set", "b.text=end")
    before = signal.getsignal(signal.SIGTERM)
    code, _, err = call(*arguments)
    assert code == 0
    assert err.endswith(f"stopped by SIGTERM. To go on:\n  {program()} {' '.join(map(str, arguments))} --resume\n")
    assert signal.getsignal(signal.SIGTERM) is before
    assert call(*arguments, "--resume")[0] == 0  # which was begun before, and ends once more


def test_to_resume_what_was_not_begun(call, recipe, tmp_path):
    arguments = ("train", recipe, "--out", tmp_path / "out", "--resume")
    code, _, err = call(*arguments)
    assert code == 1
    assert "nothing to resume in" in err
    assert "there is no unfinished a. Without --resume it is begun anew" in err
    assert not (tmp_path / "out").exists()
    call(*arguments[:-1], "--set", "b.text=end")
    code, _, err = call(*arguments)
    assert code == 1
    assert "b was begun from another recipe, model or data" in err
    call(*arguments[:-1])
    assert call(*arguments)[0] == 0  # all is done


def test_verbs_run_their_stages_only(call, recipe, tmp_path):
    assert call("mine", recipe, "--out", tmp_path / "out")[0] == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["c"]
    assert call("train", recipe, "--out", tmp_path / "out", "--stage", "b")[0] == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["b", "c"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "--stage", "bb"), "unknown stage 'bb': did you mean 'b'? Valid: a, b"),
        (("train", "--stage", "c"), "c is a stage to mine, not to train; `hardwon run` runs stages of every kind"),
        (("evaluate",), "has no stage to evaluate"),
        (("index",), "has no stage to index"),
        (("run", "--set", "a.txt=5"), "--set a.txt=5: nothing has a field 'txt': did you mean 'text'?"),
        (("run", "--set", "a.text"), "--set takes stage.field=value, got 'a.text'"),
    ],
)
def test_mistakes_are_one_message(call, recipe, tmp_path, arguments, words):
    verb, *rest = arguments
    code, out, err = call(verb, recipe, "--out", tmp_path / "out", *rest)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert words in err
    assert "Traceback" not in err


def test_two_stages_of_one_folder_are_refused(call, recipe, tmp_path):
    code, _, err = call("run", f"{recipe}:twice", "--out", tmp_path / "out")
    assert (code, err) == (1, "error: two stages write to a\n")


def test_ctrl_c_says_how_to_go_on(call, recipe, tmp_path):
    code, _, err = call("run", recipe, "--out", tmp_path / "out", "--set", "b.text=stop")
    assert code == 130
    assert err.endswith("stopped; run the same command again to go on from here\n")
    assert "Traceback" not in err
    assert artifacts.load(tmp_path / "out" / "a").kind == "note"
    with pytest.raises(artifacts.ArtifactError, match="unfinished"):
        artifacts.load(tmp_path / "out" / "b")


def test_a_usage_error_is_not_called_an_interruption(call, tmp_path):
    code, _, err = call("run")
    assert code == 2
    assert "stopped" not in err
    code, _, err = call("search", tmp_path)
    assert code == 2
    assert "give words, --image, or both" in err


def test_search_where_there_is_no_index_or_picture(call, tmp_path):
    code, _, err = call("search", tmp_path, "words")
    assert code == 1
    assert "holds no index: make one with `hardwon index`" in err
    code, _, err = call("search", tmp_path, "--image", tmp_path / "none.png")
    assert code == 1
    assert "none.png" in err
    assert call("search", tmp_path, "words", "-k", "0")[0] == 2


class Letters:
    """An encoder of texts: counts of letters."""

    fingerprint, dim = "letters", 26

    def encode(self, items, *, progress=""):
        import numpy as np

        made = np.array([[1e-3 + item.text.count(chr(97 + n)) for n in range(26)] for item in items], dtype=np.float32)
        return made / np.linalg.norm(made, axis=1, keepdims=True)


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder as BuildIndex leaves it, with a model that needs no weights."""
    from hardwon.items import Item
    from hardwon.models import Embedder
    from hardwon.search import Index

    asked = []
    monkeypatch.setattr(Embedder, "load", lambda path, device=None: asked.append(path) or Letters())
    texts = ["a red kite", "a [/bold] bracket", "zzz"]
    Index.build(Letters(), [Item(text=text) for text in texts], progress="").save(tmp_path / "run/index/index")
    (tmp_path / "run/index/model.json").write_text(json.dumps({"model": "../round2/model"}))
    return tmp_path / "run" / "index", asked


def test_search_prints_a_table(call, index, tmp_path):
    folder, asked = index
    code, out, _ = call("search", folder, "red kite", "-k", "2")
    assert code == 0
    assert "3 items searched" in out
    assert "a red kite" in out
    assert "a [/bold] bracket" in out  # text is text, not markup
    assert "zzz" not in out
    assert asked == [(tmp_path / "run/round2/model").resolve()]


def test_search_prints_json_lines(call, index):
    folder, _ = index
    code, out, err = call("search", folder, "zz", "--json", "-k", "1")
    assert (code, err) == (0, "")
    (hit,) = [json.loads(line) for line in out.splitlines()]
    assert hit.pop("score") > 0.99
    assert len(hit.pop("id")) == 32
    assert hit == {"rank": 1, "text": "zzz", "place": "item 2", "source": "texts"}


def test_inspect_shows_what_an_artifact_is(call, recipe, tmp_path):
    call("run", recipe, "--out", tmp_path / "out", "--set", "a.text=[/bold] move")
    code, out, _ = call("inspect", tmp_path / "out" / "a")
    assert code == 0
    assert "note, whole" in " ".join(out.split())
    assert "[/bold] move" in out
    assert artifacts.load(tmp_path / "out" / "a").fingerprint in out
    assert "versions" in out


def test_inspect_of_an_index_says_what_smaller_vectors_would_find(call, index):
    folder, _ = index
    code, out, _ = call("inspect", folder / "index")
    assert code == 0
    rows = [line.split("│")[1:5] for line in out.splitlines() if "float32 " in line or "int8 " in line]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["float32", "1.000", "[1.000, 1.000]", "104"],
        ["int8", "1.000", "[1.000, 1.000]", "26"],
    ]


def test_inspect_of_what_is_damaged_or_none(call, recipe, tmp_path):
    call("run", recipe, "--out", tmp_path / "out")
    (tmp_path / "out/a/note.txt").write_text("changed")
    code, out, err = call("inspect", tmp_path / "out" / "a")
    assert (code, out) == (1, "")
    assert "note.txt has changed since it was written" in err
    code, _, err = call("inspect", tmp_path / "gone")
    assert (code, err) == (1, f"error: {tmp_path / 'gone'} does not exist: run the stage that makes it (again)\n")


def test_demo_runs_the_recipe_of_the_source_tree(call, monkeypatch):
    calls = []
    monkeypatch.setattr(cli, "run", lambda *arguments: calls.append(arguments))
    assert call("demo")[0] == call("demo", "--quick", "--out", "elsewhere")[0] == 0
    (full, place, *_), (quick, elsewhere, *_) = calls
    assert full.endswith("recipes/demo.py:recipe")
    assert quick.endswith("recipes/demo.py:quick")
    assert (str(place), str(elsewhere)) == ("runs/demo", "elsewhere")


def test_assets_are_listed_with_their_licences(call, monkeypatch, tmp_path):
    from hardwon.data import assets

    monkeypatch.setattr(assets, "fetch", lambda names, say: {name: tmp_path / name for name in names})
    code, out, _ = call("assets")
    assert code == 0
    for name, asset in assets.ASSETS.items():
        assert (name in out) == asset.demo  # what only tests use is not the user's to fetch
    assert "Apache-2.0" in out


def test_what_a_row_of_results_says():
    red, blue = Path("red.png"), Path("blue.png")
    assert search._what(Item(text="a kite", images=(red, blue))) == "a kite red.png blue.png"
    assert search._what(Item(video=(blue, red, red)), "films/a.mp4") == "blue.png (3 frames)"
    assert search._what(Item(images=(red,)), "papers/a.pdf#page=2") == "papers/a.pdf#page=2"
    assert search._what(Item(text="words"), "notes/a.txt#1") == "words  notes/a.txt#1"


def test_index_takes_a_model_and_a_path_or_a_recipe(call, index, tmp_path, recipe):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("a red kite over the sea")
    (tmp_path / "texts/b.txt").write_text("zzz")
    out = tmp_path / "idx"
    code, told, _ = call("index", "some/model", tmp_path / "texts", "--out", out)
    assert code == 0
    assert told.startswith("2 added, 0 updated, 0 unchanged, 0 removed, 0 failed; 2 rows, 2 encoded")
    code, told, _ = call("index", "some/model", tmp_path / "texts", "--out", out)
    assert told.startswith("0 added, 0 updated, 2 unchanged")
    code, told, err = call("search", out, "red kite", "--json", "-k", "1")
    assert (code, err, json.loads(told)["place"]) == (0, "", "texts/a.txt#1")
    code, told, _ = call("search", out, "zz", "--thumbnails", "-k", "1")
    assert code == 0 and "zzz" in told
    code, told, _ = call("inspect", out)
    assert code == 0
    assert "recall@2 of its searches: 1.0000" in told
    for arguments, message in (
        (("some/model",), "name what to index after the model"),
        (("some/model", tmp_path / "texts"), "say where the index goes"),
        (("some/model", tmp_path / "texts", "--out", out, "--stage", "x"), "belong to a recipe"),
        ((recipe, tmp_path / "texts", "--out", out), "names what it indexes itself"),
        ((recipe,), "a recipe needs --out"),
    ):
        code, _, err = call("index", *arguments)
        assert code == 2
        assert message in " ".join(err.replace("│", " ").split())
    code, _, err = call("index", "some/model", tmp_path / "text", "--out", out)
    assert code == 1 and "did you mean 'texts'" in err
    assert call("search", out, "x", "--json", "--thumbnails")[0] == 2


def test_the_doctor_prints_a_table(call, tiny_text, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    code, out, err = call("doctor", tiny_text, "--device", "cpu")
    assert code == 0
    assert "examining: 12/12 steps" in err
    words = " ".join(out.split())
    assert re.search(r"by SentenceTransformer\(path\) 10 \S+ 1e-05 ok [\w ]+", words)
    assert re.search(r"reads text; up to 64 tokens, padding right vectors 32 wide, compared by cosine prompts none", words)
    assert "note It reads no pictures" in words
    assert re.search(r"all 1\d checks passed", words)
    assert max(len(line) for line in out.splitlines()) <= 100


@pytest.fixture
def ill(monkeypatch):
    """A model that the doctor finds something wrong with, and what the doctor was asked."""
    from hardwon.models import doctor
    from hardwon.models.examination import Check, Examination
    from hardwon.models.facts import Facts

    facts = Facts("BertModel", ("text",), False, 32, 64, "right", "mean", "cosine", {"query": "find: "}, "query", 9, 5, 36,
                  ("float32",), "", "cpu", 0, 0, 5.0, 0.0, {"torch": "2"})  # fmt: skip
    rows = (
        Check("every probe is read", 3, 1.0, "English", 0.0, "ValueError: [/bold] is no word"),
        Check("in batches", 2, 0.25, "German", 1e-5),
        Check("as encode() batches them", 2, math.inf, limit=1e-5),
        Check("saved: by hardwon", 2, 0.0, limit=1e-5),
        Check("computed in bfloat16", 2, 0.5, "German"),
    )
    asked = []
    made = Examination("[model]", rows, facts, ("[/red] is a word",))
    monkeypatch.setattr(doctor, "examine", lambda *given, **more: asked.append((given, more)) or made)
    return asked


def test_the_doctor_says_what_to_do_and_fails(call, ill):
    code, out, _ = call("doctor", "some/model", "--device", "cpu", "--tolerance", "1e-3")
    assert code == 1
    assert ill == [(("some/model",), {"device": "cpu", "tolerance": 1e-3, "progress": "examining"})]
    words = " ".join(out.split())
    for part in (
        "[model]", "9, 4 of them frozen", "query 'find: '; query unless told otherwise", "note [/red] is a word",
        "in batches 2 2.5e-01 1e-05 FAILED German", "saved: by hardwon 2 0 1e-05 ok", "bfloat16 2 5.0e-01 - - German",
        "every probe is read (ValueError: [/bold] is no word): Processor and weights do not fit",
        "in batches; as encode() batches them: A vector depends on what shares its batch",  # said once
        "3 of 4 checks failed Mend what failed first",
    ):  # fmt: skip
        assert part in words


def test_the_doctor_prints_json(call, ill):
    code, out, _ = call("doctor", "some/model", "--json")
    assert code == 1
    found = json.loads(out)
    assert found["passed"] is False
    assert found["facts"]["dimension"] == 32
    assert [row["largest"] for row in found["rows"]] == [1.0, 0.25, None, 0.0, 0.5]
    assert {"name", "probes", "largest", "worst", "limit", "remark", "passed"} == set(found["rows"][0])


def test_the_doctor_of_no_model(call, tmp_path):
    code, out, err = call("doctor", tmp_path)
    assert (code, out) == (1, "")
    assert "holds no model: it has neither modules.json nor config.json" in err
