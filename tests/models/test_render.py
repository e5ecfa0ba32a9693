import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hardwon.errors import ModelError
from hardwon.items import Item
from hardwon.models.render import inert, payload, words

SPECIAL = ("<image>", "[CLS]", "[SEP]", "<|im_end|>", "</s>")


@given(st.lists(st.sampled_from([*SPECIAL, "<", "im", "age>", "[", "SEP]", " ", "red"]), max_size=12).map("".join))
def test_no_special_token_is_left(text):
    made = inert(text, SPECIAL)
    assert not any(token in made for token in SPECIAL)
    assert made.replace(" ", "") == text.replace(" ", "")


@given(st.text(max_size=40).filter(lambda text: not any(token in text for token in SPECIAL)))
def test_other_text_is_untouched(text):
    assert inert(text, SPECIAL) == text


def test_special_tokens_of_one_character_are_characters():
    assert inert("a $ b", ("$",)) == "a $ b"


def test_instruction_comes_first():
    assert words(Item(text="a kite", instruction="Find:"), ()) == "Find: a kite"
    assert words(Item(text="a kite"), ()) == "a kite"
    assert words(Item(text="x <image>", instruction="[SEP]"), SPECIAL) == "[ SEP] x < image>"


def png(colour):
    file = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(file, "PNG")
    return file.getvalue()


def test_payload_names_its_parts():
    red, blue = png("red"), png("blue")
    assert payload(Item(text="http://x/y.png"), (), ("text",)) == {"text": "http://x/y.png"}
    one = payload(Item(images=(red,)), (), ("text", "image"))
    assert list(one) == ["image"]
    assert one["image"].getpixel((0, 0)) == (255, 0, 0)
    two = payload(Item(text="both", images=(red, blue)), (), ("text", "image"))
    assert two["text"] == "both"
    assert [picture.getpixel((0, 0)) for picture in two["image"]] == [(255, 0, 0), (0, 0, 255)]


def test_a_picture_needs_a_model_that_sees():
    with pytest.raises(ModelError, match="this model reads text, audio only"):
        payload(Item(images=(png("red"),)), (), ("text", "audio"))
