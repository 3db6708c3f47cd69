"""A whole probe on pretended CUDA tensors: nothing waits before the scores are read, and they are right."""

import math

import pytest
import torch

from fastcluster_lm.config import config_from_dict
from fastcluster_lm.engine import Rooms
from fastcluster_lm.kernels import native
from fastcluster_lm.kernels.label_agreement.reference import AGREEMENTS
from fastcluster_lm.kernels.tsne_forces.tiled import TiledDescent
from fastcluster_lm.probe import CudaRunner, InlineRunner
from fastcluster_lm.scores import batches, geometry
from fastcluster_lm.scores.engines import _fused_tsne
from fastcluster_lm.tasks import taskset_of
from tests.device.pretend_cuda import HostWaitError, PretendTensor, pretend_cuda
from tests.laws.conftest import SMALL

# cadences of full probes and of step probes, and where states come from
KINDS = {"fresh": {"every": 1, "full_every": 1}, "batch": {"every": 1, "full_every": 2, "source": "batch"}}
# the same of two tokens
TWO = {f"{kind}, two tokens": {**cadence, "positions": ["instruction", "input"]} for kind, cadence in KINDS.items()}


# columns that KMeans decides
CLUSTERED = {*AGREEMENTS, "null_ari", "null_ami", "null_f1"}


def rooms(kind: str, device: str) -> Rooms:
    config = config_from_dict(
        {
            **SMALL,
            "device": device,
            "training": {**SMALL["training"], "compile": "off", "precision": "float32"},
            "probe": {**SMALL["probe"], **(KINDS | TWO)[kind], "worker": "auto" if device == "cuda" else "off"},
        }
    )
    return Rooms(config, taskset_of(config.tasks, config.seed))


def probed(run: Rooms, steps: int, strict=lambda on: None) -> list:
    """Probe at several weights, each a seeded step away from the one before; states of batches are the model's own."""
    runner = run.start_runner()
    assert runner is not None
    events = []
    for step in range(steps):
        with torch.no_grad():
            for weight in run.trainer.model.parameters():
                weight.mul_(1 + 0.05 * math.sin(step + 1))
        if step and run.probe.observes:
            for start in range(0, len(run.trainer.train), 32):
                batch = torch.arange(start, min(start + 32, len(run.trainer.train)))
                states = run.trainer.model(*run.trainer.train.inputs(batch.to(run.device.torch_device))).states
                strict(True)
                runner.observe(batch, states.detach(), step)
                strict(False)
        strict(True)
        runner.submit(step)
        strict(False)
        events += runner.collect(wait=True)
    return [event.result for event in events]


@pytest.fixture
def plain_torch(monkeypatch):
    """Compute in torch, as a GPU does where no kernel is of use, and not in compiled C++."""
    monkeypatch.setenv(native.OFF, "0")
    # a map's start is found in another way there
    monkeypatch.setattr(_fused_tsne, "_principal_components", _fused_tsne._leading_without_waiting)
    native.forget()
    yield
    native.forget()


@pytest.fixture
def in_torch(monkeypatch):
    """Let torch code stand for the Triton kernels that no op hides, which a CPU does not launch."""

    def capture(x, positions, states, sq_norms, layer):
        rows = x[torch.arange(len(x), device=x.device), positions].float()
        states[:, layer], sq_norms[:, layer] = rows, rows.square().sum(-1)

    monkeypatch.setattr("fastcluster_lm.kernels.tsne_forces.op.TritonDescent", TiledDescent)
    monkeypatch.setattr("fastcluster_lm.kernels.capture_states.op.launch", capture)


@pytest.mark.parametrize("kind", KINDS | TWO)
def test_probes_wait_for_nothing_and_score_as_on_a_cpu(plain_torch, in_torch, kind):
    fresh = kind.startswith("fresh")
    n_probes = 2 if fresh else 4
    expected = probed(rooms(kind, "cpu"), n_probes)
    with pretend_cuda() as mode:
        run = rooms(kind, "cuda")
        assert isinstance(run.start_runner(), CudaRunner)
        assert all(isinstance(weight, PretendTensor) for weight in run.trainer.model.parameters())
        found = probed(run, n_probes, lambda on: setattr(mode, "strict", on))
    assert [result.warm for result in found] == [result.warm for result in expected]
    tiers = {row["tier"] for result in found for row in result.rows}
    assert tiers == ({"full"} if fresh else {"full", "step"})
    assert {(result.warm, bool(result.maps)) for result in found} >= {(False, True), (True, fresh)}
    positions = {row["position"] for result in found for row in result.rows}
    assert positions == ({"instruction", "input"} if kind in TWO else {"input"})
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.maps.keys() == theirs.maps.keys()
        assert len(ours.rows) == len(theirs.rows) > 0
        for row, wanted in zip(ours.rows, theirs.rows, strict=True):
            assert row.keys() == wanted.keys()
            for column, value in wanted.items():
                # layer 0 has fewer places than clusters, and coinciding points on its map, as every layer has at an
                # instruction's end, which knows no input: rounding alone decides there
                tied = row["layer"] == 0 or row["position"] == "instruction"
                free = tied and (column in CLUSTERED or row["space"] == "map")
                if isinstance(value, float) and not free:
                    assert row[column] == pytest.approx(value, rel=2e-3, abs=2e-3), (column, row, wanted)
                elif not isinstance(value, float):
                    assert row[column] == value


PLANTED = {
    "item": lambda X: X.sum().item(),
    "branch": lambda X: bool((X > 0).any()),
    "copy": lambda X: X.cpu(),
    "copy into": lambda X: torch.empty(X.shape).copy_(X),
    "pageable": lambda X: torch.arange(3).to(X.device),
    "mask": lambda X: X[X > 0],
    "host index": lambda X: X[torch.tensor([0])],
    "unique": lambda X: X.unique(),
    "synchronize": lambda X: torch.cuda.synchronize(),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_wait_is_caught(monkeypatch, in_torch, fault):
    with pretend_cuda() as mode:
        run = rooms("fresh", "cuda")
        captured = run.probe.capture(0)

        def waiting(plain):
            def waits(X, *others, **named):
                PLANTED[fault](X)
                return plain(X, *others, **named)

            return waits

        # where the probe begins, and once near its end
        late = fault == "item"
        place = "probe.scorer.intrinsic_dimension" if late else "scores.spaces.check_finite"
        planted = waiting(geometry.intrinsic_dimension if late else batches.check_finite)
        monkeypatch.setattr(f"fastcluster_lm.{place}", planted)
        mode.strict = True
        with pytest.raises(HostWaitError):
            run.probe.scorer.launch(captured)


def test_a_layer_with_nan_is_named_when_the_scores_are_read_and_the_others_are_scored(in_torch):
    with pretend_cuda() as mode:
        run = rooms("fresh", "cuda")
        run.trainer.model.blocks[0].mlp_c_proj.bias.held[1] = torch.nan
        captured = run.probe.capture(0)
        mode.strict = True
        pending = run.probe.scorer.launch(captured)
        mode.strict = False
        found = run.probe.scorer.finish(pending)
    named = "states of train and val are not finite"
    assert found.skipped == f"layer 1: {named}; layer 2: {named}"
    assert all((row["ari"] is None) == (row["layer"] > 0) for row in found.rows if row["group"] == "all")


def test_a_cpu_waits_for_nothing_either():
    assert isinstance(rooms("fresh", "cpu").start_runner(), InlineRunner)
