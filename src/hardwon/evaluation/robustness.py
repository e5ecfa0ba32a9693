"""Does the order in which candidates are shown decide the order in which they come out?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from hardwon.errors import DataError, ModelError
from hardwon.items import Item
from hardwon.models.listwise import ListwiseReranker
from hardwon.models.scorer import ListScorer, Scorer, score_lists
from hardwon.randomness import generator


@dataclass(frozen=True)
class Robustness:
    """How alike the orders are that come out when the same candidates are shown in shuffled order.

    Attributes:
        taus: for each query, the mean over the shuffles of Kendall's tau with the scores of the first order. 1: the same
            order; 0: as if by chance; -1: reversed.
        shuffles: how many there were.
    """

    taus: tuple[float, ...]
    shuffles: int

    @property
    def mean(self) -> float:
        """Over the queries."""
        return sum(self.taus) / len(self.taus)

    @property
    def lowest(self) -> float:
        """Of the query that depends most on the order."""
        return min(self.taus)


def order_robustness(
    scorer: Scorer | ListScorer,
    queries: Sequence[Item],
    items: Sequence[Sequence[Item]],
    *,
    shuffles: int = 4,
    seed: int = 0,
) -> Robustness:
    """Show the candidates of each query in several orders and compare what comes out.

    What that says depends on the scorer:

    - A `ListwiseReranker` chooses itself in which orders it shows candidates, whatever order they come in. It is told to
      choose others (`Listing.seed`): the tau says how much of its result is owed to the places that it happened to choose,
      with as many permutations as its listing has.
    - Any other scorer of lists is handed shuffled lists.
    - A scorer of pairs never sees a list. It is handed shuffled lists, too: anything below 1 comes from numbers that change
      with the batch.

    Args:
        scorer: any; one that reads lists is asked for lists, others for pairs.
        queries: what is asked; those with less than two candidates say nothing and are left out.
        items: for each query its candidates.
        shuffles: orders tried beside the first one, which is the given one or that of the listing's own seed.
        seed: of the orders.

    Raises:
        DataError: no query with two candidates, or `shuffles` below 1.
        ModelError: scores that are not finite, or not one for each candidate.
    """
    rows = [n for n, candidates in enumerate(items) if len(candidates) > 1]
    if not rows or shuffles < 1:
        raise DataError("order can only matter for a query with two candidates or more, and in at least one shuffle")
    asked, shown = [queries[n] for n in rows], [list(items[n]) for n in rows]
    first = _checked(score_lists(scorer, asked, shown), shown)
    taus = np.zeros((len(rows), shuffles))
    for shuffle in range(shuffles):
        if isinstance(scorer, ListwiseReranker):
            other = generator(seed, "places", shuffle).getrandbits(32)
            found = _checked(scorer.score_lists(asked, shown, seed=other), shown)
            taus[:, shuffle] = [kendall(a, b) for a, b in zip(first, found, strict=True)]
            continue
        orders = [
            generator(seed, "order", shuffle, query.key, n).sample(range(len(candidates)), len(candidates))
            for n, (query, candidates) in enumerate(zip(asked, shown, strict=True))
        ]
        mixed = [[candidates[place] for place in order] for order, candidates in zip(orders, shown, strict=True)]
        for row, (order, scores) in enumerate(zip(orders, _checked(score_lists(scorer, asked, mixed), mixed), strict=True)):
            back = np.empty(len(order))
            back[order] = scores
            taus[row, shuffle] = kendall(first[row], back)
    return Robustness(tuple(taus.mean(axis=1).tolist()), shuffles)


def kendall(a: Float[np.ndarray, " k"], b: Float[np.ndarray, " k"]) -> float:
    """Kendall's tau, with ties: the mean agreement over all pairs of candidates.

    1 if both scores order a pair alike, or neither does at all; -1 if they order it the other way round; 0 if one leaves it
    open.
    """
    upper = np.triu_indices(len(a), 1)
    one, other = (np.sign(x[:, None] - x[None, :])[upper] for x in (a, b))
    return float(np.where((one == 0) & (other == 0), 1, one * other).mean())


def _checked(made: Sequence[np.ndarray], items: Sequence[Sequence[Item]]) -> list[np.ndarray]:
    found = [np.asarray(scores, dtype=np.float64) for scores in made]
    if [len(scores) for scores in found] != [len(row) for row in items]:
        raise ModelError(f"{[len(s) for s in found]} scores for lists of {[len(row) for row in items]} candidates")
    if not all(np.isfinite(scores).all() for scores in found):
        raise ModelError("the scorer gives scores that are not finite")
    return found
