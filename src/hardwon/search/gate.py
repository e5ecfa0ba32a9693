"""`Gate`: which queries are worth reranking, decided before the reranker reads anything."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import Float

from hardwon.errors import ArtifactError
from hardwon.items import Item
from hardwon.metrics import Interval


@dataclass(frozen=True)
class Kind:
    """What held-out queries of one kind say about reranking.

    Attributes:
        instruction: what all queries of this kind carry ("" for those without): it says what is asked.
        queries: how many were held out.
        gain: in P@1 by reranking them with a weight that was learned without them; `low` is a one-sided bound that counts one
            loss more than was seen.
        weight: of the log-odds for queries of this kind.
        margin: the widest margin between the embedder's first two at which reranking still turned a miss into a hit.
        reranked: share of the held-out queries that pass.
    """

    instruction: str
    queries: int
    gain: Interval
    weight: float
    margin: float
    reranked: float

    @property
    def passes(self) -> bool:
        """Whether reranking may be expected to help, or at least not to harm."""
        return self.gain.mean > 0 and self.gain.low >= 0


@dataclass(frozen=True)
class Gate:
    """Leaves a query's order alone when reranking is not expected to help.

    A query is reranked when queries with its instruction gained by it, and when the embedder's margin is not wider than any
    at which one of them gained. Instructions that were not among the held-out queries are left alone.

    Attributes:
        kinds: what is known of each instruction.
    """

    kinds: tuple[Kind, ...]

    def weights(self, queries: Sequence[Item], cosines: Float[np.ndarray, "q k"]) -> Float[np.ndarray, " q"]:
        """Weight of the log-odds for each query; 0 for those that are left alone.

        Args:
            queries: what was asked.
            cosines: of their candidates, the best first.
        """
        open_ = {kind.instruction: kind for kind in self.kinds if kind.passes}
        found = [open_.get(query.instruction) for query in queries]
        wide = margins(cosines)
        return np.array([kind.weight if kind and wide[n] <= kind.margin else 0.0 for n, kind in enumerate(found)])

    def to_json(self) -> dict[str, Any]:
        """JSON form that `from_json` reads back to an equal gate."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: Any) -> "Gate":
        """The gate that `to_json` wrote. Raises ArtifactError for anything else."""
        names = {f.name for f in fields(Kind)}
        try:
            kinds = [{**kind, "gain": Interval(**kind["gain"])} for kind in row["kinds"]]
            wrong = [sorted(set(kind) ^ names) for kind in kinds if set(kind) != names]
        except (TypeError, KeyError) as error:
            raise ArtifactError(f"this is no gate of a reranker: {error!r}") from error
        if wrong:
            raise ArtifactError(f"this is no gate of a reranker: missing or unknown fields {', '.join(wrong[0])}")
        return cls(tuple(Kind(**kind) for kind in kinds))


def margins(cosines: Float[np.ndarray, "q k"]) -> Float[np.ndarray, " q"]:
    """How far the first candidate of each query is above the second; infinite where there is no second."""
    if cosines.shape[1] < 2:
        return np.full(len(cosines), np.inf)
    return cosines[:, 0].astype(np.float64) - cosines[:, 1]
