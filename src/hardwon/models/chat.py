"""A chat model as a reranker: loaded, wrapped as a `CrossEncoder`, asked, and heard at the first token of its answer.

Why not sentence-transformers' own rendering: `CrossEncoder` has the right parts, `Transformer` with a language model's head and
`LogitScore`, and whatever is saved here loads there (see `template`). But its rendering cuts the end of what is too long, which
is the candidate's; a template that puts all pictures first loses whose they are; and it reads a query again with each of its
candidates. `Judge` does all of that, so a reranker is heard by the same code.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from hardwon.errors import ModelError
from hardwon.items import Item
from hardwon.models.body import Body
from hardwon.models.eyes import ChatEye, eye_of, mark
from hardwon.models.hearing import heard
from hardwon.models.judge import Judge
from hardwon.models.length import length, share_of, shortened
from hardwon.models.options import Options
from hardwon.models.precision import Precision
from hardwon.models.preflight import refuse
from hardwon.models.prompts import LETTERS, Features
from hardwon.models.question import Listing, Part, Question, Shown, list_parts
from hardwon.models.render import as_shown, inert
from hardwon.models.scorer import Pair
from hardwon.models.template import PLAIN, Asked, Mode, asked, wrapped
from hardwon.models.vision import VisionCache
from hardwon.pictures import open_picture

AROUND = 8  # tokens around an item in a prompt, about
UNASKED = -1  # in place of the tokens of the two answers, until a `Chat` has found them
LEAST = 16  # tokens of a text that have to be seen of it, or else its list is read in smaller windows
SPARE = 4  # tokens that are left free: two texts may come to one more side by side than one by one

Parts = Callable[[Item, Sequence[Item]], Sequence[Part]]


def is_chat(path: str | Path) -> bool:
    """Whether a folder or a name on the hub holds a model that generates text, and no reranker of another kind.

    Anything that cannot be read is none: whoever loads it says what is wrong.
    """
    import transformers
    from sentence_transformers.util import is_sentence_transformer_model

    folder = Path(path)
    if (folder / "modules.json").exists() or (not folder.is_dir() and is_sentence_transformer_model(str(path))):
        return False
    try:
        config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=folder.is_dir())
    except (OSError, ValueError, KeyError):
        return False
    made = getattr(config, "architectures", None) or ("",)
    known = (transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, transformers.MODEL_FOR_CAUSAL_LM_MAPPING)
    return made[0].endswith(("ForCausalLM", "ForConditionalGeneration")) and any(type(config) in kinds for kinds in known)


def chat_model(name: str, *, device: str | None, trust_remote_code: bool, local_files_only: bool, model_kwargs: Any) -> Any:
    """A `CrossEncoder` of a model that generates text, as sentence-transformers would load one that was saved as such."""
    import transformers
    from sentence_transformers import CrossEncoder
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.cross_encoder.modules import LogitScore

    told = {"trust_remote_code": trust_remote_code, "local_files_only": local_files_only}
    config = transformers.AutoConfig.from_pretrained(name, **told)
    sees = type(config) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    reader: Any = transformers.AutoProcessor if sees else transformers.AutoTokenizer
    # A model that was never taught a conversation gets the simplest template there is: what is saved has to have one.
    missing = {} if _owner(reader.from_pretrained(name, **told)) is not None else {"chat_template": PLAIN}
    transformer = Transformer(
        name,
        transformer_task="any-to-any" if sees else "text-generation",
        model_kwargs={**told, **model_kwargs},
        processor_kwargs={**told, **missing},
        config_kwargs=dict(told),
    )
    return CrossEncoder(modules=[transformer, LogitScore(UNASKED, UNASKED)], device=device)


def open_body(path: str | Path, device: str | None, vision_cache: Path | None, precision: Precision, options: Options) -> Body:
    """A reranker of any kind: one that was saved as such, or a chat model that nobody has made one of yet."""
    from sentence_transformers import CrossEncoder

    return Body.load(chat_model if is_chat(path) else CrossEncoder, path, device, vision_cache, precision, options)


def speaks(body: Body) -> bool:
    """Whether what was opened is a chat model that is to be asked: one that came as such, or that was saved by us."""
    score = body.model[-1]
    if type(score).__name__ != "LogitScore":
        return False
    owner = _owner(body.processor)
    return score.true_token_id == UNASKED or (owner is not None and asked(owner.chat_template) is not None)


def asked_of(body: Body) -> Asked:
    """What a model has been saved with, or what is asked of one that nobody has made a reranker of yet."""
    owner = _owner(body.processor)
    return (asked(owner.chat_template) if owner is not None else None) or Asked()


def _owner(processor: Any) -> Any:
    """Whichever of a processor and its tokenizer has the chat template."""
    parts = (processor, getattr(processor, "tokenizer", None))
    return next((part for part in parts if isinstance(getattr(part, "chat_template", None), str)), None)


class Chat:
    """A chat model that is asked of pairs or lists.

    Args:
        body: holds it: a `CrossEncoder` of a `Transformer` and a `LogitScore`.
        mode: what it is going to be used for.
        question: about a pair; what the model was saved with, or else hardwon's own, if None.
        listing: about a list; as `question`.

    Attributes:
        body: see above.
        judge: asks it of pairs.
        asked: all that it is asked.
    """

    def __init__(self, body: Body, mode: Mode, question: Question | None = None, listing: Listing | None = None):
        self.body = body
        owner = _owner(body.processor)
        before = asked_of(body)
        self.asked = Asked(mode, question or before.question, listing or before.listing)
        training = body.transformer.training
        self.judge = Judge(body.transformer, body.processor, self.asked.question)
        body.transformer.train(training)
        prompts = self.judge.prompts
        self.judge.max_length = min(self.judge.max_length, int(body.model.max_seq_length))
        owner.chat_template = wrapped(owner.chat_template, self.asked, prompts.form, prompts.marks, prompts.lead)
        score = body.model[-1]
        score.true_token_id, score.false_token_id = prompts.answers
        self._told = False
        self._seen: VisionCache | None = None
        self._keeps = False

    @property
    def prompts(self) -> Any:
        """How the model is asked."""
        return self.judge.prompts

    def kind(self, row: Sequence[Item]) -> tuple[int, ...]:
        """How many pictures and frames items hold; rows of one kind can be read in one batch."""
        return self.prompts.kind(row)

    def cost(self, row: Sequence[Item], wording: int) -> int:
        """Tokens of a prompt of items and so many letters around them, about."""
        return min(wording // LETTERS + sum(self.prompts.cost(item) + AROUND for item in row), self.judge.max_length)

    def pair(self, query: Item, item: Item) -> Pair:
        """A pair as it is shown to the model: with an instruction, and cut where it is too long."""
        query, item = self.fitted(self.instructed(query), [item], lambda query, items: self.prompts.parts((query, items[0])))
        return query, item

    def odds(self, pairs: Sequence[Pair]) -> Tensor:
        """Log-odds of Yes of pairs of one kind, [n], with a graph."""
        shown = [self.prompts.parts(self.pair(*pair)) for pair in pairs]
        logits = self.logits(shown, self.prompts.answers)
        return logits[:, 0] - logits[:, 1]

    def score_pairs(self, pairs: Sequence[Pair], progress: str) -> np.ndarray:
        """Log-odds of Yes; see `Reranker.score_pairs`."""
        refuse(self.body, [item for pair in pairs for item in pair])
        shown = {key: self.pair(*pair) for pair in pairs if (key := (pair[0].key, pair[1].key))}
        rows = [shown[query.key, item.key] for query, item in pairs]
        made = self.judge.judge(rows, progress=progress)
        if made.problems:
            n, why = next(iter(made.problems.items()))
            names = " and ".join(f"item {item.key[:12]} ({item.label})" for item in pairs[n])
            raise ModelError(f"no usable score for {len(made.problems)} pairs, first for the pair of {names}: {why}")
        return made.odds

    def list_parts(self, query: Item, items: Sequence[Item], labels: Sequence[str]) -> tuple[Part, ...]:
        """A list as it stands in a prompt."""
        seen, *shown = (as_shown(item, self.prompts.modalities) for item in (query, *items))
        return list_parts(self.asked.listing, seen, shown, labels, self.prompts.special)

    def instructed(self, query: Item) -> Item:
        """The query with the model's own instruction if it brings none."""
        said = self.body.prompt(query)
        return replace(query, instruction=said.strip()) if said else query

    def fitted(self, query: Item, items: Sequence[Item], parts: Parts) -> list[Item]:
        """Query and candidates whose texts leave room for each other: those above an equal share are cut to it.

        What short texts leave free, long ones share; pictures, instructions and the words around them stay whole. The first
        time that something is cut there is a warning.

        Args:
            query: with its instruction.
            items: all that stand in one prompt.
            parts: makes the prompt of them.

        Raises:
            ModelError: no room for any text; names query and candidates.
        """
        row = [query, *items]
        if self._surely_fits(row, parts):
            return row
        special, tokenizer = self.prompts.special, self.prompts.tokenizer
        texts = [inert(item.text, special) for item in row]
        room = self._room(row, parts)
        lengths = [length(text, tokenizer, max(room, 1)) for text in texts]
        if sum(lengths) <= room:
            return row
        share = share_of(lengths, room)
        if share < 1:
            names = " and ".join(f"item {item.key[:12]} ({item.label})" for item in row[:2])
            more = f" and {len(row) - 2} others" if len(row) > 2 else ""
            raise ModelError(
                f"{names}{more} leave no room for text in the {self.judge.max_length} tokens that the model takes: make "
                "pictures smaller (max_pixels), or show it fewer of them"
            )
        if not self._told:
            self._told = True
            warnings.warn(
                f"query and candidates come to more than the {self.judge.max_length} tokens that the model takes: the "
                f"longest texts are cut to equal shares, here of {share} tokens, and so on without another word",
                stacklevel=2,
            )
        return [
            replace(item, text=shortened(text, tokenizer, share)) if tokens > share else item
            for item, text, tokens in zip(row, texts, lengths, strict=True)
        ]

    def holds(self, query: Item, items: Sequence[Item], parts: Parts) -> bool:
        """Whether there is room for the beginning of every text, at least; arguments as `fitted`."""
        row = [query, *items]
        return self._surely_fits(row, parts) or self._room(row, parts) >= sum(min(len(item.text), LEAST) for item in row)

    def _surely_fits(self, row: Sequence[Item], parts: Parts) -> bool:
        """True of nearly all prompts, without counting tokens: one is at least a byte."""
        said = self.prompts.text(parts(row[0], row[1:]))
        return self._picture_tokens(row) + len(said.encode()) + SPARE <= self.judge.max_length

    def _room(self, row: Sequence[Item], parts: Parts) -> int:
        """Tokens that are left for texts."""
        bare = [replace(item, text="." if item.text else "") for item in row]
        frame = len(self.prompts.ids(self.prompts.text(parts(bare[0], bare[1:]))))
        texts = sum(bool(item.text) for item in row)
        return self.judge.max_length - SPARE - self._picture_tokens(row) - frame - texts

    def _picture_tokens(self, row: Sequence[Item]) -> int:
        shown = [as_shown(item, self.prompts.modalities) for item in row]
        # Together: LLaVA-OneVision looks at a picture in tiles only if it is alone in a prompt.
        tokens = self.body.picture_tokens.of([picture for item in shown for picture in item.images]) or 0
        return tokens + sum(self.body.video_tokens(item.video) for item in shown if item.video)

    def features(self, prompts: Sequence[Sequence[Part]]) -> Features:
        """Model inputs of prompts with as many pictures each, on the model's device; kept features of pictures are used."""
        kept = self.body.vision or (self._seen if self._keeps else None)
        eye = None if kept is None or not kept.eye.usable else kept.eye
        films = any(isinstance(part, Shown) and part.kind == "video" for prompt in prompts for part in prompt)
        model = self.body.transformer
        if kept is None or films or not isinstance(eye, ChatEye):
            made = self.prompts.features(prompts, open_picture)
        else:
            groups = [[part.pictures for part in prompt if isinstance(part, Shown)] for prompt in prompts]
            records = kept.records([[picture for pictures in group for picture in pictures] for group in groups])
            marks = iter([mark(record) for record in records])
            made = eye.put_back(self.prompts.features(prompts, lambda _: next(marks), eye.remembering()), records)

        def moved(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return value.to(model.device, model.dtype if value.is_floating_point() else None)

        return {name: moved(value) for name, value in made.items()}

    @contextlib.contextmanager
    def looking_once(self) -> Iterator[None]:
        """Within the block a picture that stands in several prompts is looked at once, where the architecture allows that."""
        if self._seen is None and (eye := eye_of(self.body.model[0], self.body.picture_tokens)) is not None:
            self._seen = VisionCache(eye)
        self._keeps = True
        try:
            yield
        finally:
            self._keeps = False
            if self._seen is not None:
                self._seen.forget()

    def logits(self, prompts: Sequence[Sequence[Part]], answers: Sequence[int]) -> Tensor:
        """Logits of some answers to prompts with as many pictures each, [n a], float32, with a graph.

        Raises:
            ModelError: prompts that the processor refuses, or that are too long.
        """
        try:
            features = self.features(prompts)
        except ValueError as error:
            raise ModelError(f"the model's processor refuses a prompt: {error}") from error
        lengths = features["attention_mask"].sum(1)
        if int(lengths.max()) > self.judge.max_length:
            raise ModelError(
                f"a prompt comes to {int(lengths.max())} tokens, but the model takes {self.judge.max_length}: make pictures "
                "smaller (max_pixels), or show it fewer of them"
            )
        return heard(self.body.transformer, features | {"use_cache": False}, lengths - 1, answers)[0]
