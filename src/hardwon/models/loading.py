"""Loading a model so that what it says later is right, or an error now: whole weights, a length, harmless padding."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from hardwon.errors import MissingExtra, ModelError

ENDLESS = 1_000_000  # a maximum length above this is none at all
UNREAD = ("pooler", "num_batches_tracked")


def open_model(kind: Any, path: str | Path, device: str | None) -> Any:
    """Load with `SentenceTransformer` or `CrossEncoder`.

    Raises:
        ModelError: nothing there, not a model, weights that are missing or of another shape, or no maximum length.
        MissingExtra: the model's processor needs a package that is not installed.
    """
    folder = Path(path)
    adapter = (folder / "adapter_config.json").exists()
    if folder.is_dir() and not adapter and not any((folder / name).exists() for name in ("config.json", "modules.json")):
        raise ModelError(f"{folder} holds no model: it has neither modules.json nor config.json")
    try:
        # The base of an adapter may lie on the hub, even if the adapter is a folder here.
        model = kind(str(path), device=device, trust_remote_code=False, local_files_only=folder.is_dir() and not adapter)
    except ImportError as error:
        if "torchvision" in str(error).lower():
            raise MissingExtra("torchvision", "vlm") from error
        raise ModelError(f"{path} cannot be loaded as a {kind.__name__}: {error}") from error
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be loaded as a {kind.__name__}: {error}") from error
    fresh = () if kind.__name__ == "SentenceTransformer" else ("classifier", "score")  # of a cross-encoder: no accident
    _refuse_missing_weights(model, path, (*UNREAD, *fresh))
    _refuse_missing_template(model, path)
    _settle_length(model, path)
    _settle_filling(model)
    return model


def _refuse_missing_weights(model: Any, path: str | Path, allowed: tuple[str, ...]) -> None:
    """Transformers draws weights that are not in the file at random and goes on; the vectors would be noise (B4)."""
    inner = getattr(model[0], "model", None)
    if inner is None or not hasattr(inner, "named_parameters"):
        return
    saved = inner.state_dict().keys()  # without buffers that are computed, which no file holds
    weights = {**dict(inner.named_parameters()), **{name: b for name, b in inner.named_buffers() if name in saved}}
    flags = {name: getattr(value, "_is_hf_initialized", False) for name, value in weights.items()}
    if not any(flags.values()):
        return  # not loaded by transformers, which marks what it has read
    # The pooler of a text encoder is not in many checkpoints, and nobody reads it; nor is the count of batches ever read.
    missing = [name for name, found in flags.items() if not found and not any(part in name for part in allowed)]
    if missing:
        shown = ", ".join(missing[:4]) + (" ..." if len(missing) > 4 else "")
        raise ModelError(f"{path} lacks {len(missing)} of {len(flags)} weights ({shown}): they would be random numbers")


def _refuse_missing_template(model: Any, path: str | Path) -> None:
    """A model that reads messages cannot read anything without the template that makes one text of them."""
    if "message" in model.modalities and not has_template(model[0]):
        raise ModelError(
            f"{path} reads messages, but its processor has no chat template: copy chat_template.jinja from the original model"
        )


def has_template(module: Any) -> bool:
    """Whether a sentence-transformers `Transformer` has a chat template."""
    return any(getattr(part, "chat_template", None) for part in _named(module, ("processor", "tokenizer")))


def _settle_length(model: Any, path: str | Path) -> None:
    """A length above which text is cut: the tokenizer's, else what the language model has positions for."""
    length = model.max_seq_length
    if length and length < ENDLESS:
        return
    config = getattr(getattr(model[0], "model", None), "config", None)
    text = config.get_text_config() if config is not None and hasattr(config, "get_text_config") else config
    positions = getattr(text, "max_position_embeddings", None)
    if not positions:
        raise ModelError(f"{path} has no finite maximum length: set `model_max_length` in its tokenizer_config.json")
    model.max_seq_length = int(positions)


def _settle_filling(model: Any) -> None:
    """SigLIP reads the last place of a text, filled or not, and was trained on texts filled up to the full length.

    Filled up only to the longest of a batch, a text's vector would depend on its neighbours (measured: by 0.46).
    """
    config = getattr(getattr(model[0], "model", None), "config", None)
    if getattr(config, "model_type", "") in ("siglip", "siglip2"):
        kept = dict(getattr(model[0], "processing_kwargs", None) or {})
        model[0].processing_kwargs = kept | {"text": {**kept.get("text", {}), "padding": "max_length"}}


def control_tokens(tokenizer: Any, processor: Any) -> tuple[str, ...]:
    """Strings that this tokenizer takes for something else than text, longest first.

    More than `all_special_tokens`: placeholders for pictures and marks such as "<think>" are added tokens only.
    """
    found = set(getattr(tokenizer, "all_special_tokens", ()) or ())
    for token in (getattr(tokenizer, "added_tokens_decoder", None) or {}).values():
        # Some tokenizers add runs of blanks or words as well; those are text.
        if token.special or token.content[:1] in ("<", "["):
            found.add(token.content)
    found |= {str(t) for t in _named(processor, ("image_token", "video_token")) if t}
    return tuple(sorted(found, key=lambda token: (-len(token), token)))


def _named(thing: Any, names: Iterable[str]) -> list[Any]:
    return [getattr(thing, name, None) for name in names]
