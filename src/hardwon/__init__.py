"""hardwon: sharp embedding models, rerankers and search indexes, learned from hard negatives.

The public names are imported when they are first used, so `import hardwon` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hardwon import data, losses
    from hardwon.errors import HardwonError
    from hardwon.evaluation import Report, evaluate
    from hardwon.items import Candidate, Example, Item
    from hardwon.mining import Mining, mine
    from hardwon.models import Embedder, Judge, ListwiseReranker, LoRA, Reranker
    from hardwon.search import Fused, Index
    from hardwon.training import Settings, train

__version__ = "0.1.0"

_WHERE = {
    "Candidate": "items",
    "Embedder": "models",
    "Example": "items",
    "Fused": "search",
    "HardwonError": "errors",
    "Index": "search",
    "Item": "items",
    "Judge": "models",
    "ListwiseReranker": "models",
    "LoRA": "models",
    "Mining": "mining",
    "Report": "evaluation",
    "Reranker": "models",
    "Settings": "training",
    "evaluate": "evaluation",
    "mine": "mining",
    "train": "training",
}
_MODULES = ("data", "losses")

__all__ = [
    "Candidate",
    "Embedder",
    "Example",
    "Fused",
    "HardwonError",
    "Index",
    "Item",
    "Judge",
    "ListwiseReranker",
    "LoRA",
    "Mining",
    "Report",
    "Reranker",
    "Settings",
    "data",
    "evaluate",
    "losses",
    "mine",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"hardwon.{name}")
    if name in _WHERE:
        return getattr(importlib.import_module(f"hardwon.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'hardwon' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
