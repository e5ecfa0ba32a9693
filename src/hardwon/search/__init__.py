"""Exact search: the one retrieve function, the index around it, and reranking: fusion, gate, budget, early stop."""

from hardwon.search.about import Row
from hardwon.search.blend import Blend
from hardwon.search.gate import Gate, Kind
from hardwon.search.hits import Hit, Hits
from hardwon.search.index import Index
from hardwon.search.rerank import Budget, Fused
from hardwon.search.rescore import Rescorer
from hardwon.search.retrieve import Found, retrieve
from hardwon.search.stored import StoredIndex, is_index, model_named, open_index

__all__ = [
    "Blend",
    "Budget",
    "Found",
    "Fused",
    "Gate",
    "Hit",
    "Hits",
    "Index",
    "Kind",
    "Rescorer",
    "Row",
    "StoredIndex",
    "is_index",
    "model_named",
    "open_index",
    "retrieve",
]
