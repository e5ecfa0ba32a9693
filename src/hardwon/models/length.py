"""How many tokens an item comes to, and text that is cut so that nothing else is."""

import warnings
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from PIL import Image

from hardwon.errors import ModelError
from hardwon.items import Picture, picture_key
from hardwon.pictures import picture_size

GUESS = 256  # tokens of a picture that takes no place in a text, so that nobody can say: for the budget of a batch only
PROBE = (64, 64)  # pixels
REMEMBERED = 65_536  # pictures, or sizes of them: a server meets new ones for as long as it runs
THINNEST = 200  # times as long as wide, as Qwen's processors allow
LETTERS, MOST_LETTERS = 16, 64  # of a token: more than nearly all have, more than any of a text has


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
        self._by_key: dict[str, tuple[int, int]] = {}
        self._by_size: dict[tuple[int, int], int | None] = {}
        self._by_sizes: dict[tuple[tuple[int, int], ...], int | None] = {}

    def __call__(self, picture: Picture) -> int:
        """Tokens of a picture that is alone in its item; a guess where the processor cannot say."""
        return self.known(picture) or GUESS

    def of(self, pictures: Sequence[Picture]) -> int | None:
        """Tokens of all the pictures of one item, 0 of none; otherwise as `known`."""
        known = [self.known(picture) for picture in pictures]
        if None in known:
            return None
        if len(known) < 2 or self._additive:
            return sum(tokens or 0 for tokens in known)
        return self._counted(tuple(self._size(picture) for picture in pictures))

    @cached_property
    def _additive(self) -> bool:
        # LLaVA-OneVision looks at a picture in tiles only if it is alone.
        return bool(self.fixed) or self._counted((PROBE, PROBE)) == 2 * (self._count(*PROBE) or 0)

    def known(self, picture: Picture) -> int | None:
        """Tokens of a picture that is alone in its item; None if the model does not put pictures among words (a dual encoder).

        Raises:
            BadMedia: a picture whose header cannot be read.
            ModelError: a shape that the processor refuses.
        """
        if self.fixed:
            return self.fixed
        size = self._size(picture)
        if size not in self._by_size:
            _make_room(self._by_size)
            try:
                self._by_size[size] = self._count(*size)
            except ValueError as error:
                name = _named(picture)
                raise ModelError(f"the model's processor refuses {name} of {size[0]} x {size[1]} pixels: {error}") from error
        return self._by_size[size]

    def check(self, picture: Picture) -> None:
        """Refuse a picture so thin that the processor would blow it up.

        CLIP's first scales the short side to its own size, then cuts off most of the long one: a strip of 1 x 3,000 pixels
        became 224 x 672,000, in 18 s and 1.4 GB; one of 1 x 200 takes 0.7 s and 0.1 GB.

        Raises:
            BadMedia: a picture whose header cannot be read.
            ModelError: such a picture.
        """
        size = dict(getattr(getattr(self.processor, "image_processor", None), "size", None) or {})
        if not size.get("shortest_edge") or size.get("longest_edge"):
            return
        width, height = self._size(picture)
        if max(width, height) > THINNEST * min(width, height):
            raise ModelError(
                f"{_named(picture)} of {width} x {height} pixels is too thin: this model's processor scales the short side up, "
                f"so the aspect ratio must be at most {THINNEST}; crop it"
            )

    def _size(self, picture: Picture) -> tuple[int, int]:
        key = picture_key(picture)
        if key not in self._by_key:
            _make_room(self._by_key)
            self._by_key[key] = picture_size(picture)
        return self._by_key[key]

    def _count(self, width: int, height: int) -> int | None:
        # Two ways to ask without making pixels, neither of them documented: if they are there, they have to work.
        count: Any = getattr(self.processor, "_get_num_multimodal_tokens", None)
        if count is not None:
            return int(count(image_sizes=[(height, width)]).num_image_tokens[0])
        pictures: Any = getattr(self.processor, "image_processor", None)
        patches: Any = getattr(pictures, "get_number_of_image_patches", None)
        if patches is not None and hasattr(pictures, "merge_size"):
            return int(patches(height, width, {}) // pictures.merge_size**2)
        return self._counted(((width, height),))

    def _counted(self, sizes: tuple[tuple[int, int], ...]) -> int | None:
        """What the processor makes of empty pictures of these sizes: always right, but it takes as long as pictures do."""
        token = getattr(self.processor, "image_token", None)
        if token is not None and sizes not in self._by_sizes:
            _make_room(self._by_sizes)
            blank = [Image.new("RGB", size) for size in sizes]
            made = self.processor(images=[blank], text=[token * len(sizes)], return_tensors="pt")
            self._by_sizes[sizes] = int((made["input_ids"] == self.processor.image_token_id).sum())
        return self._by_sizes.get(sizes)


def _make_room(table: dict[Any, Any]) -> None:
    if len(table) >= REMEMBERED:
        table.clear()


def _named(picture: Picture) -> str:
    return "a picture" if isinstance(picture, bytes) else str(picture)


def readable(text: str, tokenizer: Any, budget: int) -> str:
    """The beginning of a text that is far too long, with all that the first `budget` tokens are made of.

    A tokenizer would look at all of it first: a million letters took up to four seconds. What comes to fewer tokens than one in
    `MOST_LETTERS` letters (blanks, mostly) is cut there.
    """
    enough = budget + 32  # the last tokens may depend on what follows
    for reach in (LETTERS * budget, MOST_LETTERS * budget):
        if len(text) <= reach:
            return text
        made = tokenizer(text[:reach], add_special_tokens=False, truncation=True, max_length=enough)
        if len(made["input_ids"]) == enough:
            break
    return text[:reach]


class VideoTokens:
    """Tokens of videos for one model, found from the frames' headers alone; marks around and between frames are included.

    The processor counts by itself: it is given a tensor of the video's shape that holds no data, which costs next to nothing,
    or a black video where it wants data.

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
        """Tokens of a video, None where the model does not put videos among words.

        Raises:
            BadMedia: a first frame whose header cannot be read.
            ModelError: a shape that the processor refuses.
        """
        width, height = picture_size(video[0])
        shape = (self.frames(video), height, width)
        if shape not in self._by_shape:
            _make_room(self._by_shape)
            try:
                self._by_shape[shape] = self._of_shape(*shape)
            except ValueError as error:
                raise ModelError(
                    f"the model's processor refuses a video of {shape[0]} frames of {width} x {height} pixels: {error}"
                ) from error
        return self._by_shape[shape]

    def frames(self, video: Sequence[Picture]) -> int:
        """Frames that the model is shown of a video: see `least`."""
        return max(len(video), self.least)

    def _of_shape(self, frames: int, height: int, width: int) -> int | None:
        try:
            film = self._tokens({"video": torch.empty(frames, 3, height, width, dtype=torch.uint8, device="meta")})
        except (RuntimeError, TypeError):  # what torch raises where data are asked for; then there have to be some
            film = self._tokens({"video": torch.zeros(frames, 3, height, width, dtype=torch.uint8)})
        return None if film is None else film - (self._tokens({"text": "a"}) or 0) + 1

    def _tokens(self, parts: dict[str, Any]) -> int | None:
        made = self.model.preprocess([parts], processing_kwargs={"text": {"truncation": False, "max_length": None}})
        return len(made["input_ids"][0]) if "input_ids" in made else None


def shortened(text: str, tokenizer: Any, budget: int) -> str:
    """Text of at most `budget` tokens: as much of its beginning as fits."""
    if len(text.encode()) <= budget:  # a token is at least a byte
        return text
    text = readable(text, tokenizer, max(budget, 0))
    encoded = tokenizer(text, add_special_tokens=False, truncation=True, max_length=max(budget, 1), return_offsets_mapping=True)
    end = encoded["offset_mapping"][-1][1] if encoded["offset_mapping"] else 0
    # A letter may be several tokens, of which the last that fits is not the last.
    while end and len(tokenizer(text[:end], add_special_tokens=False)["input_ids"]) > budget:
        end -= 1
    return text[:end]


def length(text: str, tokenizer: Any, most: int) -> int:
    """Tokens of a text; of one that is far too long, something above `most`."""
    return len(tokenizer(text[: 64 * most + 64], add_special_tokens=False, verbose=False)["input_ids"]) if text else 0


def share_of(lengths: Sequence[int], room: int) -> int:
    """The largest share that all lengths can have, where the shorter ones leave the rest to the others.

    >>> share_of([2, 50, 90], 62)
    30
    """
    left, share = room, 0
    waiting = sorted(length for length in lengths if length)
    for n, size in enumerate(waiting):
        share = left // (len(waiting) - n)
        if size > share:
            break
        left -= size
    return share


class Shares:
    """What each of several texts may keep of the room that they share; that something is cut of a pair is said once.

    Args:
        model: a `SentenceTransformer` or `CrossEncoder`.
        tokenizer: its tokenizer.
    """

    def __init__(self, model: Any, tokenizer: Any):
        self.model, self.tokenizer = model, tokenizer
        self._told = False

    def of(self, texts: Sequence[str], room: int | None) -> int | None:
        """Tokens that each text may keep, None where all of them fit as they are.

        Args:
            texts: that stand in one row.
            room: tokens for all of them; what the tokenizer leaves of the model's length if None.
        """
        most = int(self.model.max_seq_length)
        space = most - int(self.tokenizer.num_special_tokens_to_add(pair=len(texts) > 1)) if room is None else room
        if sum(len(text.encode()) for text in texts) <= space:  # a token is at least a byte
            return None
        lengths = [length(text, self.tokenizer, max(space, 1)) for text in texts]
        if sum(lengths) <= space:
            return None
        share = share_of(lengths, space)
        if len(texts) > 1 and not self._told:
            self._told = True
            warnings.warn(
                f"query and candidate come to more than the {most} tokens that the model takes: the longer text is cut, "
                f"or both are to equal shares, here of {share} tokens, and so on without another word",
                stacklevel=2,
            )
        return share
