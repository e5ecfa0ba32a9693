"""Recipes: Python files whose functions, without arguments, return the stages of a run.

`recipes/demo.py` names the function `recipe`; `recipes/demo.py:quick` names another. `--set round1.steps=50` changes a field
of a stage, `--set round1.settings.batch_size=32` one of a value inside it.
"""

import ast
import importlib.util
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from hardwon.errors import RecipeError, unknown
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
    try:
        spec.loader.exec_module(module)
        made = getattr(module, function or "recipe")()
    except AttributeError:
        names = [n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == spec.name]
        raise RecipeError(unknown("function of the recipe", function or "recipe", names)) from None
    except (SyntaxError, TypeError, ValueError) as error:
        raise RecipeError(f"the recipe {address} fails: {error}") from error
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
    by_name: dict[str, Any] = {stage.out: stage for stage in stages}
    for setting in settings:
        path, equals, text = setting.partition("=")
        name, _, rest = path.partition(".")
        if not equals or not rest:
            raise RecipeError(f"--set takes stage.field=value, got {setting!r}")
        if name not in by_name:
            raise RecipeError(unknown("stage", name, by_name))
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        by_name[name] = _with(by_name[name], rest.split("."), value, path)
    return tuple(by_name.values())


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
    return replace(owner, **{path[0]: new})  # pyright: ignore[reportArgumentType]


def _fits(new: Any, old: Any) -> bool:
    if isinstance(old, bool) or isinstance(new, bool):
        return isinstance(new, type(old))
    return isinstance(new, type(old)) or (isinstance(old, float) and isinstance(new, int)) or new is None
