"""Mined negatives in a file: those of each training pair, in the pairs' order. Pictures of thin items have no path to name."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hardwon.artifacts import write_atomically
from hardwon.items import Candidate, Example, Item
from studies.features import named


def write_mined(path: Path, examples: Sequence[Example]) -> None:
    """One line for each example: its candidates as they are now, and what is related to it."""
    lines = []
    for example in examples:
        rows = [[c.item.text, named(c.item) if c.item.images else "", c.relevance, c.origin] for c in example.candidates]
        lines.append(json.dumps([rows, sorted(example.related)]))
    write_atomically(path, "\n".join(lines) + "\n")


def read_mined(path: Path, examples: Sequence[Example]) -> tuple[Example, ...]:
    """The examples that were mined for, with what was found."""
    made = []
    for example, line in zip(examples, path.read_text(encoding="utf-8").splitlines(), strict=True):
        rows, related = json.loads(line)
        candidates = tuple(
            Candidate(Item(text, (picture.encode(),) if picture else ()), relevance, origin)
            for text, picture, relevance, origin in rows
        )
        made.append(replace(example, candidates=candidates, related=frozenset(related)))
    return tuple(made)
