"""`ListwiseReranker`: a chat model that reads all candidates of a query at once, each under a label, and scores them all.

The scores are the logits of the labels where the answer would begin: one forward pass a prompt, nothing is generated, nothing
is parsed, and a whole order comes out. A model likes some places and labels better than others, so every list is read in
several orders. These start from the items' keys and not from the order that they come in, which therefore plays no part.
"""

import contextlib
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from hardwon.artifacts import fingerprint
from hardwon.errors import ModelError
from hardwon.items import Item
from hardwon.models.body import Body
from hardwon.models.card import save
from hardwon.models.chat import Chat, asked_of, open_body, speaks
from hardwon.models.embedder import in_turn
from hardwon.models.judge import TOKENS
from hardwon.models.lora import merged
from hardwon.models.memory import Room
from hardwon.models.options import Dtype, LoRA, Options
from hardwon.models.precision import Precision
from hardwon.models.preflight import decoding, refuse
from hardwon.models.question import Listing, Part
from hardwon.models.reranker import Reranker
from hardwon.progress import bar
from hardwon.randomness import generator

Listed = tuple[Item, tuple[Item, ...]]  # a query, and candidates in the order in which they are shown
AT_ONCE = 256  # lists whose pictures are kept in memory together
# Labels have to be one token each, or their logits could not be compared: many tokenizers write 10 as two.
LABELS = (
    tuple(str(n) for n in range(1, 100)),
    tuple(string.ascii_uppercase),
    tuple(string.ascii_uppercase + string.ascii_lowercase),
)


