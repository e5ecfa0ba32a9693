"""Saving a model with a card that says what it is, how it was made and how to use it."""

import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hardwon.models.lora import has_adapter

PACKAGES = ("hardwon", "sentence-transformers", "transformers", "torch", "peft")


def save(model: Any, path: Path, about: Mapping[str, Any]) -> None:
    """Write a `SentenceTransformer` or `CrossEncoder`, `hardwon.json` with what is known about it, and its card."""
    write(model, path)
    (path / "hardwon.json").write_text(json.dumps(dict(about), indent=1, sort_keys=True), encoding="utf-8")
    (path / "README.md").write_text(card(model, path.name, about), encoding="utf-8")


def write(model: Any, path: Path) -> None:
    """Write what sentence-transformers loads, whatever was encoded last.

    A tokenizer keeps how it cut and filled up its last text and would save that, and a multimodal processor then cuts every
    text so, whatever the model's maximum length says.
    """
    fast = getattr(getattr(model[0], "tokenizer", None), "backend_tokenizer", None)
    if fast is not None:
        fast.no_truncation()
        fast.no_padding()
    model.save(str(path), create_model_card=False)


def card(model: Any, name: str, about: Mapping[str, Any]) -> str:
    """The text of a model card, in Markdown with the header that hubs read.

    Args:
        model: a `SentenceTransformer` or `CrossEncoder`.
        name: title.
        about: what is known: "loss", "data" (name -> number of pairs), "metrics" (name -> number), "recipe"; others are listed
            as they are.
    """
    embeds = type(model).__name__ == "SentenceTransformer"
    task = "sentence-similarity" if embeds else "text-ranking"
    kind = "embedding model" if embeds else "reranker"
    tags = ["sentence-transformers", "feature-extraction" if embeds else "reranker", "hardwon"]
    header = ["---", "library_name: sentence-transformers", f"pipeline_tag: {task}", "tags:", *(f"- {t}" for t in tags), "---"]
    parts = [
        "\n".join(header),
        f"# {name}",
        f"A {'multimodal ' if _sees(model) else ''}{kind}, trained with hardwon.",
        _rows(_properties(model)),
        "## Use",
        _use(embeds, _sees(model)),
        *_training(about),
        "## Versions",
        _rows({"Python": platform.python_version()} | {p: v for p in PACKAGES if (v := _version(p))}),
    ]
    return "\n\n".join(parts) + "\n"


def _sees(model: Any) -> bool:
    return "image" in model.modalities


def _properties(model: Any) -> dict[str, Any]:
    weights = sum(p.numel() for p in model.parameters())
    found: dict[str, Any] = {"reads": ", ".join(m for m in model.modalities if isinstance(m, str) and m != "message")}
    if type(model).__name__ == "SentenceTransformer":
        found |= {"vector": f"{model.get_embedding_dimension()} numbers of length 1"}
        found |= {"pooling": pooling} if (pooling := pooling_of(model)) else {}
    found |= {"longest input": f"{model.max_seq_length} tokens", "weights": f"{weights:,}"}
    if has_adapter(model):
        found["adapter of"] = model[0].model.config.name_or_path
    prompts = {key: text for key, text in model.prompts.items() if text}
    if prompts:
        found["instructions"] = "; ".join(f"{key}: {text.strip()!r}" for key, text in prompts.items())
        found["used unless told otherwise"] = model.default_prompt_name or "by the kind of item (text, image, image+text)"
    return found


def pooling_of(model: Any) -> str:
    """How the vectors of the tokens become one; empty where the model does that itself."""
    return next((str(module.pooling_mode) for module in model if type(module).__name__ == "Pooling"), "")


def _use(embeds: bool, sees: bool) -> str:
    both = [
        "from sentence_transformers import SentenceTransformer",
        'model = SentenceTransformer("path/of/this/folder")',
        'vectors = model.encode([{"text": "a red kite over the sea"}%s])' % (', {"image": "kite.jpg"}' if sees else ""),
        "",
        "from hardwon import Embedder, Item",
        'vectors = Embedder.load("path/of/this/folder").encode([Item("a red kite over the sea")])  # the same, text stays text',
    ]
    pairs = [
        "from hardwon import Item, Reranker",
        'scores = Reranker.load("path/of/this/folder").score(Item("a red kite"), [Item("a kite in the sky"), Item("a boat")])',
    ]
    return "\n".join(["```python", *(both if embeds else pairs), "```"])


def _training(about: Mapping[str, Any]) -> list[str]:
    if not about:
        return []
    shown = {key: value for key, value in about.items() if key not in ("recipe", "metrics")}
    parts = ["## Training", _rows({key: _plain(value) for key, value in shown.items()})]
    if about.get("metrics"):
        parts += ["### Metrics", _rows(about["metrics"])]
    if about.get("recipe"):
        parts += ["### Recipe", f"```\n{about['recipe']}\n```"]
    return parts


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {number}" for key, number in value.items())
    return str(value)


def _rows(values: Mapping[str, Any]) -> str:
    lines = [f"| {key} | {str(value).replace('|', chr(92) + '|')} |" for key, value in values.items()]
    return "\n".join(["| | |", "|---|---|", *lines]) if lines else ""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
