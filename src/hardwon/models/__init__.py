"""Models: an embedder, a reranker, and the small backbone that comes with the project."""

import hardwon.models.torchvision_guard  # noqa: F401  (first: before anything imports transformers)
from hardwon.models.cached import CachedEncoder
from hardwon.models.calls import RemoteSettings
from hardwon.models.embedder import Embedder
from hardwon.models.judge import Judge
from hardwon.models.options import LoRA, Options
from hardwon.models.question import Question
from hardwon.models.recorded import RecordedJudge, record
from hardwon.models.remote import RemoteJudge
from hardwon.models.reranker import Reranker
from hardwon.models.scorer import Encoder, Judgements, Pair, Scorer, YesNo, judgements

__all__ = [
    "CachedEncoder",
    "Embedder",
    "Encoder",
    "Judge",
    "Judgements",
    "LoRA",
    "Options",
    "Pair",
    "Question",
    "RecordedJudge",
    "RemoteJudge",
    "RemoteSettings",
    "Reranker",
    "Scorer",
    "YesNo",
    "judgements",
    "record",
]
