"""What is trained in the studies: a small transformer behind the frozen parts, for an embedder and for a reranker.

Both offer what the library's own batches, step and loop ask of a model (`forward`, `cost`, `name`, `module`, `body`), so that
what is compared is the library's code from the batch to the optimizer; only the encoding of an item is the study's.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hardwon.artifacts import fingerprint
from hardwon.items import Item
from hardwon.models import Embedder, Pair, Reranker
from hardwon.models.vision import digest
from studies.features import QUARTERS, WIDTH, Features, Seen

HEADS, LAYERS = 8, 1
_ROWS = 1024  # of one forward pass without a graph
PICTURE, TEXT, INSTRUCTION = 0, 1, 2


class Layer(nn.Module):
    """One summary asks all tokens and thinks about the answer: a transformer in which only one place is computed.

    A third of the work of a full layer, since no token but the summary goes on. What it adds is small at the start, so that
    vectors are those of the frozen parts.
    """

    def __init__(self, width: int):
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.ask, self.offer, self.joined = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        for layer in (self.joined, self.narrow):
            nn.init.normal_(layer.weight, std=0.1 / width**0.5)
            nn.init.zeros_(layer.bias)

    def forward(self, summary: Float[Tensor, "n w"], tokens: Float[Tensor, "n t w"]) -> Float[Tensor, "n w"]:
        """The summary after one more look at the tokens."""
        n, t, w = tokens.shape
        asked = self.ask(self.before(summary)).reshape(n, HEADS, 1, w // HEADS)
        keys, values = self.offer(tokens).reshape(n, t, 2, HEADS, w // HEADS).permute(2, 0, 3, 1, 4)
        heard = ((asked * keys).sum(dim=-1, keepdim=True) / (w // HEADS) ** 0.5).softmax(dim=2) * values
        summary = summary + self.joined(heard.sum(dim=2).reshape(n, w))
        return summary + self.narrow(F.gelu(self.wide(self.between(summary))))


class Trunk(nn.Module):
    """Frozen features of one item, or of a pair, to one vector.

    Attributes:
        projector: a quarter of a picture -> a token like those of texts.
        kinds: what is added to tokens of pictures, texts and instructions.
        places: what is added to the four quarters.
        sides: what is added to tokens of a query and of a candidate when they are read together.
    """

    def __init__(self, layers: int = LAYERS, width: int = WIDTH):
        super().__init__()
        self.projector = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.kinds, self.places, self.sides = (nn.Parameter(0.02 * torch.randn(n, width)) for n in (3, QUARTERS, 2))
        self.layers = nn.ModuleList(Layer(width) for _ in range(layers))
        self.first, self.last = nn.LayerNorm(width), nn.LayerNorm(width)
        self.out = nn.Linear(width, width)
        nn.init.eye_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def tokens(self, features: Features, rows: Sequence[Seen]) -> Float[Tensor, "n t w"]:
        """Tokens of items that all have the same parts, each as long as the root of its width."""
        first, made = rows[0], []
        unit = self.kinds.shape[1] ** 0.5
        if first.picture >= 0:
            seen = self.projector(features.pictures[[row.picture for row in rows]])
            made.append(unit * F.normalize(seen, dim=-1) + self.kinds[PICTURE] + self.places)
        for place, name in ((TEXT, "text"), (INSTRUCTION, "instruction")):
            if getattr(first, name) >= 0:
                words = features.texts[[getattr(row, name) for row in rows]]
                made.append((unit * words + self.kinds[place])[:, None])
        return torch.cat(made, dim=1)

    def pooled(self, tokens: Float[Tensor, "n t w"]) -> Float[Tensor, "n w"]:
        """The summary of some tokens; it begins as their mean."""
        summary, tokens = tokens.mean(dim=1), self.first(tokens)
        for layer in self.layers:
            summary = layer(summary, tokens)
        return self.last(summary)


def by_parts(rows: Sequence[Any], run: Callable[[list[Any]], Tensor], parts: Callable[[Any], Any]) -> Tensor:
    """`run` on the rows of each kind together; in the order of the rows."""
    kinds: dict[Any, list[int]] = {}
    for n, row in enumerate(rows):
        kinds.setdefault(parts(row), []).append(n)
    made = torch.cat([run([rows[n] for n in places]) for places in kinds.values()])
    order = torch.tensor([n for places in kinds.values() for n in places])
    return made[order.argsort()]


def parts_of(seen: Seen) -> tuple[bool, ...]:
    """Which parts an item has."""
    return tuple(place >= 0 for place in seen)


@dataclass
class Body:
    """What the library's loop and step ask of a body."""

    model: nn.Module

    def train(self) -> None:
        """There is no dropout."""
        self.model.train()


