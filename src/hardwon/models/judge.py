"""`Judge`: a chat model, asked of each (query, candidate) pair whether they belong together. One pass, nothing is generated."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from hardwon.artifacts import fingerprint
from hardwon.errors import MissingExtra, ModelError
from hardwon.items import Picture
from hardwon.models.calls import RemoteSettings
from hardwon.models.eyes import versions
from hardwon.models.hearing import heard
from hardwon.models.length import PictureTokens
from hardwon.models.loading import ENDLESS, limit_pixels
from hardwon.models.memory import Room
from hardwon.models.options import Dtype, Options
from hardwon.models.prefix import Apart, Beginning, apart, going_on, joined, positions
from hardwon.models.preflight import decoding, refuse
from hardwon.models.prompts import Features, Once, Prompts
from hardwon.models.question import Question
from hardwon.models.remote import RemoteJudge
from hardwon.models.render import Show
from hardwon.models.scorer import Judgements, Pair
from hardwon.models.trusted import refuse_untrusted
from hardwon.models.vision import weights_digest
from hardwon.pictures import open_picture
from hardwon.progress import bar

TOKENS = 8192  # of one forward pass
SAVED = 256  # tokens that have to be saved before a beginning is computed by itself: two passes also cost more than one
# How far the odds of the two ways to compute them may lie apart.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.5}
ELSEWHERE = ("_name_or_path", "transformers_version")  # what says nothing about a model's answers


class Judge:
    """A chat model that answers one question about pairs with Yes or No; both logits are kept as they are.

    Any `image-text-to-text` model that transformers loads, or for texts a plain language model. What the prompts of one query
    begin with is computed once, where the architecture allows that: the first pairs are computed both ways, and where the two
    disagree every pair is computed by itself, with a warning.

    Args:
        model: of transformers, with a language model's head.
        processor: its processor or tokenizer.
        question: what is asked.
        tokens: of one forward pass; fewer after memory ran out.
        share: False computes every prompt by itself, from its first token.
    """

    def __init__(
        self, model: Any, processor: Any, question: Question | None = None, *, tokens: int = TOKENS, share: bool = True
    ):
        self.model = model.eval()
        self.prompts = Prompts(processor, question or Question(), PictureTokens(processor, model.config))
        self.tokens = tokens
        self.max_length = length_of(model, self.prompts.tokenizer)
        self._share = share
        self._agreed: dict[tuple[bool, ...], bool] = {}
        self._digest: tuple[Any, str] | None = None

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        question: Question | None = None,
        dtype: Dtype | None = None,
        device: str | None = None,
        attention: str | None = None,
        max_pixels: int | None = None,
        tokens: int = TOKENS,
        share: bool = True,
    ) -> "Judge":
        """Load a model folder or a name on the hub. Remote code is never run.

        Args:
            path: folder or name, as transformers takes it.
            question: what is asked; hardwon's own words if None.
            dtype: number format of the weights; that of the checkpoint if None. Logits are always computed in float32.
            device: "cpu", "cuda" ...; "auto" spreads a model over all that there is; the best there is if None.
            attention: "eager", "sdpa", "flash_attention_2" ...; what transformers chooses if None.
            max_pixels: width x height that a picture is scaled down to, for models that read pictures in their own size.
            tokens: of one forward pass, about. Fewer need less memory; where it runs out they are halved.
            share: False computes every prompt by itself, from its first token.

        Raises:
            ModelError: nothing there, not such a model, missing weights, or an option that this model cannot have.
            JudgeError: two answers that begin with the same token.
            MissingExtra: the model's processor needs a package that is not installed.
        """
        options = Options(max_pixels=max_pixels, dtype=dtype, attention=attention)
        if tokens < 1:
            raise ModelError(f"tokens must be 1 or more, got {tokens}")
        model, processor = _open(path, options, device)
        if max_pixels is not None:
            limit_pixels(processor, model.config, max_pixels)
        return cls(model, processor, question, tokens=tokens, share=share)

    @staticmethod
    def remote(url: str, model: str = "", *, settings: RemoteSettings | None = None) -> RemoteJudge:
        """A judge behind a server of the OpenAI protocol; see `RemoteJudge`."""
        return RemoteJudge(url, model, settings=settings)

    @property
    def question(self) -> Question:
        """What is asked."""
        return self.prompts.question

    @property
    def fingerprint(self) -> str:
        """Identity of weights, number format, processor and question: changes when an answer may."""
        state = versions(self.model.parameters())
        if self._digest is None or self._digest[0] != state:
            self._digest = (state, weights_digest(self.model))
        config = {name: value for name, value in self.model.config.to_dict().items() if name not in ELSEWHERE}
        around = [type(self.model).__name__, str(self.model.dtype), str(sorted(config.items(), key=str)), str(self.max_length)]
        return fingerprint(["judge", self._digest[1], *around, *self.prompts.identity()])

    def score_pairs(self, pairs: Sequence[Pair], *, progress: str = "") -> np.ndarray:
        """Log-odds of Yes, [n], float32; NaN where there is no answer. Otherwise as `judge`."""
        return self.judge(pairs, progress=progress).odds

    @torch.no_grad()
    def judge(self, pairs: Sequence[Pair], *, progress: str = "") -> Judgements:
        """Logits of both answers for (query, candidate) pairs in any order. Identical pairs are judged once.

        A pair that is too long, or that makes the model give something else than numbers, has NaN and a reason in `problems`.

        Raises:
            BadItems: items that cannot be used, before anything is computed; names them all.
            ModelError: a pair that is too large for memory; names it.
        """
        items = [item for pair in pairs for item in pair]
        refuse(self.prompts, items)
        place: dict[tuple[str, str], int] = {}
        keys = [(query.key, item.key) for query, item in pairs]
        rows = [place.setdefault(key, len(place)) for key in keys]
        work = _Work(self, list(dict(zip(keys, pairs, strict=True)).values()))
        with decoding(self.prompts, items), bar(progress, len(place), "pairs", shown=bool(progress)) as advance:
            for done in work.run():
                advance(done)
        problems = {n: work.problems[row] for n, row in enumerate(rows) if row in work.problems}
        made = work.logits[rows] if rows else work.logits
        return Judgements(made[:, 0].copy(), made[:, 1].copy(), problems)

    def whole(self, features: Features) -> Tensor:
        """Logits of both answers, [n 2], for prompts as they are."""
        return self._heard(features | {"use_cache": False}, features["attention_mask"].sum(1) - 1)[0]

    def continued(self, features: Features, beginning: Beginning, kind: Sequence[int]) -> Tensor:
        """The same for prompts of one query and kind, with their beginning computed once.

        Raises:
            Apart: prompts that cannot be taken apart.
        """
        lengths = features["attention_mask"].sum(1)
        tokens = [row[:length] for row, length in zip(features["input_ids"].tolist(), lengths.tolist(), strict=True)]
        end = beginning.end(tokens[0])
        start = tokens[0][:end]
        if any(row[:end] != start or len(row) <= end for row in tokens):
            raise Apart("the prompts of a query do not begin with the same tokens")
        with going_on():
            where = positions(self.model, features)
        first, rest = apart(features, where, end, (kind[0], bool(kind[1]), kind[2], bool(kind[3])))
        with going_on():
            cache = beginning.known(start)
            if cache is None:
                made = self._heard(first | {"use_cache": True}, lengths.new_tensor([end - 1]))[1]
                beginning.keep(start, made)
                cache = beginning.known(start)
            given: dict[str, Any] = {**rest, "use_cache": True, "past_key_values": joined(cache, len(tokens))}
            return self._heard(given, lengths - 1 - end)[0]

    def _heard(self, given: dict[str, Any], last: Tensor) -> tuple[Tensor, Any]:
        return heard(self.model, given, last, self.prompts.answers)

    def agreed(self, kind: Sequence[int]) -> bool | None:
        """Whether the two ways to compute gave the same for pairs of such a kind; None if nobody has looked yet."""
        return self._agreed.get(tuple(map(bool, kind))) if self._share else False

    def compare(self, logits: Tensor, wholes: Tensor, kind: Sequence[int]) -> bool:
        """Compare logits that a kept beginning gave with those of whole prompts, and remember the outcome."""
        odds, truth = (made[:, 0] - made[:, 1] for made in (logits, wholes))
        apart_by = float((odds - truth).abs().max()) / max(1.0, float(truth.abs().max()))
        device = self.model.device.type
        computed = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.model.dtype
        same = bool(torch.equal(odds.isfinite(), truth.isfinite())) and not apart_by > TOLERANCE[computed]
        self.settle(kind, same, f"the odds differ by {apart_by:.2g}")
        return same

    def settle(self, kind: Sequence[int], same: bool, why: str) -> None:
        """Remember whether prompts of a kind can be taken apart; a warning if not."""
        self._agreed[tuple(map(bool, kind))] = same
        if not same:
            name = type(self.model).__name__
            warnings.warn(f"{name} judges every pair from its first token, which takes longer: {why}", stacklevel=2)


class _Work:
    """One call of `Judge.judge`: distinct pairs, and what came of them."""

    def __init__(self, judge: Judge, pairs: Sequence[Pair]):
        self.judge, self.prompts, self.pairs = judge, judge.prompts, pairs
        self.logits = np.full((len(pairs), 2), np.nan, dtype=np.float32)
        self.problems: dict[int, str] = {}
        self.kinds = [self.prompts.kind(pair) for pair in pairs]
        self._frame = len(self.prompts.ids(self.prompts.text([self.prompts.question.text])))
        self.costs = [self._frame + sum(self.prompts.cost(item) for item in pair) for pair in pairs]
        self._room = Room(judge.tokens)

    def run(self) -> Iterator[int]:
        """Yields how many pairs are done, again and again."""
        alone: list[int] = []
        for group in self._grouped(lambda n: (self.pairs[n][0].key, self.kinds[n]), range(len(self.pairs))):
            alone += yield from self._of_one_query(group)
        for group in self._grouped(lambda n: self.kinds[n], alone):
            yield from self._each(group, self._whole)
        tokens = self._room.tokens
        self._room.tell(f"memory ran out while judging: went on with chunks of {tokens} tokens, which gives the same answers")

    def _grouped(self, key: Callable[[int], Any], rows: Sequence[int]) -> Iterator[list[int]]:
        groups: dict[Any, list[int]] = {}
        for n in rows:
            groups.setdefault(key(n), []).append(n)
        yield from groups.values()

    def _each(self, rows: Sequence[int], work: Callable[[list[int]], np.ndarray]) -> Iterator[int]:
        for chunk, logits in self._room.each(rows, self.costs, work, self._name):
            self.logits[chunk] = logits
            yield len(chunk)

    def _of_one_query(self, rows: list[int]) -> Iterator[int]:
        """Judge pairs of one query, or return them where it is as well to judge them from their first token."""
        query, kind = self.pairs[rows[0]][0], self.kinds[rows[0]]
        saved = (self._frame + self.prompts.cost(query)) * (len(rows) - 1)
        if saved < SAVED or self.judge.agreed(kind) is False:
            return rows
        try:
            plain = [self.prompts.ids(self.prompts.text(self.prompts.parts(self.pairs[n]))) for n in rows]
            beginning = Beginning(plain, kind[0] + bool(kind[1]), self.prompts.placeholders)
        except Apart as error:
            self.judge.settle(kind, False, str(error))
            return rows
        known = {picture: open_picture(picture) for picture in query.pictures}
        theirs = {id(image) for image in known.values()}
        reader = getattr(self.prompts.processor, "image_processor", None)
        looks = Once(reader, lambda image: id(image) in theirs) if reader is not None and known else None

        def show(picture: Picture) -> Image.Image:
            return known[picture] if picture in known else open_picture(picture)

        def work(some: list[int]) -> np.ndarray:
            return self._judged(some, lambda features: self._continued(features, beginning, kind), show, looks)

        yield from self._each(rows, work)
        return []

    def _whole(self, rows: list[int]) -> np.ndarray:
        return self._judged(rows, self.judge.whole, open_picture)

    def _continued(self, features: Features, beginning: Beginning, kind: Sequence[int]) -> Tensor:
        """From a kept beginning, unless that does not give what a whole prompt gives."""
        agreed = self.judge.agreed(kind)
        if agreed is False:
            return self.judge.whole(features)
        try:
            logits = self.judge.continued(features, beginning, kind)
        except Apart as error:
            self.judge.settle(kind, False, str(error))
            return self.judge.whole(features)
        if agreed:
            return logits
        truth = self.judge.whole(features)
        return logits if self.judge.compare(logits, truth, kind) else truth

    def _judged(self, rows: list[int], compute: Callable[[Features], Tensor], show: Show, looks: Any = None) -> np.ndarray:
        """Logits of some pairs of one kind, [n 2]; NaN and a problem where there are none."""
        pairs = [self.pairs[n] for n in rows]
        try:
            features = self.prompts.features([self.prompts.parts(pair) for pair in pairs], show, looks)
        except ValueError as error:
            others = f" or one of {len(rows) - 1} others" if len(rows) > 1 else ""
            raise ModelError(f"the model's processor refuses {self._name(rows[0])}{others}: {error}") from error
        made = np.full((len(rows), 2), np.nan, dtype=np.float32)
        lengths, most = features["attention_mask"].sum(1).tolist(), self.judge.max_length
        fitting = [k for k, length in enumerate(lengths) if length <= most]
        if len(fitting) < len(rows):
            for k, length in enumerate(lengths):
                if length > most:
                    self.problems[rows[k]] = f"query and candidate come to {length} tokens, but the model takes {most}"
            if fitting:
                made[fitting] = self._judged([rows[k] for k in fitting], compute, show, looks)
            return made
        model = self.judge.model
        moved = {
            name: value.to(model.device, model.dtype if value.is_floating_point() else None) for name, value in features.items()
        }
        made[:] = compute(moved).cpu().numpy()
        for k in np.flatnonzero(~np.isfinite(made).all(axis=1)):
            words = (self.prompts.question.yes, self.prompts.question.no)
            said = ", ".join(f"{logit} for {word!r}" for word, logit in zip(words, made[k], strict=True))
            self.problems[rows[k]] = f"the model gives a logit that is no number: {said}"
            made[k] = np.nan
        return made

    def _name(self, n: int) -> str:
        return "the pair of " + " and ".join(f"item {item.key[:12]} ({item.label})" for item in self.pairs[n])


def length_of(model: Any, tokenizer: Any) -> int:
    """Tokens that a model has been made for."""
    known = (
        getattr(model.config.get_text_config(), "max_position_embeddings", None),
        getattr(tokenizer, "model_max_length", None),
    )
    return min((int(length) for length in known if length and length < ENDLESS), default=ENDLESS)


def _open(path: str | Path, options: Options, device: str | None) -> tuple[Any, Any]:
    """A model in evaluation mode and its processor; its tokenizer where it reads text only."""
    import transformers

    folder = Path(path)
    if folder.is_dir() and not any((folder / name).exists() for name in ("config.json", "adapter_config.json")):
        raise ModelError(f"{folder} holds no model: it has no config.json")
    if folder.is_dir():
        refuse_untrusted(folder)
    where = device or ("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    told: dict[str, Any] = {"trust_remote_code": False, "local_files_only": folder.is_dir()}
    try:
        config = transformers.AutoConfig.from_pretrained(path, **told)
        sees = type(config) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        kind: Any = transformers.AutoModelForImageTextToText if sees else transformers.AutoModelForCausalLM
        reader: Any = transformers.AutoProcessor if sees else transformers.AutoTokenizer
        placed = {"device_map": "auto"} if where == "auto" else {}
        given = {"use_safetensors": True, "output_loading_info": True, **options.loading, **placed, **told}
        model, info = kind.from_pretrained(path, **given)
        processor = reader.from_pretrained(path, **told)
    except ImportError as error:
        if "torchvision" in str(error).lower():
            raise MissingExtra("torchvision", "vlm") from error
        raise ModelError(f"{path} cannot be loaded as a judge: {error}") from error
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be loaded as a judge, which has to be a model that generates text: {error}") from error
    if missing := sorted(info["missing_keys"]):
        shown = ", ".join(missing[:4]) + (" ..." if len(missing) > 4 else "")
        raise ModelError(f"{path} lacks {len(missing)} weights ({shown}): they would be random numbers")
    tokenizer: Any = getattr(processor, "tokenizer", processor)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return (model if placed else model.to(where)), processor
