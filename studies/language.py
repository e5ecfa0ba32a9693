"""The same rows on a backbone with a language model: the library's own `train`, whole, on real pictures. Wants a GPU.

The backbone is any folder or name that `Embedder.load` takes; without one, SmolLM2-135M (from the asset package "small-judge")
behind the demo's vision tower, put together as the demo's backbone is.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hardwon.data.assets import fetch
from hardwon.errors import MissingExtra
from hardwon.models import Embedder
from hardwon.models.eyes import has_tower
from hardwon.training import Settings, align, train
from studies.material import Material
from studies.plan import CLIP, Scale, Training

FROZEN = ("vision",)
PROJECTOR = "multi_modal_projector"


def trained(
    backbone: str, row: Training, scale: Scale, material: Material, seed: int, out: Path
) -> tuple[Embedder, dict[str, Any]]:
    """Train one row from the backbone as it is.

    Args:
        backbone: folder or name.
        row: what differs between rows.
        scale: what does not.
        material: with real pictures: `Material.load(folder, thinned=False)`.
        seed: of the order of pairs.
        out: folder for checkpoints, so that a training that was killed goes on, and for the log.
    """
    model = Embedder.load(backbone, freeze=FROZEN, vision_cache=material.folder / "seen")
    projected = has_tower(model.body.transformer)
    if projected and not row.unaligned:
        model.body.settle_vision()
        align(model, material.train, steps=scale.align, seed=seed)
    settings = Settings(
        batch_size=row.queries or scale.encodings // 2,
        groups=row.groups,
        learning_rate=scale.rate * row.pace,
        rates=((PROJECTOR, 5 * scale.rate),) if projected else (),
        false_negatives=row.rules,
        freeze=FROZEN,
        precision="auto",
        clip=CLIP,
        seed=seed,
    )
    train(model, material.train, row.loss, steps=round(scale.steps * row.longer), settings=settings, title=row.name, out=out)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    shutil.rmtree(out / "checkpoint", ignore_errors=True)
    last = [one["loss"] for one in rows if "loss" in one][-10:]
    return model, {"items": sum(one.get("items", 0) for one in rows), "loss": round(sum(last) / len(last), 4)}


def smollm(folder: Path, cache: Path | None, say: Callable[[str], None]) -> Path:
    """EfficientNet-lite0 -> projector -> SmolLM2-135M, as a standard FastVLM; made once."""
    if (folder / "modules.json").is_file():
        return folder
    try:
        import gguf  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise MissingExtra("gguf", "studies") from None
    import torch
    from transformers import AutoModel, AutoTokenizer, EfficientNetModel

    from hardwon.models import small

    found = fetch(("vision", "small-judge"), cache, say)
    (weights,) = sorted(found["small-judge"].rglob("*.gguf"))
    source = torch.load(sorted(found["vision"].rglob("*.pth"))[0], map_location="cpu", weights_only=True)
    tower = EfficientNetModel(small.vision_config()).eval()
    tower.load_state_dict(small.lite0_weights(source, tower.state_dict()), strict=True)
    tokenizer = AutoTokenizer.from_pretrained(str(weights.parent), gguf_file=weights.name)
    tokenizer.add_special_tokens({"additional_special_tokens": [small.IMAGE_TOKEN]})
    tokenizer.model_max_length = small.MAX_TOKENS
    language = AutoModel.from_pretrained(str(weights.parent), gguf_file=weights.name, dtype=torch.float32)
    del language.config.quantization_config  # of the file it came from: in float32 it would keep the model from being saved
    small.save(small.fuse(language, tower, tokenizer), small.processor(tokenizer), folder)
    return folder
