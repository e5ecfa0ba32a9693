"""Loading a model so that what it says later is right, or an error now: whole weights, a length, harmless padding."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from hardwon.errors import MissingExtra, ModelError
from hardwon.models.lora import add_lora, check_base
from hardwon.models.options import Options, Pooling
from hardwon.models.template import PROBE, REFUSES, arrives
from hardwon.models.trusted import refuse_untrusted

ENDLESS = 1_000_000  # a maximum length above this is none at all
UNREAD = ("pooler", "num_batches_tracked")


def open_model(kind: Any, path: str | Path, device: str | None, options: Options | None = None) -> Any:
    """Load with `SentenceTransformer` or `CrossEncoder`.

    Raises:
        ModelError: nothing there, not a model, weights that are missing or of another shape, no maximum length, or an option
            that can have no effect on this model.
        MissingExtra: the model's processor, or an option, needs a package that is not installed.
    """
    options = options or Options()
    embeds = kind.__name__ == "SentenceTransformer"
    if not embeds:
        _refuse_embedder(path)
    model = as_it_is(kind, path, device, options)
    fresh = () if embeds else ("classifier", "score")  # of a cross-encoder: no accident
    _refuse_missing_weights(model, path, (*UNREAD, *fresh))
    _refuse_missing_template(model, path)
    settle_messages(model)
    if embeds:
        settle_vectors(model, path, options.pooling)
    _settle_length(model, path)
    settle_filling(model)
    settle_frames(model)
    if (options.attention or "").startswith("flash") and "message" in model.modalities:
        model[0].unpad_inputs = False  # multimodal models find their pictures by rows of a batch
    _settle_instruction(model, options.instruction)
    if options.max_pixels is not None:
        config = getattr(getattr(model[0], "model", None), "config", None)
        limit_pixels(getattr(model[0], "processor", None), config, options.max_pixels)
    if options.lora is not None:
        add_lora(model, options.lora)
    return model


def as_it_is(kind: Any, path: str | Path, device: str | None, options: Options | None = None) -> Any:
    """Load with `SentenceTransformer` or `CrossEncoder` as somebody without this package would, but for the errors.

    Raises:
        ModelError: nothing there, not a model, not to be trusted (see `refuse_untrusted`), or weights of another shape.
        MissingExtra: the model's processor needs a package that is not installed.
    """
    told = {"use_safetensors": True} | (options or Options()).loading
    folder = Path(path)
    if folder.is_dir():
        refuse_untrusted(folder)
    adapter = (folder / "adapter_config.json").exists()
    if adapter:
        check_base(folder)
    if folder.is_dir() and not adapter and not any((folder / name).exists() for name in ("config.json", "modules.json")):
        raise ModelError(f"{folder} holds no model: it has neither modules.json nor config.json")
    try:
        # The base of an adapter may lie on the hub, even if the adapter is a folder here.
        local = folder.is_dir() and not adapter
        # In full, since an adapter that is saved keeps the name of its base.
        name = str(folder.resolve()) if folder.is_dir() else str(path)
        return kind(name, device=device, trust_remote_code=False, local_files_only=local, model_kwargs=told)
    except ImportError as error:
        if "torchvision" in str(error).lower():
            raise MissingExtra("torchvision", "vlm") from error
        raise ModelError(f"{path} cannot be loaded as a {kind.__name__}: {error}") from error
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be loaded as a {kind.__name__}: {error}") from error


def settle_vectors(model: Any, path: str | Path, pooling: Pooling | None) -> None:
    """How the tokens' vectors become one, and that it has length 1 also for who loads the saved model elsewhere.

    Raises:
        ModelError: a pooling for a model that gives one vector itself.
    """
    from sentence_transformers.base.modules import Normalize
    from sentence_transformers.sentence_transformer.modules import Pooling as Pool
    from sentence_transformers.util import is_sentence_transformer_model

    places = [n for n, module in enumerate(model) if isinstance(module, Pool)]
    if pooling is None and places and _generates(model) and not is_sentence_transformer_model(str(path)):
        pooling = "last"  # only the last token has seen all the others; sentence-transformers would take the mean
    if pooling is not None:
        if not places:
            raise ModelError(f"{path} gives one vector for an item itself: leave pooling out")
        mode: Any = "lasttoken" if pooling == "last" else pooling
        model[places[0]] = Pool(int(model[places[0]].embedding_dimension), pooling_mode=mode)
    if not any(isinstance(module, Normalize) for module in model):
        model.append(Normalize())


def _generates(model: Any) -> bool:
    config = getattr(getattr(model[0], "model", None), "config", None)
    made = getattr(config, "architectures", None) or ()
    return any(name.endswith(("ForCausalLM", "ForConditionalGeneration")) for name in made)


def _settle_instruction(model: Any, instruction: Any) -> None:
    """Keep instructions where sentence-transformers keeps prompts; see `prompt_for`."""
    if instruction is None:
        return
    plain = "message" not in model.modalities  # here a prompt is put before the text as it is

    def spaced(text: str) -> str:
        return text + " " if plain and text and not text[-1].isspace() else text

    if isinstance(instruction, str):
        model.prompts["instruction"], model.default_prompt_name = spaced(instruction), "instruction"
    else:
        model.prompts |= {name: spaced(text) for name, text in instruction.items()}


def limit_pixels(processor: Any, config: Any, most: int) -> None:
    """Have pictures scaled down to at most so many pixels, by the settings that are saved with the model.

    Raises:
        ModelError: a model that scales all pictures to one size anyway, or cannot take them so small.
    """
    pictures: Any = getattr(processor, "image_processor", None)
    grid = getattr(pictures, "image_grid_pinpoints", None)
    if grid:
        kept = [size for size in grid if size[0] * size[1] <= most]
        if not kept:
            raise ModelError(f"max_pixels {most:,} is below the smallest size of this model, {min(h * w for h, w in grid):,}")
        pictures.image_grid_pinpoints = kept
        config.image_grid_pinpoints = kept
        return
    size = getattr(pictures, "size", None) or {}
    if not hasattr(pictures, "merge_size") or "longest_edge" not in size:
        raise ModelError("max_pixels has no effect on this model: it scales every picture to one size; leave it out")
    # In these processors the "edges" are areas, and a picture is never made smaller than the shortest.
    pictures.size = {"shortest_edge": min(size["shortest_edge"], most), "longest_edge": most}


def prompt_for(model: Any, modality: str) -> str:
    """What an item with no instruction of its own is shown with: that of its kind, else the model's default, else nothing."""
    return model.prompts.get(modality) or model.prompts.get(model.default_prompt_name) or ""


