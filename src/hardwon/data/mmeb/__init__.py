"""MMEB as data: which data sets there are (`table`), and the reader of its training part."""

from hardwon.data.mmeb.table import DOCUMENTS, IMAGES, VIDEOS, DataSet

__all__ = ["DOCUMENTS", "IMAGES", "VIDEOS", "DataSet"]
