"""Random draws that depend on nothing but what they are for."""

import random


def generator(*key: object) -> random.Random:
    """A generator of its own for whatever `key` names: the same key gives the same draws on every machine."""
    return random.Random(":".join(map(str, key)))
