"""Readers of data: each yields Examples (or Items) and names what it could not use."""

from hardwon.data.read import Dataset, images, read

__all__ = ["Dataset", "images", "read"]
