"""Encoders and judges without a model. hardwon is imported inside functions: the shape checks come before it."""

import pytest
from fakes import AngledEncoder, RuleJudge, odds_by_hash


@pytest.fixture
def encoder():
    return AngledEncoder


@pytest.fixture
def judging():
    return RuleJudge


@pytest.fixture
def by_hash():
    """Log-odds between -4 and 4 that depend on the pair alone."""
    return odds_by_hash


@pytest.fixture
def pairs():
    """Examples "q0" -> "t0", "q1" -> "t1" ...; `related` by number of row, as texts."""

    def build(count, source="s", related=None):
        from hardwon.items import Candidate, Example, Item

        return tuple(
            Example(
                Item(text=f"{source}q{n}"),
                (Candidate(Item(text=f"{source}t{n}"), origin="gold"),),
                source,
                frozenset(Item(text=text).content for text in (related or {}).get(n, ())),
            )
            for n in range(count)
        )

    return build


@pytest.fixture
def angled(pairs, encoder):
    """Ten examples; seen from every query, t0 is the most similar text, then t1, and so on."""
    examples = pairs(10)
    return examples, encoder({f"sq{n}": 0 for n in range(10)} | {f"st{n}": 5 * n for n in range(10)})