class ListwiseReranker:
    """A chat model that orders the candidates of a query in sight of each other.

    A score says how much better a candidate is than the mean of its list, in logits; it says nothing beyond that list. A
    candidate that stands in a list twice has one score; a single one has 0.

    Args:
        body: see below.
        listing: what the model is asked, and how often; what it was saved with, or else hardwon's own, if None.

    Attributes:
        body: a `CrossEncoder` of a chat model.
        chat: asks it.
        labels: of the candidates in a prompt, as many as fit into a window: numbers if each is one token of this model's
            tokenizer, else letters.

    Raises:
        ModelError: a model that cannot be asked, or a window for which the tokenizer has too few labels.
        JudgeError: see `Reranker`.
    """

    def __init__(self, body: Body, listing: Listing | None = None):
        if not speaks(body):
            raise ModelError(
                "a ListwiseReranker needs a chat model, which answers in words, and this is none: load it with Reranker.load"
            )
        self.body = body
        self.chat = Chat(body, "listwise", listing=listing)
        self.labels, self._tokens = labels_for(self.chat.prompts, self.listing.window)

    @classmethod
    def load(  # noqa: PLR0913  (each of them is one thing that people set)
        cls,
        path: str | Path,
        *,
        listing: Listing | None = None,
        instruction: str | Mapping[str, str] | None = None,
        lora: LoRA | None = None,
        freeze: tuple[str, ...] = (),
        max_pixels: int | None = None,
        dtype: Dtype | None = None,
        attention: str | None = None,
        device: str | None = None,
        vision_cache: Path | None = None,
        precision: Precision = "fp32",
    ) -> "ListwiseReranker":
        """Load a chat model, as it comes or as it was saved; arguments and errors as `Reranker.load` and of the class."""
        options = Options(None, instruction, lora, freeze, max_pixels, dtype, attention)
        return cls(open_body(path, device, vision_cache, precision, options), listing).freeze(freeze)

    @property
    def listing(self) -> Listing:
        """What the model is asked."""
        return self.chat.asked.listing

    @property
    def module(self) -> nn.Module:
        """The module whose parameters are trained."""
        return self.body.model

    @property
    def fingerprint(self) -> str:
        """Identity of weights, pre-processing and wording: changes when the scores may."""
        return fingerprint(["listwise reranker", self.body.identity(), self.listing.fingerprint, *self.labels])

    def cost(self, listed: Listed) -> int:
        """Tokens, about: what a batch is filled by."""
        return self.chat.cost((listed[0], *listed[1]), len(self.listing.wording))

    def name(self, listed: Listed) -> str:
        """How errors speak of a list."""
        query, items = listed
        return f"the list of {len(items)} candidates for item {query.key[:12]} ({query.label})"

    def fits(self, query: Item, items: Sequence[Item]) -> bool:
        """Whether candidates can be read in one prompt."""
        return len(items) <= self._window(self.chat.instructed(query), items)

    def refusal(self, query: Item, item: Item) -> str:
        """Why the model cannot read a candidate with a query; see `Reranker.refusal`."""
        most = self.chat.judge.max_length
        return "" if self.fits(query, [item]) else f"its pictures and those of the query do not fit into {most} tokens"

    def forward(self, lists: Sequence[Listed]) -> Float[Tensor, "n window"]:
        """Logits of the labels less their mean in each list, with a graph; 0 where a list has ended.

        Raises:
            ModelError: a list that is longer than the window, or whose pictures leave no room for text.
        """
        kinds = [self.kind(listed) for listed in lists]
        if len(set(kinds)) > 1:
            return in_turn(lists, kinds, self.forward)
        prompts = []
        for query, items in lists:
            if len(items) > self.listing.window:
                raise ModelError(f"{self.name((query, items))} is longer than the window of {self.listing.window}")
            shown, *others = self.chat.fitted(self.chat.instructed(query), items, self._parts)
            prompts.append(self._parts(shown, others))
        logits = self.chat.logits(prompts, self._tokens)
        count = torch.tensor([[len(items)] for _, items in lists], device=logits.device)
        filled = torch.arange(logits.shape[1], device=logits.device) < count
        mean = torch.where(filled, logits, 0).sum(dim=1, keepdim=True) / count
        return torch.where(filled, logits - mean, 0)

    @torch.no_grad()
    def score_lists(
        self, queries: Sequence[Item], lists: Sequence[Sequence[Item]], *, progress: str = "", seed: int | None = None
    ) -> list[np.ndarray]:
        """Scores of the candidates of each query, [k] each, float32, in their order; their mean is 0 for distinct ones.

        Lists that are longer than the window, or whose pictures do not fit into one prompt, are read in several windows, in
        other company each time; see `together`.

        Args:
            queries: q of them.
            lists: the candidates of each.
            progress: name of the work in a bar.
            seed: of the orders in which candidates are shown, in place of the listing's own.

        Raises:
            BadItems: items that cannot be used, before anything is computed; names them all.
            ModelError: scores that are not finite, or two candidates that do not fit into one prompt; names them.
        """
        refuse(self.body, [item for query, items in zip(queries, lists, strict=True) for item in (query, *items)])
        listing = self.listing if seed is None else replace(self.listing, seed=seed)
        works: dict[tuple[str, ...], _Work] = {}
        keys = []
        for query, items in zip(queries, lists, strict=True):
            distinct = {item.key: item for item in items}
            keys.append((query.key, *sorted(distinct)))
            if keys[-1] not in works:
                works[keys[-1]] = self._work(query, [distinct[key] for key in keys[-1][1:]], listing)
        everything = [item for work in works.values() for item in (work.query, *work.items)]
        with decoding(self.body, everything), self.evaluating():
            self._read(list(works.values()), progress)
        scores = {key: dict(zip(key[1:], work.scores(), strict=True)) for key, work in works.items()}
        return [
            np.array([scores[key][item.key] for item in items], dtype=np.float32)
            for key, items in zip(keys, lists, strict=True)
        ]

    def score(self, query: Item, items: Sequence[Item]) -> np.ndarray:
        """Scores of the candidates of one query, [k]."""
        return self.score_lists([query], [items])[0]

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Dropout off within the block."""
        with self.body.evaluating():
            yield

    def freeze(self, parts: Iterable[str]) -> "ListwiseReranker":
        """Exclude parts from training; see `Embedder.freeze`."""
        self.body.freeze(parts)
        return self

    def save(self, path: str | Path, about: Mapping[str, Any] | None = None, *, merge: bool = False) -> None:
        """Write a folder that `ListwiseReranker.load` gives the same scores from; arguments and errors as `Reranker.save`.

        `CrossEncoder(path)` and `Reranker.load(path)` take it too, and ask the same weights about pairs.
        """
        save(merged(self.body.model) if merge else self.body.model, Path(path), about or {})

    def _parts(self, query: Item, items: Sequence[Item]) -> tuple[Part, ...]:
        return self.chat.list_parts(query, items, self.labels)

    def kind(self, listed: Listed) -> tuple[int, tuple[int, ...]]:
        """Lists with as many pictures in all can be read in one batch."""
        counts = self.chat.kind((listed[0], *listed[1]))
        return sum(counts[::2]), tuple(sorted(frames for frames in counts[1::2] if frames))

    def _window(self, query: Item, items: Sequence[Item]) -> int:
        """How many of these candidates can be read in one prompt, whichever they are."""
        heavy = sorted(items, key=lambda item: -self.chat.prompts.cost(item))
        most = min(self.listing.window, len(items))
        return next((n for n in range(most, 0, -1) if self.chat.holds(query, heavy[:n], self._parts)), 0)

    def _work(self, query: Item, items: list[Item], listing: Listing) -> "_Work":
        if len(items) < 2:
            return _Work(query, items, [], [])
        window = self._window(self.chat.instructed(query), items)
        if window < 2:
            raise ModelError(
                f"two candidates of item {query.key[:12]} ({query.label}) do not fit into one prompt of "
                f"{self.chat.judge.max_length} tokens: make pictures smaller (max_pixels)"
            )
        return _Work(query, items, orders(len(items), window, listing, query.key), [])

    def _read(self, works: Sequence["_Work"], progress: str) -> None:
        """Add to each work what its prompts give."""
        todo = [(work, places) for work in works for places in work.windows]
        lists = [(work.query, tuple(work.items[place] for place in places)) for work, places in todo]
        costs = [self.cost(listed) for listed in lists]
        made, room = np.zeros((len(lists), self.listing.window), dtype=np.float32), Room(TOKENS)
        with bar(progress, len(lists), "lists", shown=bool(progress)) as advance:
            for start in range(0, len(lists), AT_ONCE):
                some = range(start, min(start + AT_ONCE, len(lists)))
                with self.chat.looking_once():
                    for chunk, values in room.each(
                        some, costs, lambda n: self._values(lists, n), lambda n: self.name(lists[n])
                    ):
                        made[chunk] = values
                        advance(len(chunk))
        room.tell(f"memory ran out while reading lists: went on with chunks of {room.tokens} tokens: the numbers are the same")
        for (work, places), row, listed in zip(todo, made, lists, strict=True):
            if not np.isfinite(row).all():
                raise ModelError(f"the model gives numbers that are not finite, first for {self.name(listed)}")
            work.logits.append(row[: len(places)])

    def _values(self, lists: Sequence[Listed], some: Sequence[int]) -> np.ndarray:
        return self.forward([lists[n] for n in some]).cpu().numpy()


@dataclass(frozen=True)
class _Work:
    """One list: distinct candidates in the order of their keys, the windows they are read in, and what came of each."""

    query: Item
    items: list[Item]
    windows: list[list[int]]
    logits: list[np.ndarray]

    def scores(self) -> np.ndarray:
        return together(len(self.items), self.windows, self.logits)


def labels_for(prompts: Any, window: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Labels that are one token each where an answer begins, and the ids of these tokens.

    Args:
        prompts: `Prompts` of a model.
        window: how many are needed.

    Raises:
        ModelError: there are fewer; names how many.
    """
    found = 0
    for labels in LABELS:
        tokens: list[int] = []
        for label in labels[:window]:
            token = prompts.only_token(label)
            if token is None or token in tokens:
                break
            tokens.append(token)
        if len(tokens) == window:
            return labels[:window], tuple(tokens)
        found = max(found, len(tokens))
    raise ModelError(
        f"a window of {window} candidates needs as many labels that are one token each, but this model's tokenizer has {found} "
        f"(of numbers or letters): set Listing(window=...) to {found} or less; longer lists are read in several windows"
    )


