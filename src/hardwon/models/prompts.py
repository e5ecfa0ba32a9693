"""From pairs to what a chat model reads: its template, its processor, and the tokens of the two answers."""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from hardwon.errors import JudgeError, ModelError
from hardwon.items import Item
from hardwon.models.length import GUESS, PictureTokens
from hardwon.models.loading import control_tokens
from hardwon.models.question import Part, Question, Shown, messages, parts
from hardwon.models.render import Show, as_shown, refuse_parts
from hardwon.models.scorer import Pair
from hardwon.models.template import PROBE, REFUSES, arrives
from hardwon.pictures import picture_size

LETTERS = 4  # of a token, about
Features = dict[str, Tensor]
Form = Callable[[Sequence[Part]], list[dict[str, Any]]]


class Prompts:
    """The prompts of one model.

    Args:
        processor: of transformers, for text and pictures; or a tokenizer, of a model that reads text only.
        question: what is asked.
        picture_tokens: how many tokens pictures come to.

    Attributes:
        question: see above.
        modalities: what the model reads.
        special: strings that its tokenizer takes for something else than text.
        form: number of the way in which prompts are handed to the template: in parts, as one text of a list, as a string.
        lead: blank that stands between a prompt and the answer where that is no part of the answer's first token.
        marks: what stands for a picture or a video in a text.
        answers: ids of the first tokens of the two answers, as they follow a prompt: Yes, No.
        placeholders: ids of the tokens that stand for a picture or a video in a text.

    Raises:
        JudgeError: two answers that begin with the same token, or a chat template that loses what it is given.
    """

    def __init__(self, processor: Any, question: Question, picture_tokens: PictureTokens):
        self.processor, self.question, self._picture_tokens = processor, question, picture_tokens
        self.tokenizer: Any = getattr(processor, "tokenizer", processor)
        seen = ("image", "video") if processor is not self.tokenizer else ()
        self.marks = {kind: mark for kind in seen if (mark := getattr(processor, f"{kind}_token", None))}
        readers = {kind for kind in seen if getattr(processor, f"{kind}_processor", None) is not None}
        # A processor may keep the token of its videos to itself; that of its pictures it always has, or the template knows it.
        self.modalities = ("text", *(kind for kind in seen if kind in readers and (kind == "image" or kind in self.marks)))
        self.special = control_tokens(self.tokenizer, processor if seen else None)
        self.placeholders = {int(self.tokenizer.convert_tokens_to_ids(mark)) for mark in self.marks.values()}
        owners = [part for part in (processor, self.tokenizer) if getattr(part, "chat_template", None)]
        self._template: Any = owners[0] if owners else None
        self.lead = ""
        self.form, self._form = self._settle_form()
        self.answers = self._settle_answers()

    def identity(self) -> list[str]:
        """Everything around the weights that an answer depends on."""
        inner = getattr(self.tokenizer, "backend_tokenizer", None)
        made = [self.question.fingerprint, str(getattr(self._template, "chat_template", "")), f"form {self.form}"]
        made.append(inner.to_str() if inner is not None else repr(self.tokenizer))
        for name in ("image_processor", "video_processor"):
            part = getattr(self.processor, name, None)
            if part is not None:  # the class too: PIL and torchvision give slightly different pixels
                made += [type(part).__name__, str(part.to_dict())]
        return made

    def check(self, row: Sequence[Item]) -> None:
        """Refuse what the model cannot read, by its parts and the headers of its pictures; see `Body.check`."""
        for item in row:
            shown = as_shown(item, self.modalities)
            refuse_parts(shown, self.modalities)
            if shown.pictures and self._template is None and not self.marks:
                raise ModelError(
                    f"item {item.key[:12]} holds a picture, but the model has neither a chat template nor a token that says "
                    "where it goes: copy chat_template.jinja from the original model"
                )
            for picture in shown.images:
                self._picture_tokens.known(picture)
            for frame in shown.video:
                picture_size(frame)

    def cost(self, item: Item) -> int:
        """Tokens of an item, about."""
        shown = as_shown(item, self.modalities)
        seen = self._picture_tokens.of(shown.images)
        seen = GUESS * len(shown.images) if seen is None else seen
        return (len(item.instruction) + len(item.text)) // LETTERS + 1 + seen + GUESS * len(shown.video) // 2

    def kind(self, row: Sequence[Item]) -> tuple[int, ...]:
        """How many pictures and frames query and candidate hold; pairs of one kind can be read in one batch."""
        shown = [as_shown(item, self.modalities) for item in row]
        return tuple(count for item in shown for count in (len(item.images), len(item.video)))

    def parts(self, pair: Pair) -> tuple[Part, ...]:
        """See `question.parts`."""
        query, candidate = (as_shown(item, self.modalities) for item in pair)
        return parts(self.question, query, candidate, self.special)

    def text(self, prompt: Sequence[Part]) -> str:
        """What the chat template makes of a prompt, with one placeholder for every picture or video."""
        if self._template is None:
            return f"{self._inline(prompt)}\n\nAnswer:{self.lead}"
        return self._rendered(self._form(prompt)) + self.lead

    def features(self, prompts: Sequence[Sequence[Part]], show: Show, looks: Any = None) -> Features:
        """Model inputs of some prompts of one kind, filled up at the end.

        Args:
            prompts: see `parts`.
            show: decodes a picture.
            looks: takes the place of the image processor.
        """
        texts = [self.text(prompt) for prompt in prompts]
        # At the end, so that positions are those of a prompt alone.
        settings = {"padding": True, "padding_side": "right", "return_tensors": "pt", **self._around(texts[0])}
        if self.processor is self.tokenizer:
            return dict(self.tokenizer(texts, **settings))
        shown = [[part for part in prompt if isinstance(part, Shown)] for prompt in prompts]
        images = [[show(p) for part in row if part.kind == "image" for p in part.pictures] for row in shown]
        films = [part for row in shown for part in row if part.kind == "video"]
        videos = [self._frames(part, self._least(films), show) for part in films]
        given: dict[str, Any] = {"images": images} if any(images) else {}
        if videos:  # every frame counts
            given |= {"videos": videos, "do_sample_frames": False}
        processor = self.processor
        if looks is not None:
            processor = copy.copy(processor)
            processor.image_processor = looks
        made = processor(text=texts, **given, **settings)
        return {name: torch.as_tensor(value) for name, value in made.items()}

    def ids(self, text: str) -> list[int]:
        """Tokens of a rendered prompt, placeholders as they stand."""
        return list(self.tokenizer(text, verbose=False, **self._around(text))["input_ids"])

    def _around(self, text: str) -> dict[str, bool]:
        # Most templates write the first token of a text themselves; it must not stand there twice.
        first = getattr(self.tokenizer, "bos_token", None)
        return {"add_special_tokens": False} if first and text.startswith(first) else {}

    def _least(self, films: Sequence[Shown]) -> int:
        """Frames that every video of a batch needs."""
        videos: Any = getattr(self.processor, "video_processor", None)
        if "video_grid_thw" in getattr(videos, "model_input_names", ()):
            return int(getattr(videos, "temporal_patch_size", None) or 1)
        return max((len(part.pictures) for part in films), default=1)  # they are laid on top of each other

    def _frames(self, part: Shown, least: int, show: Show) -> list[Image.Image]:
        """All frames of a video; the last one again until there are enough."""
        frames = [show(picture) for picture in part.pictures]
        return frames + frames[-1:] * (least - len(frames))

    def _inline(self, prompt: Sequence[Part]) -> str:
        """A prompt as one string, with the processor's own placeholders."""
        return "".join(part if isinstance(part, str) else self.marks.get(part.kind, "") for part in prompt)

    def _rendered(self, talk: list[dict[str, Any]], opened: bool = True) -> str:
        # A model that thinks first would say its thoughts and not the answer, unless its template is told.
        told = {"enable_thinking": False} if "enable_thinking" in str(self._template.chat_template) else {}
        return str(self._template.apply_chat_template(talk, tokenize=False, add_generation_prompt=opened, **told))

    def _forms(self) -> Iterator[Form]:
        """Ways to hand a prompt to a template, the best first."""
        yield lambda prompt: messages(prompt, lambda shown: [{"type": shown.kind}])
        # Templates of LLaVA put all pictures before all text, so that nobody could say whose they are; those of models that
        # read text only want a string.
        yield lambda prompt: messages([self._inline(prompt)], lambda shown: [])
        yield lambda prompt: [{"role": "user", "content": self._inline(prompt)}]

    def _settle_form(self) -> tuple[int, Form]:
        """The first way in which everything arrives in its place, and its number."""
        forms = list(self._forms())
        if self._template is None:
            return 0, forms[0]
        kinds = [kind for kind in self.modalities if kind != "text"]
        probe: list[Part] = [PROBE[0]]
        for kind in kinds:
            probe += [Shown(kind, ()), PROBE[1], Shown(kind, ()), PROBE[2]]
        marks = [part if isinstance(part, str) else self.marks.get(part.kind, "") for part in probe]
        for number, form in enumerate(forms):
            try:
                made = self._rendered(form(probe))
            except REFUSES:  # a template that wants another form
                continue
            if arrives(made, marks):
                return number, form
        raise JudgeError("the model's chat template loses text or pictures of a user's turn: take one that keeps their order")

    def _settle_answers(self) -> tuple[int, int]:
        question = self.question
        yes, no = (self._first_token(word) for word in (question.yes, question.no))
        if yes == no is not None and not self.tokenizer.decode([yes]).strip():
            self.lead = " "  # a tokenizer with a token for the blank: then it belongs to the prompt
            yes, no = (self._first_token(word) for word in (question.yes, question.no))
        for word, token in ((question.yes, yes), (question.no, no)):
            if token is None or token == getattr(self.tokenizer, "unk_token_id", None):
                raise JudgeError(
                    f"the model's tokenizer has no token for the answer {word!r}, so that the model cannot be heard: choose "
                    "words that it can write with Question(yes=..., no=...)"
                )
        assert yes is not None and no is not None
        if yes == no:
            raise JudgeError(
                f"the answers {question.yes!r} and {question.no!r} begin with the same token "
                f"({self.tokenizer.convert_ids_to_tokens(yes)!r}, id {yes}), so that the model cannot be heard: "
                "choose two others with Question(yes=..., no=...)"
            )
        return yes, no

    def only_token(self, word: str) -> int | None:
        """Id of the token that an answer is where it follows the prompt; None if it is several, or none that is known."""
        made = self._tokens(word)
        return made[0] if len(made) == 1 and made[0] != getattr(self.tokenizer, "unk_token_id", None) else None

    def _first_token(self, word: str) -> int | None:
        """Id of the token with which an answer begins where it follows the prompt."""
        return next(iter(self._tokens(word)), None)

    def _tokens(self, word: str) -> list[int]:
        """Ids of an answer's tokens where it follows the prompt."""
        text = self.text([PROBE[0]])
        before, answer = self.ids(text), self._answer(text, word)
        after = self.ids(text + answer)
        if after[: len(before)] == before and len(after) > len(before):
            return after[len(before) :]
        # The answer would melt together with the end of the prompt, whose tokens are there already.
        return list(self.tokenizer(answer, add_special_tokens=False)["input_ids"])

    def _answer(self, text: str, word: str) -> str:
        """The answer with the blank before it that the template puts there, or that ordinary writing would."""
        turns: tuple[Any, ...] = ([{"type": "text", "text": word}], word) if self._template is not None else ()
        for content in turns:
            try:
                whole = self._rendered([*self._form([PROBE[0]]), {"role": "assistant", "content": content}], opened=False)
            except REFUSES:
                continue
            blank, found, _ = whole.removeprefix(text).partition(word)
            if whole.startswith(text) and found and not blank.strip():
                return blank + word
        return word if not text or text[-1].isspace() or text.endswith(self.special) else f" {word}"


