"""Recipes: Python files whose functions, without arguments, return the stages of a run.

`recipes/demo.py` names the function `recipe`; `recipes/demo.py:quick` names another. `--set round1.steps=50` changes a field
of a stage, `--set round1.settings.batch_size=32` one of a value inside it.
"""

import ast
import importlib.util
import inspect
import sys
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from hardwon.errors import HardwonError, RecipeError, unknown
from hardwon.stages.base import Stage


def load(address: str) -> tuple[Stage, ...]:
    """The stages of a recipe.

    Args:
        address: a file, optionally followed by `:function` ("recipe" if left out).

    Raises:
        RecipeError: no such file or function, a function that fails, or one that does not return stages.
    """
    name, _, function = address.partition(":")
    path = Path(name)
    if not path.is_file():
        near = sorted(str(p) for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        hint = f" Recipes there: {', '.join(near)}" if near else ""
        raise RecipeError(f"there is no recipe {name!r}.{hint}")
    spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses with postponed annotations look their module up
    try:
        spec.loader.exec_module(module)
        made_by = getattr(module, function or "recipe", None)
        if not callable(made_by):
            names = [n for n, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == spec.name]
            raise RecipeError(unknown("function of the recipe", function or "recipe", names))
        made: Any = made_by()
    except HardwonError:
        raise
    except Exception as error:  # whatever a person's file can raise
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "  # a recipe's own complaint needs no name
        raise RecipeError(f"the recipe {address} fails: {kind}{error}") from error
    stages = tuple(made) if isinstance(made, (tuple, list)) else (made,)
    for stage in stages:
        if not hasattr(stage, "make") or not hasattr(stage, "out"):
            raise RecipeError(f"{address} must return stages (Train, Mine, ...), but one is a {type(stage).__name__}")
    return stages


def changed(stages: Sequence[Stage], settings: Sequence[str]) -> tuple[Stage, ...]:
    """The stages with fields set from the command line.

    Args:
        stages: of a recipe.
        settings: each "stage.field=value" or "stage.field.field=value"; values are Python literals, else text.

    Raises:
        RecipeError: no such stage or field (the nearest is named), or no "=".
    """
    names = [stage.out for stage in stages]
    made: list[Any] = list(stages)
    for setting in settings:
        path, equals, text = setting.partition("=")
        name, _, rest = path.partition(".")
        if not equals or not rest:
            raise RecipeError(f"--set takes stage.field=value, got {setting!r}")
        if name not in names:
            raise RecipeError(unknown("stage", name, names))
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        place = names.index(name)
        made[place] = _with(made[place], rest.split("."), value, path)
    return tuple(made)


def _with(owner: Any, path: Sequence[str], value: Any, told: str) -> Any:
    names = [f.name for f in fields(owner)] if is_dataclass(owner) else []
    if path[0] not in names:
        raise RecipeError(f"{told}: " + unknown("field", path[0], names))
    old = getattr(owner, path[0])
    new = _with(old, path[1:], value, told) if len(path) > 1 else value
    if len(path) == 1 and old is not None and not _fits(new, old):
        raise RecipeError(
            f"{told} is a {type(old).__name__} ({old!r}), but the value given is a {type(new).__name__} ({new!r})"
        )
    if isinstance(old, float) and isinstance(new, int):
        new = float(new)
    return replace(owner, **{path[0]: new})  # pyright: ignore[reportArgumentType]


def _fits(new: Any, old: Any) -> bool:
    if isinstance(old, bool) or isinstance(new, bool):
        return isinstance(old, bool) and isinstance(new, bool)
    return isinstance(new, type(old)) or (isinstance(old, float) and isinstance(new, int)) or new is None
