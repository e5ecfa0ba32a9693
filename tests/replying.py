"""Replies of a chat server as they come, and as they may come when something is wrong."""

import json
import math
import random

from hardwon.models.replies import read

WORDS = ("Yes", "No")
# What chat models begin with that were to say Yes or No and do not.
PREAMBLES = (
    "I",
    "Sure",
    "As",
    "The",
    "```",
    "```json",
    "{",
    "10",
    "10/10",
    "\u0661\u0660",
    "\uff11",
    "Sorry",
    "\n",
    "Answer",
    "*",
    "",
)


def reply(chances):
    """A chat completion whose first token has these probabilities."""
    rows = [{"token": token, "logprob": math.log(chance)} for token, chance in chances.items()]
    return {"choices": [{"message": {"content": "Yes"}, "logprobs": {"content": [{"token": "Yes", "top_logprobs": rows}]}}]}


def damaged(value, chance):
    """The value with one part of it, anywhere, replaced or taken away."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        name = chance.choice(list(value))
        if chance.random() < 0.2:
            return {other: part for other, part in value.items() if other != name}
        return value | {name: damaged(value[name], chance)}
    if isinstance(value, list) and value and chance.random() < 0.9:
        n = chance.randrange(len(value))
        return [*value[:n], *([] if chance.random() < 0.2 else [damaged(value[n], chance)]), *value[n + 1 :]]
    words = ["", "Yes", "10/10", "```json", "\u0661\u0660", {"token": "Yes"}, ["Yes"], [], {}]
    numbers = [None, True, 7, 0.5, -1e999, 1e999, math.nan]
    return chance.choice([*words, *numbers])


def malformed(chance):
    """A reply with something wrong, and whether there is nothing in it that was said."""
    whole = reply({"Yes": 0.7, "No": 0.2, "Maybe": 0.05, "The": 0.01, "\u0661": 0.001})
    kind = chance.randrange(4)
    if kind == 0:  # a preamble, a fence, a mark out of ten, a refusal
        tokens = chance.sample(PREAMBLES, chance.randrange(1, len(PREAMBLES)))
        return reply({token: 0.9 / 2**n for n, token in enumerate(tokens, 1)}), True
    if kind == 1:  # words alone
        said = chance.choice(PREAMBLES) + chance.choice((" Yes", " No", " 10/10", "."))
        return {"choices": [{"message": {"content": said}, "logprobs": chance.choice((None, {}, {"content": []}))}]}, True
    made = damaged(whole, chance)
    return damaged(made, chance) if kind == 2 else made, False


def read_malformed(count, seed):
    """How many of so many replies say what was said ("same"), nothing, or what nobody said ("made up")."""
    chance = random.Random(seed)
    ends = {"same": 0, "nothing": 0, "made up": 0}
    for _ in range(count):
        made, empty = malformed(chance)
        made = json.loads(json.dumps(made))  # as it comes from a server, NaN and Infinity included
        answer = read(made, WORDS, 0.01)
        if answer.problem:
            ends["nothing" if math.isnan(answer.yes) and math.isnan(answer.no) else "made up"] += 1
            continue
        ends["made up" if empty or not said(made, answer) else "same"] += 1
    return ends


def said(made, answer):
    """Whether the numbers stand in the reply. A token may be another one, or gone: then that is what was said."""
    (choice, *_) = made["choices"]
    listed = choice["logprobs"]["content"][0]["top_logprobs"]
    rows = [(row["token"], row["logprob"]) for row in listed if row["logprob"] > -100]
    # Two tokens may be written alike: their chances are added up.
    chances = [sum(math.exp(value) for token, value in rows if token == word) for word in WORDS]
    expected = [math.log(chance) if chance else min(value for _, value in rows) for chance in chances]
    right = all(math.isclose(*pair, rel_tol=1e-6) for pair in zip((answer.yes, answer.no), expected, strict=True))
    return right and answer.bounded == (not all(chances))