class Once:
    """Takes the place of an image processor: looks once at pictures that stand in many prompts.

    Only where what it says of several pictures is what it says of each, one after the other. Else all is left to the real one.

    Args:
        real: the model's image processor.
        kept: whether a picture will be seen again.
    """

    def __init__(self, real: Any, kept: Callable[[Image.Image], bool]):
        self._real, self._kept = real, kept
        self._said: dict[int, tuple[Image.Image, dict[str, Tensor]]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def __call__(self, images: Any, **settings: Any) -> Any:
        """As the real one."""
        from transformers import BatchFeature

        flat = [one for group in images for one in (group if isinstance(group, (list, tuple)) else [group])]
        if not hasattr(self._real, "merge_size"):  # not of the kind that lays the patches of pictures one after the other
            return self._real(images, **settings)
        said = [self._look(one, settings) for one in flat]
        if any(set(one) != {"pixel_values", "image_grid_thw"} for one in said):
            return self._real(images, **settings)
        return BatchFeature({name: torch.cat([one[name] for one in said]) for name in said[0]})

    def _look(self, picture: Image.Image, settings: dict[str, Any]) -> dict[str, Tensor]:
        if id(picture) in self._said:
            return self._said[id(picture)][1]
        made = {name: torch.as_tensor(value) for name, value in self._real([picture], **settings).items()}
        if self._kept(picture):
            self._said[id(picture)] = (picture, made)  # with the picture: its id is its own only while it lives
        return made