def _refuse_embedder(path: str | Path) -> None:
    """Sentence-transformers would make a cross-encoder of an embedder, with random weights for the score."""
    from sentence_transformers.util import is_sentence_transformer_model, load_file_path

    name, local = str(path), Path(path).is_dir()
    if not is_sentence_transformer_model(name, local_files_only=local):
        return
    found = load_file_path(name, "config_sentence_transformers.json", local_files_only=local)
    try:
        told = json.loads(Path(found).read_text(encoding="utf-8")) if found else {}
    except ValueError:
        return  # whoever loads it says that it is damaged
    if told.get("model_type", "SentenceTransformer") == "SentenceTransformer":
        raise ModelError(
            f"{path} is an embedder and gives no score of a pair: Reranker.start_from(Embedder.load(...)) makes a reranker "
            "of it, which is then trained"
        )


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


def settle_messages(model: Any) -> None:
    """A template is given strings or lists of parts: whichever it can write.

    Sentence-transformers guesses from words of the template. That of a language model which also speaks of the type of a tool
    seems to want parts, of which it writes Python's repr. Saved with the model, so that sentence-transformers does the same.
    """
    reader: Any = getattr(model[0], "input_formatter", None)
    if reader is None or "message" not in model.modalities:
        return
    contents = {"structured": [{"type": "text", "text": PROBE[0]}], "flat": PROBE[0]}

    def written(form: str) -> bool:
        try:
            said = model[0].processor.apply_chat_template([{"role": "user", "content": contents[form]}], tokenize=False)
        except REFUSES:
            return False
        return arrives(str(said), PROBE[:1])

    guessed = reader.message_format
    other = "flat" if guessed == "structured" else "structured"
    if not written(guessed) and written(other):  # of pairs of a query and a document a template may know and of a user not
        reader.message_format = other
        config = model[0].modality_config
        model[0].modality_config = config | {"message": {**config["message"], "format": other}}


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


def settle_filling(model: Any) -> None:
    """SigLIP reads the last place of a text, filled or not, and was trained on texts filled up to the full length.

    Filled up only to the longest of a batch, a text's vector would depend on its neighbours (measured: by 0.46).
    """
    config = getattr(getattr(model[0], "model", None), "config", None)
    if getattr(config, "model_type", "") in ("siglip", "siglip2"):
        kept = dict(getattr(model[0], "processing_kwargs", None) or {})
        model[0].processing_kwargs = kept | {"text": {**kept.get("text", {}), "padding": "max_length"}}


def settle_frames(model: Any) -> None:
    """Every frame of a video is seen: some processors keep two of a second by default and believe in 24 of them.

    Measured: of 18 frames Qwen3-VL saw four. Saved with the model, so that sentence-transformers does the same.
    """
    if getattr(getattr(model[0], "processor", None), "video_processor", None) is not None:
        kept = dict(getattr(model[0], "processing_kwargs", None) or {})
        model[0].processing_kwargs = kept | {"video": {**kept.get("video", {}), "do_sample_frames": False}}


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
