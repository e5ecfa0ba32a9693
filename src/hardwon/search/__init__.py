"""Exact search: the one retrieve function, the index around it, and fusion with a reranker."""

from hardwon.search.blend import Blend
from hardwon.search.index import Hit, Index
from hardwon.search.rerank import Fused
from hardwon.search.retrieve import Found, retrieve

__all__ = ["Blend", "Found", "Fused", "Hit", "Index", "retrieve"]
