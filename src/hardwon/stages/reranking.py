"""A reranker as a command names it: which one, how it is fused, what it may cost."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from hardwon.errors import ArtifactError, RecipeError
from hardwon.models import load_reranker
from hardwon.models.precision import Precision
from hardwon.search import Budget, Fused
from hardwon.stages.evaluating import model_folder

FUSION = "fusion.json"


@dataclass(frozen=True)
class Rerank:
    """A reranker as a command names it.

    Attributes:
        model: its folder, a stage's folder that holds it, or a name on the hub.
        fusion: what was learned of it: the `.fusion.json` that `hardwon evaluate --held-out` writes, or the folder of a stage
            that evaluated with it; "" for nothing.
        depth: candidates that it reads; that of the fusion, or 10, if None.
        weight: of its log-odds beside the cosine; that of the fusion (or of its gate), or 0.05, if None.
        pairs: that may be read; no limit if None. See `Budget`.
        milliseconds: that reading may take; no limit if None.
    """

    model: str
    fusion: str = ""
    depth: int | None = None
    weight: float | None = None
    pairs: float | None = None
    milliseconds: float | None = None

    def load(self, *, device: str | None = None, vision_cache: Path | None = None, precision: Precision = "fp32") -> Fused:
        """Load the reranker as it is to be used.

        Raises:
            RecipeError: depth or weight beside a fusion, which says them.
            ArtifactError: no fusion there, or one that was learned for another reranker.
            ModelError: no reranker there.
        """
        if self.fusion and not (self.depth is None and self.weight is None):
            raise RecipeError("depth and weight of the reranker are in the fusion: leave them out, or the fusion")
        reranker = load_reranker(model_folder(self.model), device=device, vision_cache=vision_cache, precision=precision)
        given = {name: value for name in ("depth", "weight") if (value := getattr(self, name)) is not None}
        fused = Fused.from_json(self._learned(), reranker) if self.fusion else Fused(reranker, **given)
        limits = (self.pairs, self.milliseconds)
        return fused if limits == (None, None) else replace(fused, budget=Budget(*limits))

    def _learned(self) -> object:
        path = Path(self.fusion)
        file = path / FUSION if path.is_dir() else path
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else f"not JSON ({error})"
            raise ArtifactError(
                f"{file} is no fusion of a reranker ({why}): `hardwon evaluate --held-out` writes one"
            ) from error
