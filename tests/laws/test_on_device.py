"""What must hold on whatever device computes: always checked on the CPU, and on a GPU by `fclm doctor --self-test`."""

import statistics
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from fastcluster_lm.config import config_from_dict, load_preset
from fastcluster_lm.engine import Rooms
from fastcluster_lm.kernels.kmeans_assign import kmeans_assign
from fastcluster_lm.kernels.tsne_affinities import tsne_affinities
from fastcluster_lm.kernels.tsne_forces import StepRule, start_descent
from fastcluster_lm.scores.engines import KMeansParams, NeighborsParams, TsneParams, choose_engine, engine_report
from fastcluster_lm.tasks import taskset_of
from tests.laws.conftest import SMALL, fingerprint, run_to_end
from tests.tolerances import KMEANS_INERTIA, KNN_DISTANCE, TSNE_KL

# steps between probes where their cost is told, and turns of that many steps that count
PROBED_EVERY, TURNS = 10, 3


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request) -> torch.device:
    """Give each device in turn; without a GPU its half is skipped, by name."""
    return torch.device(request.param)


@pytest.fixture(params=["fused", "rapids"])
def engine(request, device):
    """Give the engines that can run on the device, beside the reference."""
    report = {row["name"]: row for row in engine_report()}[request.param]
    if request.param == "rapids" and (device.type == "cpu" or not report["available"]):
        pytest.skip("rapids is for a GPU" if device.type == "cpu" else report["reason"])
    return choose_engine(request.param, device)


def blobs(device, n_layers=2, n=300, width=16):
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(n_layers, 6, width, generator=generator) * 3
    X = centers[:, torch.arange(n) % 6] + torch.randn(n_layers, n, width, generator=generator)
    # many points that coincide, as layer 0 has
    X[0] = X[0, :10].repeat(n // 10, 1)
    return X.to(device)


def config_on(device, **sections):
    merged = {**SMALL, "device": device.type}
    for name, values in sections.items():
        merged[name] = {**SMALL[name], **values}
    return config_from_dict(merged)


def test_kmeans_assign_is_the_reference_of_its_device(device):
    X = blobs(device)[1]
    labels, sq_dist = kmeans_assign(X, X[:11])
    exact = torch.cdist(X.double(), X[:11].double(), compute_mode="donot_use_mm_for_euclid_dist").square()
    assert (exact.gather(1, labels[:, None])[:, 0] <= exact.amin(1) * (1 + 1e-5) + 1e-5).all()
    torch.testing.assert_close(sq_dist.double(), exact.gather(1, labels[:, None])[:, 0], rtol=1e-4, atol=1e-4)


def test_one_step_of_the_map_follows_the_gradient_in_float64(device):
    X = blobs(device)
    order = torch.arange(X.shape[1], device=device)
    near = choose_engine("fused", device).neighbors(X, X, NeighborsParams(30, order, order))
    edges = tsne_affinities(near.distances, near.indices, 10.0)
    start = torch.randn(2, 2, X.shape[1], generator=torch.Generator().manual_seed(1)).to(device)
    start -= start.mean(-1, keepdim=True)
    descent = start_descent(start, edges)
    kl = descent.kl_divergence().cpu()
    # the first step is the quarter gradient itself, times the rate and the first gain of 1.2
    descent.advance(1, StepRule(1.0, 0.0, 100.0, 1e30), torch.ones(2, dtype=torch.bool))
    moved = (start - descent.points()).double().cpu()
    P, points = _dense(near, 10.0), start.double().cpu()
    apart = points[:, :, :, None] - points[:, :, None, :]
    kernel = 1 / (1 + apart.square().sum(1))
    kernel.diagonal(dim1=1, dim2=2).zero_()
    total = kernel.sum((1, 2), keepdim=True)
    gradient = (((P - kernel / total) * kernel)[:, None] * apart).sum(-1)
    torch.testing.assert_close(moved, gradient * 120, rtol=1e-4, atol=1e-5)
    logs = torch.where(P > 0, P * (P.clamp(min=1e-300) / (kernel / total).clamp(min=1e-300)).log(), 0)
    torch.testing.assert_close(kl, logs.sum((1, 2)), rtol=1e-4, atol=1e-4)


def _dense(near, perplexity):
    """Give the affinities as matrices, in float64 on the CPU, by the reference of their kernel."""
    from fastcluster_lm.kernels.tsne_affinities.reference import symmetrise, weights_of

    distances, indices = near.distances.cpu(), near.indices.cpu()
    edges = symmetrise(weights_of(distances, perplexity), indices)
    n_layers, n, _ = distances.shape
    dense = torch.zeros(n_layers * n, n, dtype=torch.float64)
    dense.index_put_((edges.rows(), edges.columns.long()), edges.values.double(), accumulate=True)
    return dense.view(n_layers, n, n)


def test_neighbours_are_as_near_as_the_true_ones(engine, device):
    X = blobs(device)
    ids = torch.arange(X.shape[1], device=device) // 4
    found = engine.neighbors(X, X, NeighborsParams(7, ids, ids))
    exact = torch.cdist(X.double(), X.double(), compute_mode="donot_use_mm_for_euclid_dist").cpu()
    exact.masked_fill_((ids[:, None] == ids).cpu(), torch.inf)
    kth = exact.sort(-1).values[..., 6:7]
    assert (exact.gather(2, found.indices.cpu()) <= kth * (1 + KNN_DISTANCE) + 1e-6).all()
    assert found.indices.device.type == device.type


def test_clusters_and_maps_are_those_of_the_reference(engine, device):
    pytest.importorskip("sklearn")
    pytest.importorskip("openTSNE")
    X, reference = blobs(device)[1:], choose_engine("reference", "cpu")
    mine, theirs = (one.kmeans(part, KMeansParams(6)) for one, part in ((engine, X), (reference, X.cpu())))
    assert (mine.inertia.cpu() <= theirs.inertia * KMEANS_INERTIA).all()
    params, order = TsneParams(perplexity=20), torch.arange(X.shape[1], device=device)
    # the neighbours are ours on both sides, since faiss-gpu's package stands where faiss-cpu's does
    near = choose_engine("fused", "cpu").neighbors(X.cpu(), X.cpu(), NeighborsParams(60, order.cpu(), order.cpu()))
    kl = engine.tsne(X, params).kl_divergence.cpu()
    assert (kl <= reference.tsne(X.cpu(), replace(params, neighbors=near)).kl_divergence * TSNE_KL).all()


def test_an_engine_repeats_itself(engine, device):
    X = blobs(device)
    for verb, params in ((engine.kmeans, KMeansParams(6)), (engine.tsne, TsneParams(perplexity=20, n_iter=100))):
        one, again = verb(X, params), verb(X, params)
        assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))


