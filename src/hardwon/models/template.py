"""A chat template that also knows a query and a document: so a saved reranker needs nothing but sentence-transformers.

A `CrossEncoder` shows a pair to a chat template as two turns, of a "query" and a "document", which the templates of chat models
do not know. In front of such a template stand a few lines that make of the pair what `question.parts` makes of it, one turn of
a user, and leave every other conversation alone. What they were made from stands there too and is read when the model is loaded
again; a name on the hub and an adapter's folder carry it without a file of their own.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

from jinja2 import TemplateError

from hardwon.errors import ModelError
from hardwon.models.question import Listing, Question

Mode = Literal["pairwise", "listwise"]
START, END = "{#- hardwon reranker 1 ", " -#}"
LAST, TAIL = "{#- hardwon end #}", "{# hardwon lead #}"
# The names do not begin with an underscore: Jinja hides those.
PAIR = """
{%- set hardwon = namespace(pair=messages | selectattr('role', 'equalto', 'query') | list | length > 0) -%}
{%- if hardwon.pair -%}
{%- set hardwon.text = QUESTION + '\\n\\nQuery:' -%}
{%- set hardwon.parts = [] -%}
{%- for message in messages -%}
{%- if message.role == 'document' -%}{%- set hardwon.text = hardwon.text + '\\n\\nCandidate:' -%}{%- endif -%}
{%- set content = [{'type': 'text', 'text': message.content}] if message.content is string else message.content -%}
{%- for part in content -%}
{%- if part.type == 'text' and part.text -%}
{%- set hardwon.text = hardwon.text + '\\n' + part.text -%}
{%- elif part.type != 'text' -%}
{%- set hardwon.parts = hardwon.parts + [{'type': 'text', 'text': hardwon.text + '\\n'}, part] -%}
{%- set hardwon.text = '' -%}
{%- endif -%}
{%- endfor -%}
{%- endfor -%}
{%- if hardwon.text -%}{%- set hardwon.parts = hardwon.parts + [{'type': 'text', 'text': hardwon.text}] -%}{%- endif -%}
{%- set add_generation_prompt = true -%}
{%- set enable_thinking = false -%}
"""
IN_PARTS = "{%- set messages = [{'role': 'user', 'content': hardwon.parts}] -%}"
INLINE = """
{%- set hardwon.whole = '' -%}
{%- for part in hardwon.parts -%}
{%- set hardwon.whole = hardwon.whole + (part.text if part.type == 'text' else MARKS.get(part.type, '')) -%}
{%- endfor -%}
"""
AS_TEXT = INLINE + "{%- set messages = [{'role': 'user', 'content': [{'type': 'text', 'text': hardwon.whole}]}] -%}"
AS_STRING = INLINE + "{%- set messages = [{'role': 'user', 'content': hardwon.whole}] -%}"
FORMS = (IN_PARTS, AS_TEXT, AS_STRING)  # as `Prompts.form` counts them
# Of a model that was never taught a conversation: what `Prompts.text` says to it. It takes strings and nothing else.
PLAIN = "{{ bos_token or '' }}{% for message in messages %}{{ '' + message.content }}{% endfor %}{{ '\\n\\nAnswer:' }}"
# Nothing that a template says itself. Of several lines: a template that takes strings and nothing else writes a list of parts
# as Python's repr of it, in which every word arrives, but with the line break as a backslash and a letter.
PROBE = ("first\n61803", "second\n39887", "third\n49894")
REFUSES = (TemplateError, TypeError, ValueError, KeyError, AttributeError)  # what a template raises that wants another form


def arrives(text: str, marks: Sequence[str]) -> bool:
    """Whether all that was given to a template stands in what it made, as it was and in its order.

    >>> said = PROBE[0]
    >>> arrives(f"USER: {said}", [said]), arrives(f"USER: {[said]}", [said])
    (True, False)
    """
    place = 0
    for mark in marks:
        found = text.find(mark, place)
        if found < 0:
            return False
        place = found + len(mark)
    return True


@dataclass(frozen=True)
class Asked:
    """What a saved reranker is asked.

    Attributes:
        mode: what it was made for.
        question: about a pair.
        listing: about a list.
    """

    mode: Mode = "pairwise"
    question: Question = field(default_factory=Question)
    listing: Listing = field(default_factory=Listing)


def asked(template: str) -> Asked | None:
    """What stands in a template that `wrapped` made; None in any other.

    Raises:
        ModelError: a newer version of hardwon made it.
    """
    if not template.startswith(START):
        return None
    found = json.loads(template[len(START) : template.index(END)])
    try:
        return Asked(found["mode"], Question(**found["question"]), Listing(**found["listing"]))
    except (KeyError, TypeError) as error:
        raise ModelError(
            f"this model was saved by another version of hardwon, whose settings are not known here: {error}"
        ) from error


def original(template: str) -> str:
    """The template that `wrapped` was given."""
    return template.partition(LAST)[2].partition(TAIL)[0] if template.startswith(START) else template


def wrapped(template: str, what: Asked, form: int, marks: dict[str, str], lead: str) -> str:
    """A template that also takes a query and a document.

    Args:
        template: the model's own.
        what: it is asked.
        form: see `Prompts.form`.
        marks: see `Prompts.marks`.
        lead: see `Prompts.lead`.
    """
    said = json.dumps(asdict(what), sort_keys=True).replace("#}", "#\\u007d")
    front = START + said + END + PAIR.replace("QUESTION", ascii(what.question.text))
    front += FORMS[form].replace("MARKS", ascii(marks)) + "{%- endif -%}" + LAST
    return front + original(template) + (TAIL + "{% if hardwon.pair %}" + lead + "{% endif %}" if lead else "")
