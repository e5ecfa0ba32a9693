"""What a server's reply says of Yes and No, or why it says nothing: a number is never made up.

A reply is that of a chat completion with `logprobs`: the most likely first tokens with their log-probabilities.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

IMPOSSIBLE = -100.0  # servers write -inf, -9999 or -3e38 for what cannot come; float32 has nothing this unlikely
ROUNDING = 0.05  # by which listed probabilities may add up to more than one
CERTAIN = 0.01  # the most by which a bound may be off, as a share of Yes against No
SPACES = " \t\n\r\u0120\u2581\u010a"  # blanks, and what some tokenizers write for them


@dataclass(frozen=True)
class Answer:
    """What one reply says.

    Attributes:
        yes: log-probability of the answer Yes; NaN where the reply is unusable.
        no: of the answer No.
        problem: why it is unusable; "" if it is not.
        bounded: one of the two was not listed, and stands at the smallest log-probability that was.
    """

    yes: float = math.nan
    no: float = math.nan
    problem: str = ""
    bounded: bool = False


class _Unusable(Exception):
    """Why nothing can be read from a reply."""


def read(reply: Any, words: tuple[str, str], least: float) -> Answer:
    """Log-probabilities of the two words as the first token.

    Tokens that differ in case or in blanks around them ("Yes", " yes") mean the same: their probabilities are added up. If
    one of the two words is not listed, its log-probability is at most the smallest that is. That bound takes its place,
    which is said (`Answer.bounded`), where it cannot be far off: where Yes / (Yes + No) is certain to 0.01. Otherwise,
    and whenever anything in the reply is not as it should be, there is no answer but a reason.

    Args:
        reply: whatever the server sent, as JSON was read.
        words: for Yes and for No.
        least: probability that the two words must have together; below, the model was about to say something else.
    """
    try:
        return _read(_listed(reply), words, least)
    except _Unusable as reason:
        return Answer(problem=str(reason))


def _read(listed: Sequence[tuple[str, float]], words: tuple[str, str], least: float) -> Answer:
    found = [_sum(listed, word) for word in words]
    top = ", ".join(f"{token[:20]!r} {math.exp(value):.2g}" for token, value in listed[:3])
    if found[0] is None and found[1] is None:
        raise _Unusable(f"neither {words[0]} nor {words[1]} is among the {len(listed)} most likely first tokens ({top})")
    if (together := sum(math.exp(value) for value in found if value is not None)) < least:
        raise _Unusable(f"{words[0]} and {words[1]} have probability {together:.2g}, less than {least:g}: it says {top}")
    yes, no = found
    if yes is not None and no is not None:
        return Answer(yes, no)
    there = yes if yes is not None else no
    assert there is not None
    bound = min(value for _, value in listed)
    if 1 / (1 + math.exp(there - bound)) > CERTAIN:
        raise _Unusable(
            f"{words[0] if yes is None else words[1]} is not among the {len(listed)} most likely first tokens ({top}), and may "
            f"have any probability up to {math.exp(bound):.2g}: have more of them listed (top_logprobs)"
        )
    return Answer(bound if yes is None else yes, bound if no is None else no, bounded=True)


def _sum(listed: Sequence[tuple[str, float]], word: str) -> float | None:
    """Log-probability of all spellings of a word together; None if there is none."""
    values = [value for token, value in listed if token.strip(SPACES).casefold() == word.strip().casefold()]
    return math.log(sum(math.exp(value) for value in values)) if values else None


def _listed(reply: Any) -> list[tuple[str, float]]:
    """The most likely first tokens with their log-probabilities, most likely first."""
    place = reply
    for name, kind in (("choices", list), ("logprobs", dict), ("content", list), ("top_logprobs", list)):
        if not isinstance(place, dict) or not place.get(name) or not isinstance(place[name], kind):
            raise _Unusable(_lacking(name))
        place = place[name]
        if name in ("choices", "content"):
            place = place[0]
    rows = [_row(row) for row in place]
    if len({token for token, _ in rows}) < len(rows) and len(set(rows)) < len(rows):
        raise _Unusable("the reply lists a token twice")
    possible = sorted((row for row in rows if row[1] > IMPOSSIBLE), key=lambda row: -row[1])
    if not possible:
        raise _Unusable("the reply lists no token that can come at all")
    if (total := sum(math.exp(value) for _, value in possible)) > 1 + ROUNDING:
        raise _Unusable(f"the probabilities in the reply add up to {total:.3g}, so they are none")
    return possible


def _lacking(name: str) -> str:
    if name == "choices":
        return "the reply is no chat completion: it has no choices"
    return f"the reply has no log-probabilities ({name} is missing): the server has to support logprobs with top_logprobs"


def _row(row: Any) -> tuple[str, float]:
    token, value = (row.get("token"), row.get("logprob")) if isinstance(row, dict) else (None, None)
    if not isinstance(token, str) or isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _Unusable(f"the reply lists {str(row)[:60]!r}, which is no token with a log-probability")
    if math.isnan(value) or value > ROUNDING:
        raise _Unusable(f"the reply gives {token[:20]!r} the log-probability {value}, which cannot be")
    return token, float(max(value, -1e30))
