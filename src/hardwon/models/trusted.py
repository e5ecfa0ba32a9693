"""What a model's folder may hold, looked at before it is loaded: weights that are numbers only, modules that are known."""

import json
from pathlib import Path
from typing import Any

from hardwon.errors import ModelError

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")
OURS = ("sentence_transformers.", "hardwon.")


def refuse_untrusted(folder: Path) -> None:
    """Raise ModelError for a folder whose modules are classes of others, lie elsewhere, or whose weights are pickles."""
    places = [folder]
    for module in _modules(folder):
        kind, place = module.get("type"), folder / str(module.get("path", ""))
        if not isinstance(kind, str) or not kind.startswith(OURS):
            raise ModelError(
                f"{folder / 'modules.json'} names the module {kind!r}: only those of sentence-transformers are loaded, since "
                "any other is code that somebody else has chosen"
            )
        if not place.resolve().is_relative_to(folder.resolve()):
            raise ModelError(f"{folder / 'modules.json'} leads out of the folder: {module.get('path')!r}")
        places.append(place)
    for place in places:
        pickles = sorted(file.name for file in place.glob("*") if file.suffix in PICKLES and "training_args" not in file.name)
        if pickles and not any(place.glob("*.safetensors")):
            raise ModelError(
                f"{place} has its weights in {pickles[0]}, a pickle, which can run code when it is read: only safetensors are "
                "loaded. Convert it where you trust it: load it there with transformers and save_pretrained it"
            )


def _modules(folder: Path) -> list[dict[str, Any]]:
    file = folder / "modules.json"
    if not file.exists():
        return []
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read ({error}): copy it again from the original model") from error
    if not isinstance(found, list) or not all(isinstance(module, dict) for module in found):
        raise ModelError(f"{file} is not a list of modules: copy it again from the original model")
    return found
