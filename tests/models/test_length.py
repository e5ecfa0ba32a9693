"""Text that is cut, against a tokenizer that has read all of it."""

import random
from types import SimpleNamespace

import pytest
import tiny
import vlms
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hardwon.models.length import MOST_LETTERS, PictureTokens, readable, shortened

WORDS = ("red", "fox", " ", "   ", "\n", "x" * 30, "\N{KITE}", "e\u0301", "\x00", ".", "the square is")
TOKENIZERS = {
    "words": tiny.tokenizer,
    "bytes": vlms.qwen_tokenizer,
    "markers": lambda: vlms.generic_tokenizer(("<s>", "</s>"), before="<s>", after="</s>", eos_token="</s>", pad_token="</s>"),
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]()


def tokens(tokenizer, text, budget):
    return tokenizer(text, add_special_tokens=False, truncation=True, max_length=budget)["input_ids"]


@given(seed=st.integers(0, 10**6), budget=st.integers(1, 12), size=st.integers(0, 400))
def test_what_is_left_has_the_same_first_tokens(tokenizer, seed, budget, size):
    rng = random.Random(seed)
    text = " ".join(rng.choices(WORDS, k=size))
    left = readable(text, tokenizer, budget)
    assert text.startswith(left)
    assert tokens(tokenizer, left, budget) == tokens(tokenizer, text, budget)
    short = shortened(text, tokenizer, budget)
    assert text.startswith(short)
    kept, whole = (len(tokenizer(part, add_special_tokens=False)["input_ids"]) for part in (short, text))
    assert min(budget, whole) - 3 <= kept <= budget  # a letter may be four tokens


def test_no_room_leaves_nothing(tokenizer):
    assert [shortened("red \N{KITE}", tokenizer, budget) for budget in (-3, 0)] == ["", ""]


def test_text_that_fits_is_untouched(tokenizer):
    for text in ("", "red square", "red " * 30):
        assert readable(text, tokenizer, 60) == shortened(text, tokenizer, 200) == text


def test_little_is_read_of_what_is_far_too_long(tokenizer):
    for text in ("red " * 10**5, "x" * 10**5, " " * 10**5, "\N{KITE}" * 10**5):
        assert 0 < len(readable(text, tokenizer, 20)) <= MOST_LETTERS * 20


def test_what_is_remembered_of_pictures_has_an_end(monkeypatch):
    monkeypatch.setattr("hardwon.models.length.REMEMBERED", 3)
    counted = []

    class Processor:
        def _get_num_multimodal_tokens(self, image_sizes):
            counted.append(image_sizes[0])
            return SimpleNamespace(num_image_tokens=[image_sizes[0][0]])

    tokens = PictureTokens(Processor(), None)
    drawn = [tiny.encoded(Image.new("RGB", (8, 10 + n))) for n in range(20)]
    assert [tokens(picture) for picture in drawn] == list(range(10, 30))
    assert len(tokens._by_key) <= 3 and len(tokens._by_size) <= 3
    assert tokens(drawn[-1]) == 29 and len(counted) == 20  # still remembered
