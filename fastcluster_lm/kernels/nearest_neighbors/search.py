"""What a search for neighbours is given beside its points; it finds none."""

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

Ids = tuple[Int[Tensor, "*layers nq"], Int[Tensor, "*layers nb"]]


class Search(NamedTuple):
    """What is sought among the points of a bank, and within which limits.

    k:      neighbours of each query
    ids:    of the queries and of the bank, for all layers or for each: a point with the query's own id is none of its
            neighbours, and k others are there; None: all are admissible
    centre: (layers, 1, d) what points are centred by where a matmul proposes candidates
    scale:  (layers, 1, 1) powers of two that distances are multiplied by; None: 1
    memory_budget: bytes, of distances or candidates that are held at once
    """

    k: int
    ids: Ids | None
    centre: Float[Tensor, "layers 1 d"]
    scale: Float[Tensor, "layers 1 1"] | None
    memory_budget: int
