"""Typing mistakes in `--set`, found before anything heavy is imported: which fields there are is read from the source."""

import ast
import difflib
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from hardwon.errors import RecipeError

FIELD = re.compile(r"^    (\w+): ", re.MULTILINE)  # of a class; a variable of a function too, which does no harm


def check_fields(recipe: str, settings: Sequence[str]) -> None:
    """Refuse names of fields that neither hardwon nor the recipe knows at all.

    Whether a field belongs to the stage that it is set of is seen later, when the recipe has been run. Nothing is said of
    recipes that import anything else than hardwon and the standard library: their stages may have fields of their own.

    Raises:
        RecipeError: an unknown field, with the nearest one, or no "=".
    """
    path = Path(recipe.partition(":")[0])
    if not settings or not path.is_file():
        return
    source = path.read_text(encoding="utf-8", errors="replace")
    if not set(_imported(source)) <= {"hardwon", *sys.stdlib_module_names}:
        return
    files = sorted(Path(__file__).parents[1].rglob("*.py"))
    names = {name for text in (source, *(file.read_text(encoding="utf-8") for file in files)) for name in FIELD.findall(text)}
    for setting in settings:
        told, equals, _ = setting.partition("=")
        stage, *parts = told.split(".")
        if not equals or not parts or not stage:
            raise RecipeError(f"--set takes stage.field=value, got {setting!r}")
        for part in parts:
            if part not in names:
                near = difflib.get_close_matches(part, names, n=1)
                guess = f": did you mean {near[0]!r}?" if near else ""
                raise RecipeError(f"--set {setting}: nothing has a field {part!r}{guess}")


def _imported(source: str) -> Iterator[str]:
    """First parts of the names of all modules that a file imports; "" if it cannot be read."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        yield ""
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "" if node.level else (node.module or "").split(".")[0]
