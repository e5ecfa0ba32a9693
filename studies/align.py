"""A head start for the projector, as `hardwon.training.align` gives it to the demo's backbone."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from hardwon.items import Example
from hardwon.randomness import generator
from hardwon.training.align import BATCH, TEMPERATURE, captions
from studies.trunk import SmallEmbedder


def align(model: SmallEmbedder, examples: Sequence[Example], *, steps: int, rate: float = 1e-3, seed: int = 0) -> float:
    """Train the projector alone so that the mean of a picture's tokens lies near the vector of its text; gives the last loss.

    Symmetric InfoNCE between the mean token and MiniLM's vector of the caption; the transformer does not run.
    """
    features, trunk = model.features, model.module
    pairs = [(features.seen(p).picture, features.seen(t).text) for p, t in described(examples)]
    optimizer, rng, value = (
        torch.optim.AdamW(trunk.projector.parameters(), lr=rate, weight_decay=0.05),
        generator(seed, "align"),
        0.0,
    )
    for _ in range(steps):
        rows = rng.sample(pairs, min(BATCH, len(pairs)))
        words = features.texts[[text for _, text in rows]]
        made = F.normalize(F.normalize(trunk.projector(features.pictures[[p for p, _ in rows]]), dim=-1).mean(dim=1), dim=-1)
        near = made @ words.T / TEMPERATURE
        same = (words @ words.T > 1 - 1e-4) & ~torch.eye(len(words), dtype=torch.bool)
        truth, near = torch.arange(len(words)), near.masked_fill(same, -torch.inf)
        loss = (F.cross_entropy(near, truth) + F.cross_entropy(near.T, truth)) / 2
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        value = float(loss.detach())
    return value


def described(examples: Sequence[Example]) -> list:
    """(picture, text) items of all pairs of one picture and one text."""
    from hardwon.items import Item

    return [(Item(images=(picture,)), Item(text=text)) for picture, text in captions(tuple(examples))]