class SmallEmbedder(Embedder):
    """An embedder of thin items; everything that `Embedder` does by its body is done by the trunk.

    Attributes:
        features: of the frozen parts.
        trunk: what is trained.
        dim: width of a vector.
    """

    def __init__(self, features: Features, trunk: Trunk):
        self.features, self.trunk = features, trunk
        self.dim = trunk.out.out_features
        trunk.device = torch.device("cpu")  # type: ignore[assignment]
        self.body: Any = Body(trunk)

    @classmethod
    def new(cls, features: Features, seed: int, layers: int = LAYERS) -> "SmallEmbedder":
        """An untrained one; the same for the same seed."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return cls(features, Trunk(layers))

    def copy(self) -> "SmallEmbedder":
        """One with weights of its own."""
        return SmallEmbedder(self.features, copy.deepcopy(self.trunk))

    @property
    def module(self) -> Trunk:
        """What is trained."""
        return self.trunk

    @property
    def fingerprint(self) -> str:
        """Identity of weights and features."""
        return fingerprint(["study", self.features.fingerprint, digest(self.module.state_dict())])

    def cost(self, item: Item) -> int:
        """Tokens."""
        return QUARTERS * len(item.images) + bool(item.text) + bool(item.instruction)

    def name(self, item: Item) -> str:
        """How errors speak of an item."""
        return item.label

    def forward(self, items: Sequence[Item]) -> Float[Tensor, "n d"]:
        """Unit vectors with a graph."""
        trunk = self.trunk

        def run(rows: list[Seen]) -> Tensor:
            return F.normalize(trunk.out(trunk.pooled(trunk.tokens(self.features, rows))).float(), dim=-1)

        return by_parts([self.features.seen(item) for item in items], run, parts_of)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """There is no dropout."""
        yield


class SmallReranker(Reranker):
    """A reranker that reads query and candidate together: the same trunk over the tokens of both.

    Attributes:
        features: see `SmallEmbedder`.
        parts: trunk and head.
    """

    def __init__(self, features: Features, trunk: Trunk, head: nn.Linear):
        self.features = features
        self.parts = nn.ModuleDict({"trunk": trunk, "head": head})
        self.parts.device = torch.device("cpu")  # type: ignore[assignment]
        self.body: Any = Body(self.parts)

    @classmethod
    def start_from(cls, embedder: SmallEmbedder, seed: int) -> "SmallReranker":
        """With the embedder's weights and a new head."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            head = nn.Linear(embedder.dim, 1)
        nn.init.zeros_(head.bias)
        return cls(embedder.features, copy.deepcopy(embedder.trunk), head)

    @property
    def module(self) -> nn.ModuleDict:
        """What is trained."""
        return self.parts

    @property
    def fingerprint(self) -> str:
        """Identity of weights and features."""
        return fingerprint(["study reranker", self.features.fingerprint, digest(self.module.state_dict())])

    def cost(self, pair: tuple[Item, Item]) -> int:
        """Tokens of both."""
        return sum(QUARTERS * len(item.images) + bool(item.text) + bool(item.instruction) for item in pair)

    def name(self, pair: tuple[Item, Item]) -> str:
        """How errors speak of a pair."""
        return f"pair of {pair[0].label} and {pair[1].label}"

    def forward(self, pairs: Sequence[tuple[Item, Item]]) -> Float[Tensor, " n"]:
        """Log-odds with a graph."""
        trunk, head = self.parts["trunk"], self.parts["head"]

        def run(rows: list[tuple[Seen, Seen]]) -> Tensor:
            sides = [trunk.tokens(self.features, [row[side] for row in rows]) + trunk.sides[side] for side in (0, 1)]
            return head(trunk.pooled(torch.cat(sides, dim=1))).float()[:, 0]

        rows = [(self.features.seen(query), self.features.seen(item)) for query, item in pairs]
        return by_parts(rows, run, lambda row: (parts_of(row[0]), parts_of(row[1])))


class Encoding:
    """A trained embedder as an `Encoder`: no `Embedder`, so nobody wants to look at the pictures of thin items.

    Attributes:
        model: encodes.
        fingerprint: of its weights as they are now.
        dim: width of a vector.
        encoded: distinct items so far.
    """

    def __init__(self, model: SmallEmbedder):
        self.model, self.fingerprint, self.dim, self.encoded = model, model.fingerprint, model.dim, 0

    @torch.no_grad()
    def encode(self, items: Sequence[Item], *, progress: str = "") -> np.ndarray:
        """Unit vectors [n d], float32; identical items once."""
        keys = list(dict.fromkeys(items))
        self.encoded += len(keys)
        parts = [self.model.forward(keys[n : n + _ROWS]) for n in range(0, len(keys), _ROWS)]
        vectors = torch.cat(parts).numpy() if parts else np.zeros((0, self.dim), dtype=np.float32)
        place = {item: n for n, item in enumerate(keys)}
        return vectors[[place[item] for item in items]]


class Scoring:
    """A trained reranker as a `Scorer`.

    Attributes:
        model: scores.
        fingerprint: of its weights as they are now.
        scored: pairs so far.
    """

    def __init__(self, model: SmallReranker):
        self.model, self.fingerprint, self.scored = model, model.fingerprint, 0

    @torch.no_grad()
    def score_pairs(self, pairs: Sequence[Pair], *, progress: str = "") -> np.ndarray:
        """Log-odds, [n], float32."""
        self.scored += len(pairs)
        parts = [self.model.forward(pairs[n : n + _ROWS]) for n in range(0, len(pairs), _ROWS)]
        return torch.cat(parts).numpy() if parts else np.zeros(0, dtype=np.float32)


class Once:
    """A scorer that reads no pair twice.

    Attributes:
        inner: reads.
        fingerprint: as of the inner one.
    """

    def __init__(self, inner: Scoring):
        self.inner, self.fingerprint = inner, inner.fingerprint
        self._known: dict[Pair, float] = {}

    def score_pairs(self, pairs: Sequence[Pair], *, progress: str = "") -> np.ndarray:
        """Log-odds, [n], float32."""
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self._known]
        self._known |= dict(zip(new, self.inner.score_pairs(new, progress=progress).tolist(), strict=True))
        return np.array([self._known[pair] for pair in pairs], dtype=np.float32)
