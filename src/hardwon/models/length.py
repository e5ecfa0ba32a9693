"""How many tokens an item comes to, and text that is cut so that nothing else is."""

from typing import Any

from PIL import Image

from hardwon.errors import ModelError
from hardwon.items import Picture, picture_key
from hardwon.pictures import picture_size

GUESS = 256  # tokens of a picture that takes no place in a text, so that nobody can say: for the budget of a batch only


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
        self._by_key: dict[str, tuple[int, int]] = {}
        self._by_size: dict[tuple[int, int], int | None] = {}

    def __call__(self, picture: Picture) -> int:
        """Tokens of a picture; a guess for a model that does not put pictures among words. Raises as `known`."""
        return self.known(picture) or GUESS

    def known(self, picture: Picture) -> int | None:
        """Tokens of a picture; None if the model does not put pictures among words (a dual encoder).

        Raises:
            BadMedia: a picture whose header cannot be read.
            ModelError: a shape that the processor refuses.
        """
        if self.fixed:
            return self.fixed
        key = picture_key(picture)
        if key not in self._by_key:
            self._by_key[key] = picture_size(picture)
        size = self._by_key[key]
        if size not in self._by_size:
            try:
                self._by_size[size] = self._count(*size)
            except ValueError as error:
                name = "a picture" if isinstance(picture, bytes) else str(picture)
                raise ModelError(f"the model's processor refuses {name} of {size[0]} x {size[1]} pixels: {error}") from error
        return self._by_size[size]

    def _count(self, width: int, height: int) -> int | None:
        # Two ways to ask without making pixels, neither of them documented: if they are there, they have to work.
        count: Any = getattr(self.processor, "_get_num_multimodal_tokens", None)
        if count is not None:
            return int(count(image_sizes=[(height, width)]).num_image_tokens[0])
        pictures: Any = getattr(self.processor, "image_processor", None)
        patches: Any = getattr(pictures, "get_number_of_image_patches", None)
        if patches is not None and hasattr(pictures, "merge_size"):
            return int(patches(height, width, {}) // pictures.merge_size**2)
        return self._counted(width, height)

    def _counted(self, width: int, height: int) -> int | None:
        """What the processor makes of an empty picture of this size: always right, but it takes as long as a picture does."""
        token = getattr(self.processor, "image_token", None)
        if token is None:
            return None
        made = self.processor(images=[Image.new("RGB", (width, height))], text=[token], return_tensors="pt")
        return int((made["input_ids"] == self.processor.image_token_id).sum())


def shortened(text: str, tokenizer: Any, budget: int) -> str:
    """Text of at most `budget` tokens: as much of its beginning as fits."""
    if len(text.encode()) <= budget:  # a token is at least a byte
        return text
    encoded = tokenizer(text, add_special_tokens=False, truncation=True, max_length=max(budget, 1), return_offsets_mapping=True)
    offsets = encoded["offset_mapping"]
    return text[: offsets[-1][1]] if offsets else text
