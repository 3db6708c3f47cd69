"""The examples of docs/architecture.md compute what they say."""

import re
from pathlib import Path

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from fastcluster_lm.scores.engines._fused import FusedEngine
from fastcluster_lm.scores.engines.checks import check_neighbors, forbidden
from fastcluster_lm.scores.engines.params import Engine, KMeansParams, Neighbors, NeighborsParams

PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"


@pytest.fixture
def examples() -> dict:
    """Run the page's examples, with the names that the modules they belong to have."""
    names = dict(torch=torch, Float=Float, Tensor=Tensor, FusedEngine=FusedEngine, check_neighbors=check_neighbors,
                 forbidden=forbidden, Engine=Engine, Neighbors=Neighbors, NeighborsParams=NeighborsParams)  # fmt: skip
    found = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(found) == 2
    for code in found:
        exec(code, names)
    return names


def test_the_score_is_its_formula_and_nan_where_there_is_none(examples):
    X = (
        torch.randn(3, 40, 5, generator=torch.Generator().manual_seed(0))
        + torch.tensor([0.0, 1.0, 30.0])[:, None, None]
    )
    found = examples["mean_cosine"](X)
    cosines = torch.nn.functional.cosine_similarity(X.double()[:, :, None], X.double()[:, None], dim=-1)
    apart = ~torch.eye(40, dtype=torch.bool)
    torch.testing.assert_close(found, torch.stack([own[apart].mean() for own in cosines]))
    # layers do not matter to each other, and one point at the origin to its layer alone
    alone = torch.cat([examples["mean_cosine"](own[None]) for own in X])
    assert torch.equal(found, alone)
    X[1, 3] = 0
    assert torch.equal(examples["mean_cosine"](X).isnan(), torch.tensor([False, True, False]))


def test_the_engine_keeps_the_rules_of_engines(examples):
    engine, fused = examples["ExactEngine"](), FusedEngine()
    assert isinstance(engine, Engine)
    # few places, so that distances tie
    bank = torch.randint(-2, 3, (2, 60, 3), generator=torch.Generator().manual_seed(1)).float()
    ids = torch.arange(60) % 13
    for params in (NeighborsParams(7), NeighborsParams(7, ids, ids)):
        ours, theirs = engine.neighbors(bank, bank, params), fused.neighbors(bank, bank, params)
        assert torch.equal(ours.indices, theirs.indices) and ours.indices.dtype == torch.int64
        torch.testing.assert_close(ours.distances, theirs.distances)
        (each,) = engine.neighbors_under_each(bank, bank, [params])
        assert torch.equal(each.indices, ours.indices)
    assert torch.equal(engine.kmeans(bank, KMeansParams(4)).labels, fused.kmeans(bank, KMeansParams(4)).labels)