# without dropout a GPU plays a captured graph, with it the step runs as it is
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_weights_and_generators_are_the_same_with_probes_and_without(engine, device, tmp_path, dropout):
    config = config_on(device, scores={"engine": engine.name}, model={"dropout": dropout})
    with torch.random.fork_rng():
        torch.manual_seed(99)
        before = _generator_states(device)
        prints = {
            every: fingerprint(
                run_to_end(
                    replace(config, probe=replace(config.probe, every=every)), tmp_path / f"every-{every}"
                ).folder
            )
            for every in (0, 4)
        }
        assert len(set(prints.values())) == 1, prints
        assert all(map(torch.equal, before, _generator_states(device)))


def _generator_states(device):
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def test_a_launched_probe_makes_nothing_wait(device):
    config = config_on(device, scores={"engine": "fused"}, probe={"every": 1, "full_every": 2})
    run = Rooms(config, taskset_of(config.tasks, config.seed))
    assert run.probe is not None
    for step in range(4):
        # compilation, and what is made once, may wait
        if step < 2:
            assert run.probe.score(step).rows
            continue
        captured = run.probe.capture(step).copied()
        _settle(device)
        with _refusing_waits(device):
            pending = run.probe.scorer.launch(captured)
        result = run.probe.scorer.finish(pending)
        assert result.rows and all(row["ari"] is not None for row in result.rows)


def test_the_check_of_waits_sees_one(device):
    if device.type == "cpu":
        pytest.skip("nothing waits on a CPU")
    with pytest.raises(RuntimeError, match="synchroniz"), _refusing_waits(device):
        torch.ones(3, device=device).sum().item()


@contextmanager
def _refusing_waits(device):
    """Make whatever lets the host wait for the device an error."""
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def test_what_probes_cost_is_told(engine, device, record_property):
    """Time the same steps without probes and with one every ten, in turns; a table for the report, not a verdict."""
    for name, config in _sizes(device).items():
        probe = replace(config.probe, every=PROBED_EVERY, full_every=PROBED_EVERY, worker="auto")
        if device.type == "cpu":
            probe = replace(probe, worker="off")
        scores = replace(config.scores, engine=engine.name)
        run = Rooms(replace(config, device=device.type, probe=probe, scores=scores), taskset_of(config.tasks, 0))
        runner = run.start_runner()
        assert runner is not None
        try:
            plain, probed = [], []
            for turn in range(TURNS + 1):
                times = _time_steps(run, None, device), _time_steps(run, runner, device)
                # the first turn compiles and allocates
                if turn:
                    plain.append(times[0])
                    probed.append(times[1])
        finally:
            runner.close()
        step_ms, probed_ms = statistics.median(plain), statistics.median(probed)
        assert 0 < step_ms < 1e6 and probed_ms > 0
        record_property(f"{name}_step_ms", round(step_ms, 3))
        record_property(f"{name}_step_ms_probed_every_{PROBED_EVERY}", round(probed_ms, 3))


def _sizes(device):
    if device.type == "cpu":
        return {"small": config_on(device)}
    return {"tiny-constant": load_preset("tiny-constant"), "paper-768": load_preset("paper-768")}


def _time_steps(run, runner, device):
    """Give the milliseconds a step takes, all that it and its probe started done."""
    _settle(device)
    started = time.perf_counter()
    for step in range(PROBED_EVERY):
        run.trainer.advance()
        if runner is not None and step == 0:
            runner.submit(PROBED_EVERY)
            runner.collect(wait=False)
    if runner is not None:
        runner.collect(wait=True)
    _settle(device)
    return (time.perf_counter() - started) / PROBED_EVERY * 1e3


def _settle(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)
