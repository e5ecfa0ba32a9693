"""Embedding, judging and searching by several processes, of one machine or of many: see `hardwon.shards`.

Nothing is imported here: who only starts workers needs no models.
"""
