"""Models: an embedder, a reranker, and the small backbone that comes with the project."""

import hardwon.models.torchvision_guard  # noqa: F401  (first: before anything imports transformers)
from hardwon.models.cached import CachedEncoder
from hardwon.models.calls import RemoteSettings
from hardwon.models.embedder import Embedder
from hardwon.models.judge import Judge
from hardwon.models.listwise import ListwiseReranker, load_reranker
from hardwon.models.options import LoRA, Options
from hardwon.models.question import Listing, Question
from hardwon.models.recorded import RecordedJudge, record
from hardwon.models.remote import RemoteJudge
from hardwon.models.reranker import Reranker
from hardwon.models.scorer import Encoder, Judgements, ListScorer, Pair, Scorer, YesNo, judgements, score_lists

__all__ = [
    "CachedEncoder",
    "Embedder",
    "Encoder",
    "Judge",
    "Judgements",
    "ListScorer",
    "Listing",
    "ListwiseReranker",
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
    "load_reranker",
    "record",
    "score_lists",
]