def orders(count: int, window: int, listing: Listing, key: str) -> list[list[int]]:
    """Places of `count` candidates in the windows of all permutations.

    Permutations come in rounds of as many as a window has places: the first of a round is drawn, the others are the same one
    turned. So in a whole round every candidate stands once in every place, which takes out what a model likes about places
    themselves; an unfinished round is spread evenly, and the windows of a long list overlap. Where there is one permutation
    only, each window shares a candidate with the next one: scores of windows that have nothing in common could not be
    compared. All windows are as long as they may be, since a model that has learned from lists of one length may know nothing
    of shorter ones; so some candidates are read once more than others.

    Args:
        count: candidates.
        window: how many are read at once.
        listing: says how many permutations there are, and from which seed.
        key: of the query.
    """
    made: list[list[int]] = []
    size, windows = min(window, count), -(-count // window)
    if listing.permutations == 1 and count > size:
        windows = -(-(count - 1) // (size - 1))
    starts = [round(n * (count - size) / max(windows - 1, 1)) for n in range(windows)]
    for number in range(listing.permutations):
        drawn, turn = divmod(number, size)
        places = list(range(count))
        generator(listing.seed, "order", key, drawn).shuffle(places)
        turned = size * turn // min(size, listing.permutations - drawn * size)
        places = places[turned:] + places[:turned]
        made += [places[start : start + size] for start in starts]
    return made


def together(count: int, windows: Sequence[Sequence[int]], logits: Sequence[np.ndarray]) -> np.ndarray:
    """One score for each candidate from what it got in several windows, their mean 0.

    A logit is a candidate's score and something that all of its window share, since a softmax does not see the latter: both are
    found by least squares. Where every window holds every candidate, that is the mean over the windows.

    >>> together(3, [[0, 1], [2, 1]], [np.array([1.0, -1.0]), np.array([2.0, -2.0])]).round(6).tolist()
    [0.0, -2.0, 2.0]
    """
    if not windows:
        return np.zeros(count)
    rows = [(place, n, value) for n, places in enumerate(windows) for place, value in zip(places, logits[n], strict=True)]
    system = np.zeros((len(rows), count + len(windows)))
    for row, (place, n, _) in enumerate(rows):
        system[row, place] = system[row, count + n] = 1
    found = np.linalg.lstsq(system, np.array([value for *_, value in rows], dtype=np.float64), rcond=None)[0][:count]
    return found - found.mean()


def load_reranker(
    path: str | Path, *, device: str | None = None, vision_cache: Path | None = None, precision: Precision = "fp32"
) -> Reranker | ListwiseReranker:
    """Whichever reranker was saved there; arguments and errors as `Reranker.load`."""
    body = open_body(path, device, vision_cache, precision, Options())
    return ListwiseReranker(body) if speaks(body) and asked_of(body).mode == "listwise" else Reranker(body)
