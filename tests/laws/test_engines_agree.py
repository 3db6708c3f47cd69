"""Law 3: engines agree, on the hidden states of a real run; coordinates are never compared."""

import numpy as np
import pytest
import torch

from fastcluster_lm import kmeans, nearest_neighbors, tsne
from fastcluster_lm.engine import Rooms
from fastcluster_lm.scores.engines import choose_engine, engine_report
from fastcluster_lm.tasks import taskset_of
from tests.scores.engines import ON_CPU
from tests.tolerances import KMEANS_INERTIA, KNN_DISTANCE, TSNE_KL

ENGINES = [entry["name"] for entry in engine_report() if entry["available"] and entry["name"] in ON_CPU]


@pytest.fixture(scope="module")
def states() -> torch.Tensor:
    """Give the states of a small model after some training, (layers, n, d); layer 0 is full of ties."""
    from fastcluster_lm.config import config_from_dict
    from tests.laws.conftest import SMALL

    config = config_from_dict(SMALL)
    run = Rooms(config, taskset_of(config.tasks, config.seed))
    for _ in range(12):
        run.trainer.advance()
    assert run.probe is not None
    train = run.probe.sources["train"].instances
    buffer = torch.empty(3, len(train), 16)
    run.trainer.evaluator.states_into(train, buffer)
    return buffer


def test_there_are_two_engines_to_compare():
    pytest.importorskip("openTSNE")
    assert {"fused", "reference"} <= set(ENGINES)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("exclude_self", [False, True])
def test_every_neighbour_is_as_near_as_the_true_one(states, engine, exclude_self):
    distances, found = nearest_neighbors(states, states, 7, exclude_self=exclude_self, engine=engine)
    exact = torch.cdist(states.double(), states.double(), compute_mode="donot_use_mm_for_euclid_dist")
    if exclude_self:
        exact.diagonal(dim1=1, dim2=2).fill_(float("inf"))
    kth = exact.sort(-1).values[..., 6:7]
    assert (exact.gather(2, found) <= kth * (1 + KNN_DISTANCE) + 1e-12).all()
    assert all(len(set(row)) == 7 for row in found.flatten(0, 1).tolist())
    torch.testing.assert_close(distances.double(), exact.gather(2, found), rtol=KNN_DISTANCE, atol=1e-6)
    if engine == "fused":
        tied = distances[..., 1:] == distances[..., :-1]
        assert tied.any() and (found[..., 1:] > found[..., :-1])[tied].all()


@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "reference"])
def test_kmeans_is_as_tight_as_the_reference(states, engine):
    pytest.importorskip("sklearn")
    # ten restarts end in one local optimum or another, so the middle one of twelve seeds is compared
    ours, theirs = (
        np.median([np.asarray(kmeans(states, 8, seed=s, engine=name).inertia) for s in range(12)], axis=0)
        for name in (engine, "reference")
    )
    assert (ours <= theirs * KMEANS_INERTIA + 1e-9).all()


@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "reference"])
def test_the_map_is_as_faithful_as_the_reference(states, engine):
    pytest.importorskip("openTSNE")
    # layer 0 has as many distinct points as inputs, so its divergence is near 0 and a ratio says nothing
    ours, theirs = (
        np.median([np.asarray(tsne(states[1:], perplexity=10.0, seed=s, engine=name).kl_divergence) for s in range(3)])
        for name in (engine, "reference")
    )
    assert ours <= theirs * TSNE_KL


@pytest.mark.parametrize("name", ENGINES)
def test_no_engine_touches_a_global_generator(states, name):
    before, numpy_before = torch.get_rng_state(), np.random.get_state()
    kmeans(states, 4, engine=name)
    tsne(states, n_iter=20, engine=name)
    assert torch.equal(before, torch.get_rng_state())
    assert all(np.array_equal(a, b) for a, b in zip(numpy_before, np.random.get_state(), strict=True))


def test_a_named_engine_that_is_missing_is_an_error():
    from fastcluster_lm.errors import EngineError

    with pytest.raises(EngineError, match="rapids"):
        choose_engine("rapids", "cpu")
