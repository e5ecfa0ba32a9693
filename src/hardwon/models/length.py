"""How many tokens an item comes to, and text that is cut so that nothing else is."""

import contextlib
from typing import Any

from hardwon.items import Picture, picture_key
from hardwon.pictures import picture_size

GUESS = 256  # tokens of a picture where the processor cannot say


class PictureTokens:
    """Tokens of pictures for one model, found from their headers alone.

    Args:
        processor: the model's, or None.
        config: the model's, or None.

    Attributes:
        fixed: tokens of every picture, 0 where they depend on its size.
    """

    def __init__(self, processor: Any, config: Any):
        self.processor = processor
        self.fixed = int(getattr(config, "image_seq_length", None) or 0)
        self._by_key: dict[str, int | None] = {}

    def __call__(self, picture: Picture) -> int:
        """Tokens of a picture; a guess where the processor cannot say."""
        return self.known(picture) or GUESS

    def known(self, picture: Picture) -> int | None:
        """Tokens of a picture, None where the processor cannot say."""
        if self.fixed:
            return self.fixed
        key = picture_key(picture)
        if key not in self._by_key:
            width, height = picture_size(picture)
            self._by_key[key] = self._of_size(width, height)
        return self._by_key[key]

    def _of_size(self, width: int, height: int) -> int | None:
        # Methods of transformers that are not documented: without them nothing but a budget is off.
        pictures: Any = getattr(self.processor, "image_processor", None)
        with contextlib.suppress(AttributeError, KeyError, NotImplementedError, TypeError, ValueError, IndexError):
            return int(self.processor._get_num_multimodal_tokens(image_sizes=[(height, width)]).num_image_tokens[0])
        with contextlib.suppress(AttributeError, KeyError, NotImplementedError, TypeError, ValueError):
            return int(pictures.get_number_of_image_patches(height, width, {}) // pictures.merge_size**2)
        return None


def shortened(text: str, tokenizer: Any, budget: int) -> str:
    """Text of at most `budget` tokens: as much of its beginning as fits."""
    if len(text.encode()) <= budget:  # a token is at least a byte
        return text
    encoded = tokenizer(text, add_special_tokens=False, truncation=True, max_length=max(budget, 1), return_offsets_mapping=True)
    offsets = encoded["offset_mapping"]
    return text[: offsets[-1][1]] if offsets else text
