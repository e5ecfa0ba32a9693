"""Typing mistakes in settings are found, with the nearest name, and before anything heavy is imported."""

import random
import string
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
from trials import trials

from hardwon.commands.fields import check_fields
from hardwon.errors import RecipeError
from hardwon.stages.recipes import changed, load

RECIPE = Path(__file__).parents[2] / "recipes" / "demo.py"


def places(owner, before):
    """Paths of all fields of a stage."""
    for f in fields(owner):
        value = getattr(owner, f.name)
        yield f"{before}.{f.name}"
        if is_dataclass(value):
            yield from places(value, f"{before}.{f.name}")


def mistyped(word, rng):
    """The word with a letter left out, doubled, swapped or replaced."""
    n = rng.randrange(len(word))
    kind = rng.randrange(4)
    if kind == 0 and len(word) > 2:
        return word[:n] + word[n + 1 :]
    if kind == 1:
        return word[:n] + word[n] + word[n:]
    if kind == 2 and n + 1 < len(word) and word[n] != word[n + 1]:
        return word[:n] + word[n + 1] + word[n] + word[n + 2 :]
    return word[:n] + rng.choice(string.ascii_lowercase.replace(word[n], "")) + word[n + 1 :]


@pytest.fixture(scope="module")
def stages():
    return load(str(RECIPE))


def test_a_mistyped_field_is_named_with_the_nearest(stages):
    rng, early, count = random.Random(0), 0, trials(10)
    every = [place for stage in stages for place in places(stage, stage.out)]
    for _ in range(count):
        path = rng.choice(every).split(".")
        n = rng.randrange(1, len(path))
        right, path[n] = path[n], mistyped(path[n], rng)
        setting = f"{'.'.join(path)}=1"
        try:
            check_fields(str(RECIPE), [setting])
        except RecipeError as error:
            early += 1
            assert path[n] in str(error)
            continue
        with pytest.raises(
            RecipeError, match=rf"unknown field '{path[n]}'.*({right}|did you mean)"
        ):  # the word of another stage
            changed(stages, [setting])
    assert early >= 0.9 * count
    for place in every:
        check_fields(str(RECIPE), [f"{place}=1"])


def test_before_torch_is_there():
    code = (
        "import sys\n"
        "import hardwon.cli\n"
        f"sys.argv = ['hardwon', 'train', {str(RECIPE)!r}, '--out', 'x', '--set', 'round1.settings.batch_sice=1']\n"
        "try: hardwon.cli.main()\n"
        "except SystemExit as end: assert end.code == 1, end.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "nothing has a field 'batch_sice': did you mean 'batch_size'?" in done.stderr


def test_recipes_with_stages_of_their_own_are_left_to_themselves(tmp_path):
    for text in ("import mine\n", "from .mine import x\n", "import (\n"):
        (tmp_path / "r.py").write_text(text)
        check_fields(str(tmp_path / "r.py"), ["a.unheard_of=1"])
    (tmp_path / "r.py").write_text("class Note:\n    unheard_of: int = 1\n")
    check_fields(str(tmp_path / "r.py"), ["a.unheard_of=1"])
    with pytest.raises(RecipeError, match="nothing has a field 'unheard_off': did you mean 'unheard_of'"):
        check_fields(str(tmp_path / "r.py"), ["a.unheard_off=1"])
    for wrong in ("a.b", "a=1", "=1", ".b=1"):
        with pytest.raises(RecipeError, match=r"takes stage\.field=value"):
            check_fields(str(tmp_path / "r.py"), [wrong])
