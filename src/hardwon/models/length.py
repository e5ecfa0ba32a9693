"""How many tokens an item comes to, and text that is cut so that nothing else is."""

import contextlib
from collections.abc import Sequence
from typing import Any

import torch

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
        each: tokens of each of several pictures of an item, 0 where they are read like a picture alone.
    """

    def __init__(self, processor: Any, config: Any):
        self.processor = processor
        self.fixed = int(getattr(config, "image_seq_length", None) or 0)
        # LLaVA-OneVision cuts a picture into tiles only if it is alone, and is therefore told how many there are.
        told = "batch_num_images" in getattr(getattr(processor, "image_processor", None), "model_input_names", ())
        whole = getattr(processor, "vision_feature_select_strategy", "") != "default"
        self.each = processor.num_image_tokens + whole if told and processor.num_image_tokens else 0
        self._by_key: dict[str, int | None] = {}

    def __call__(self, picture: Picture, alone: bool = True) -> int:
        """Tokens of a picture; a guess where the processor cannot say."""
        return self.known(picture, alone) or GUESS

    def known(self, picture: Picture, alone: bool = True) -> int | None:
        """Tokens of a picture, alone in its item or not; None where the processor cannot say."""
        if self.fixed:
            return self.fixed
        if self.each and not alone:
            return self.each
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


class VideoTokens:
    """Tokens of videos for one model, found from the frames' headers alone; marks around and between frames are included.

    The processor counts by itself: it is given a tensor of the video's shape that holds no data, which costs next to nothing.

    Args:
        model: a `SentenceTransformer` or `CrossEncoder`.

    Attributes:
        least: frames that the processor needs.
        stacked: whether all videos of a batch need the same number of frames.
    """

    def __init__(self, model: Any):
        self.model = model
        videos = getattr(getattr(model[0], "processor", None), "video_processor", None)
        self.least = int(getattr(videos, "temporal_patch_size", None) or 1)
        # Where the processor says how large each video is, they are laid one after the other.
        self.stacked = videos is not None and "video_grid_thw" not in getattr(videos, "model_input_names", ())
        self._by_shape: dict[tuple[int, int, int], int | None] = {}

    def __call__(self, video: Sequence[Picture]) -> int:
        """Tokens of a video; a guess where the processor cannot say."""
        return self.known(video) or GUESS * len(video)

    def known(self, video: Sequence[Picture]) -> int | None:
        """Tokens of a video, None where the processor cannot say."""
        width, height = picture_size(video[0])
        shape = (max(len(video), self.least), height, width)
        if shape not in self._by_shape:
            self._by_shape[shape] = self._of_shape(*shape)
        return self._by_shape[shape]

    def _of_shape(self, frames: int, height: int, width: int) -> int | None:
        # Not every processor takes a tensor without data; then the text is not cut and a budget is off.
        with contextlib.suppress(
            AttributeError, KeyError, NotImplementedError, TypeError, ValueError, IndexError, RuntimeError
        ):
            film = torch.empty(frames, 3, height, width, dtype=torch.uint8, device="meta")
            return self._tokens({"video": film}) - self._tokens({"text": "a"}) + 1
        return None

    def _tokens(self, parts: dict[str, Any]) -> int:
        made = self.model.preprocess([parts], processing_kwargs={"text": {"truncation": False, "max_length": None}})
        return len(made["input_ids"][0])


def shortened(text: str, tokenizer: Any, budget: int) -> str:
    """Text of at most `budget` tokens: as much of its beginning as fits."""
    if len(text.encode()) <= budget:  # a token is at least a byte
        return text
    encoded = tokenizer(text, add_special_tokens=False, truncation=True, max_length=max(budget, 1), return_offsets_mapping=True)
    offsets = encoded["offset_mapping"]
    return text[: offsets[-1][1]] if offsets else text
