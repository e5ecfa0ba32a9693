import dataclasses
from pathlib import Path

import pytest

from hardwon.errors import RecipeError
from hardwon.losses import InfoNCE
from hardwon.mining import Mining
from hardwon.stages import Backbone, Evaluate, Mine, Train
from hardwon.stages.recipes import changed, load
from hardwon.training import Settings

GOOD = """
from __future__ import annotations
from dataclasses import dataclass
from hardwon.stages import Backbone, Evaluate

@dataclass(frozen=True)
class Names:
    first: str

def recipe():
    return Backbone(Names("base").first), Evaluate("eval", model="base/model", benchmark="b")

def single():
    return Backbone("alone")

def listed():
    return [Backbone("one"), Backbone("two")]

number = 5
"""


@pytest.fixture
def write(tmp_path):
    def make(text, name="mine.py"):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return make


def test_functions_of_a_recipe(write):
    file = write(GOOD)
    assert load(file) == (Backbone("base"), Evaluate("eval", model="base/model", benchmark="b"))
    assert load(file + ":recipe") == load(file)
    assert load(file + ":single") == (Backbone("alone"),)
    assert load(file + ":listed") == (Backbone("one"), Backbone("two"))


def test_a_file_that_was_changed_is_read_again(write):
    load(write("from hardwon.stages import Backbone\ndef recipe(): return Backbone('a')"))
    assert load(write("from hardwon.stages import Backbone\ndef recipe(): return Backbone('longer')"))[0].out == "longer"


def test_no_such_file_names_the_recipes_there_are(write, tmp_path):
    write(GOOD)
    with pytest.raises(RecipeError, match=r"there is no recipe '.*mien\.py'\. Recipes there: .*mine\.py"):
        load(str(tmp_path / "mien.py"))
    with pytest.raises(RecipeError, match=r"there is no recipe '/no/such/folder/x\.py'\.$"):
        load("/no/such/folder/x.py")
    with pytest.raises(RecipeError, match="there is no recipe"):
        load(str(tmp_path))


@pytest.mark.parametrize("name", ["singel", "number", "Optional"])
def test_no_such_function_names_the_nearest(write, name):
    with pytest.raises(RecipeError) as error:
        load(write(GOOD) + f":{name}")
    assert f"unknown function of the recipe '{name}':" in str(error.value)
    assert ("did you mean 'single'?" in str(error.value)) == (name == "singel")
    assert str(error.value).endswith("Valid: listed, recipe, single")  # neither classes nor what was imported


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def recipe(:", r"fails: SyntaxError: .*line 1"),
        ("import no_such_module", "fails: ModuleNotFoundError: No module named 'no_such_module'"),
        ("from hardwon.losses import InfoNC\ndef recipe(): ...", "fails: ImportError: cannot import name 'InfoNC'"),
        ("def recipe(): return undefined", "fails: NameError: name 'undefined' is not defined"),
        ("from hardwon import losses\ndef recipe(): return losses.Nothing()", "fails: AttributeError: .*Nothing"),
        ("def recipe(): return 1 / 0", "fails: ZeroDivisionError"),
        ("def recipe(a): return a", r"fails: TypeError: recipe\(\) missing 1 required positional argument"),
        ("def recipe(): raise ValueError('there is no pairs.jsonl')", r"mine\.py fails: there is no pairs\.jsonl$"),
    ],
)
def test_a_recipe_that_fails_is_one_message(write, text, words):
    with pytest.raises(RecipeError, match=words):
        load(write(text))


def test_an_error_of_ours_is_passed_on(write):
    with pytest.raises(RecipeError, match=r"^depth and keep must be at least 1"):
        load(write("from hardwon.mining import Mining\ndef recipe(): return Mining(depth=0)"))


def test_what_are_no_stages(write):
    with pytest.raises(RecipeError, match=r"must return stages \(Train, Mine, \.\.\.\), but one is a int"):
        load(write("def recipe(): return (5,)"))
    with pytest.raises(RecipeError, match="but one is a NoneType"):
        load(write("def recipe(): pass"))


STAGES = (
    Train("round1", model="base/model", data="d.jsonl", loss=InfoNCE(), steps=100, settings=Settings(batch_size=64)),
    Mine("hard", model="round1/model", data="d.jsonl", settings=Mining(queries=400)),
)


def test_fields_can_be_changed_at_any_depth():
    train, mine = changed(
        STAGES,
        ["round1.steps=50", "round1.settings.batch_size=32", "round1.settings.memory.step_tokens=9", "hard.settings.keep=3"]
        if any(f.name == "step_tokens" for f in dataclasses.fields(Settings().memory))
        else ["round1.steps=50", "round1.settings.batch_size=32", "hard.settings.keep=3"],
    )
    assert (train.steps, train.settings.batch_size, mine.settings.keep) == (50, 32, 3)
    assert dataclasses.replace(train, steps=100, settings=STAGES[0].settings) == STAGES[0]
    assert changed(STAGES, []) == STAGES


