"""What is read from a reply of a server: the log-probabilities it gives, a bound that can be relied upon, or a reason."""

import math
import random

import pytest
import replying
from replying import WORDS, reply

from hardwon.models.replies import CERTAIN, read


def listing(*rows):
    """A chat completion with these rows as they are."""
    return {"choices": [{"logprobs": {"content": [{"top_logprobs": list(rows)}]}}]}


def row(token, logprob):
    return {"token": token, "logprob": logprob}


def test_spellings_of_a_word_are_added_up():
    found = {
        "Yes": 0.4,
        " yes": 0.1,
        "YES": 0.05,
        "\u2581Yes": 0.02,
        "No": 0.2,
        "\u0120no": 0.1,
        "Yesterday": 0.05,
        "Not": 0.05,
    }
    answer = read(reply(found), WORDS, 0.01)
    assert (math.exp(answer.yes), math.exp(answer.no)) == pytest.approx((0.57, 0.3))
    assert (answer.problem, answer.bounded) == ("", False)


def test_other_words_may_be_asked_for():
    answer = read(reply({"Ja": 0.6, " nein": 0.3, "No": 0.05}), ("ja", "Nein"), 0.01)
    assert (math.exp(answer.yes), math.exp(answer.no)) == pytest.approx((0.6, 0.3))


def test_what_cannot_come_is_not_listed():
    """Servers write -9999 or the lowest float for a probability of nothing."""
    rows = [row("No", -3.4e38), row("Yes", math.log(0.999)), row("The", -9999.0), row("A", math.log(1e-4)), row("B", -math.inf)]
    answer = read(listing(*rows), WORDS, 0.01)
    assert answer.bounded
    assert (answer.yes, answer.no) == pytest.approx((math.log(0.999), math.log(1e-4)))


@pytest.mark.parametrize("there", WORDS)
def test_a_bound_takes_the_place_of_one_that_is_not_listed_where_it_is_tight(there):
    answer = read(reply({there: 0.99, "Maybe": 1e-3, "The": 2e-4}), WORDS, 0.01)
    assert answer.bounded
    assert {"Yes": answer.yes, "No": answer.no} == pytest.approx(
        {word: math.log(0.99 if word == there else 2e-4) for word in WORDS}
    )


def test_a_bound_is_never_off_by_more_than_it_says():
    """Whatever probability the word that is not listed has, the share of Yes is what was answered, to 0.01."""
    chance = random.Random(0)
    used = 0
    for _ in range(2000):
        weights = sorted((math.exp(chance.gauss(0, 4)) for _ in range(30)), reverse=True)
        tokens = [f"t{n}" for n in range(30)]
        tokens[0 if chance.random() < 0.7 else 5], tokens[chance.randrange(6, 30)] = "Yes", "No"
        true = {token: weight / sum(weights) for token, weight in zip(tokens, weights, strict=True)}
        answer = read(reply(dict(list(true.items())[: chance.choice((5, 10, 20))])), WORDS, 0.0)
        if answer.problem:
            continue
        used += answer.bounded
        share = 1 / (1 + math.exp(answer.no - answer.yes))
        assert share == pytest.approx(true["Yes"] / (true["Yes"] + true["No"]), abs=CERTAIN if answer.bounded else 1e-9)
        assert answer.yes - answer.no <= math.log(true["Yes"] / true["No"]) + 1e-9  # never more certain than the model was
    assert used > 200


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (
            reply({"Yes": 0.5, "The": 0.3, "A": 0.1}),
            "No is not among the 3 most likely first tokens ('Yes' 0.5, 'The' 0.3, 'A' 0.1)",
        ),
        (reply({"Yes": 0.5}), "may have any probability up to 0.5: have more of them listed (top_logprobs)"),
        (reply({"I": 0.97, "As": 0.01}), "neither Yes nor No is among the 2 most likely first tokens ('I' 0.97, 'As' 0.01)"),
        (reply({"I": 0.97, "Yes": 1e-5, "No": 1e-6}), "Yes and No have probability 1.1e-05, less than 0.01: it says 'I' 0.97"),
        (reply({"10": 0.9, "10/10": 0.05, "\u0661": 0.01}), "neither Yes nor No"),
        (reply({"```": 0.9, "Answer": 0.05}), "neither Yes nor No"),
        (reply({}), "the reply has no log-probabilities (top_logprobs is missing)"),
        (listing(row("Yes", -0.1), row("Yes", -0.1), row("No", -3.0)), "lists a token twice"),
        (listing(row("Yes", 0.9), row("No", 0.1)), "gives 'Yes' the log-probability 0.9, which cannot be"),
        (listing(row("Yes", -0.1), row("No", math.nan)), "gives 'No' the log-probability nan"),
        (listing(row("Yes", 0.0), row("No", 0.0)), "add up to 2, so they are none"),
        (listing(row("Yes", -9999.0)), "no token that can come at all"),
        (listing(row("Yes", "-0.1"), row("No", -3.0)), "is no token with a log-probability"),
        (listing(row("Yes", True), row("No", -3.0)), "is no token with a log-probability"),
        (listing(row(None, -0.1)), "is no token with a log-probability"),
        (listing("Yes"), "lists 'Yes', which is no token"),
        ({"choices": [{"message": {"content": "Yes"}, "logprobs": None}]}, "has no log-probabilities (logprobs is missing)"),
        ({"choices": [{"message": {"content": "Yes"}}]}, "the server has to support logprobs with top_logprobs"),
        ({"choices": [{"logprobs": {"content": []}}]}, "(content is missing)"),
        ({"choices": []}, "it has no choices"),
        ({"choices": {"0": "Yes"}}, "it has no choices"),
        ({"choices": ["Yes"]}, "(logprobs is missing)"),
        ({}, "it has no choices"),
        ("Yes", "it has no choices"),
        (None, "it has no choices"),
    ],
)
def test_what_says_nothing_is_a_reason_and_no_number(made, said):
    answer = read(made, WORDS, 0.01)
    assert said in answer.problem
    assert math.isnan(answer.yes)
    assert math.isnan(answer.no)


def test_no_damage_to_a_reply_makes_up_a_number():
    """Of two thousand damaged replies each says what the whole one said, a bound that holds, or nothing."""
    ends = replying.read_malformed(3000, seed=1)
    assert ends.pop("made up") == 0
    assert min(ends.values()) > 200, ends
