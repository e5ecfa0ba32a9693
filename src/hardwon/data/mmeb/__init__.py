"""MMEB as data: which data sets there are (`table`), by group. `hardwon.data.mmeb.train` reads what one trains on."""

from hardwon.data.mmeb.table import DOCUMENTS, IMAGES, VIDEOS, DataSet

__all__ = ["DOCUMENTS", "IMAGES", "VIDEOS", "DataSet"]