def test_values_are_literals_or_text():
    train, mine = changed(
        STAGES,
        [
            "round1.settings.learning_rate=1",  # a whole number where a float is meant
            "round1.data=other.jsonl",
            "round1.settings.freeze=('vision',)",
            "round1.settings.dropout=True",
            "round1.layers=3",  # was None
            "hard.settings.queries=None",
            "hard.settings.ceiling=0.9",
            "hard.model=a=b",
        ],
    )
    assert repr(train.settings.learning_rate) == "1.0"  # the same recipe as with 1.0
    assert train.data == "other.jsonl"
    assert (train.settings.freeze, train.settings.dropout, train.layers) == (("vision",), True, 3)
    assert (mine.settings.queries, mine.settings.ceiling, mine.model) == (None, 0.9, "a=b")
    assert changed(STAGES, ["round1.steps=5", "round1.steps=6"])[0].steps == 6


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("round1.steps", r"--set takes stage\.field=value, got 'round1\.steps'"),
        ("round1=5", "--set takes"),
        ("=5", "--set takes"),
        ("roun1.steps=5", "unknown stage 'roun1': did you mean 'round1'"),
        ("round1.step=5", r"round1\.step: unknown field 'step': did you mean 'steps'"),
        ("round1.settings.bath_size=5", r"round1\.settings\.bath_size: unknown field 'bath_size': did you mean 'batch_size'"),
        ("round1.steps.x=5", r"round1\.steps\.x: unknown field 'x'"),
        ("round1.steps=many", r"round1\.steps is a int \(100\), but the value given is a str \('many'\)"),
        ("round1.steps=1.5", "is a float"),
        ("round1.steps=True", "is a bool"),
        ("round1.settings.dropout=1", "is a bool .False., but the value given is a int"),
        ("round1.settings.dropout=None", "NoneType"),
        ("round1.settings.learning_rate=fast", "is a str"),
        ("round1.settings=fast", r"round1\.settings is a Settings"),
        ("round1.data=5", "is a str"),
        ("hard.settings.depth=0", "depth and keep must be at least 1"),
        ("round1.settings.batch_size=1", "batch_size must be at least 2"),
    ],
)
def test_what_cannot_be_changed_so(setting, words):
    with pytest.raises(RecipeError, match=words):
        changed(STAGES, [setting])


def test_stages_of_one_name_are_not_lost():
    """So that the workspace can refuse them."""
    assert len(changed((Backbone("a"), Backbone("a")), [])) == 2


RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize("function", ["recipe", "quick"])
def test_every_path_that_the_demo_reads_is_written_by_an_earlier_stage(function):
    stages = load(f"{RECIPES / 'demo.py'}:{function}")
    outs = [stage.out for stage in stages]
    assert len(set(outs)) == len(outs)
    for number, stage in enumerate(stages):
        earlier = set(outs[:number])
        named = [*stage.reads(), getattr(stage, "root", "")]
        if stage.kind == "report":
            named += [model for _, model in stage.models] + [stage.benchmark] + [query.picture for query in stage.queries]
            kinds = {s.out: s.kind for s in stages}
            assert {kinds[name] for name in stage.evaluations} == {"evaluation"}
            assert {kinds[name] for name in stage.trainings} == {"model"}
            assert (kinds[stage.negatives], kinds[stage.index]) == ("negatives", "index")
        for name in filter(None, named):
            assert name.split("/")[0] in earlier, f"{stage.out} reads {name}"
        if stage.kind == "model" and stage.verb == "train":
            assert stage.model.endswith("/model")
    verbs = [stage.verb for stage in stages]
    assert {"prepare", "assemble", "train", "mine", "evaluate", "index", "report"} == set(verbs)


def test_the_reduced_demo_differs_in_size_only():
    full, quick = (load(f"{RECIPES / 'demo.py'}:{name}") for name in ("recipe", "quick"))
    assert [(type(s), s.out, s.reads()) for s in full] == [(type(s), s.out, s.reads()) for s in quick]
    assert sum(s.steps for s in quick if s.verb == "train") < sum(s.steps for s in full if s.verb == "train") / 3


def test_files_that_the_demo_names_are_files_that_its_data_write():
    written = {"train.jsonl", "val.jsonl", "mmeb-small", "mmeb-val", "pictures"}
    for stage in load(str(RECIPES / "demo.py")):
        for name in stage.reads():
            if name.startswith("data/"):
                assert name.split("/")[1] in written, name


@pytest.mark.parametrize("function", ["recipe", "distil"])
def test_the_reranker_goes_on_where_the_demo_ends(function):
    demo, more = load(str(RECIPES / "demo.py")), load(f"{RECIPES / 'reranker.py'}:{function}")
    outs = [stage.out for stage in demo]
    for stage in more:
        for name in filter(None, [*stage.reads(), getattr(stage, "root", "")]):
            assert name.split("/")[0] in outs, f"{stage.out} reads {name}"
        assert stage.out not in outs
        outs.append(stage.out)
    trained, evaluated = more[1], more[2]
    assert trained.sources == evaluated.asked  # the gate knows of what was trained, and leaves the rest alone
    assert evaluated.model == next(s.model for s in demo if s.out == "eval-reranked")  # the embedder of the demo's own line


def test_the_recipe_to_copy_loads_where_its_data_lie(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=r"own\.py fails: there is no pairs\.jsonl in "):
        load(str(RECIPES / "own.py"))
    (tmp_path / "pairs.jsonl").write_text("")
    (tmp_path / "pictures").mkdir()
    stages = load(str(RECIPES / "own.py"))
    outs = [stage.out for stage in stages]
    for number, stage in enumerate(stages):
        for name in stage.reads():
            assert name in ("pairs.jsonl", "pictures") or name.split("/")[0] in outs[:number], f"{stage.out} reads {name}"
