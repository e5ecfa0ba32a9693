"""Mining for some examples within the whole training set."""

import numpy as np

from hardwon.items import Candidate, Example, Item
from hardwon.mining import Mining, mine


class Letters:
    fingerprint, dim = "letters", 26

    def encode(self, items, *, progress=""):
        made = np.array([[1e-3 + item.text.count(chr(97 + n)) for n in range(26)] for item in items], dtype=np.float32)
        return made / np.linalg.norm(made, axis=1, keepdims=True)


def test_rest_gives_back_every_example_once_and_in_order():
    words = ["abc", "abd", "xyz", "xyw", "mno", "mnp"]
    given = [Example(Item(text=w), (Candidate(Item(text=w + w[-1]), origin="gold"),), "words") for w in words]
    settings = Mining(depth=3, keep=2, queries=2, seed=3)
    some = mine(given, Letters(), settings=settings)
    every = mine(given, Letters(), settings=Mining(depth=3, keep=2, queries=2, seed=3, rest=True))
    assert len(some.examples) == 2
    assert [e.query.text for e in every.examples] == words
    assert every.ledger == some.ledger
    mined = {e.query.text: e for e in some.examples}
    for before, after in zip(given, every.examples, strict=True):
        assert after == mined.get(after.query.text, before)
        assert bool(after.negatives) == (after.query.text in mined)
