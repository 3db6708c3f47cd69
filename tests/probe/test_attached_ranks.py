"""Several ranks: replicated and sharded models train as without the probe, and rank 0 alone writes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastcluster_lm.store import RunFolder
from tests.probe.test_attached_resume import assert_same_run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1",
         "-m", "tests.probe.attached_ranks", str(folder)],
        # in a store of all lives the second one may read where ranks of the first one listened, and wait for ever
        env={**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        cwd=ROOT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, json.loads(done.stdout)


@pytest.mark.parametrize("kind", ["replicated", "sharded"])
def test_every_rank_trains_as_without_the_probe(ranks, kind):
    for found in ranks[1]:
        off, on = found[f"{kind}, off"], found[f"{kind}, on"]
        assert on["losses"] == off["losses"]
        assert on["weights"] == off["weights"]
        # the states are those of the whole model on one rank
        assert on["states_error"] == off["states_error"] == 0


@pytest.mark.parametrize("kind", ["replicated", "sharded"])
def test_rank_0_alone_scores_and_writes(ranks, kind):
    folder, (first, second) = ranks
    assert first[f"{kind}, on"]["has_folder"] and not second[f"{kind}, on"]["has_folder"]
    assert first[f"{kind}, on"]["n_rows"] > 0 and second[f"{kind}, on"]["n_rows"] == 0
    run = RunFolder.open(folder / kind)
    assert run.status() == "finished" and [row["step"] for row in run.steps()] == [2, 4]
    assert run.config()["attached"]["sharded"] is (kind == "sharded")
    assert all(row["skipped"] is None for row in run.steps())


@pytest.mark.parametrize("kind", ["replicated", "sharded"])
def test_ranks_go_on_together(ranks, kind):
    folder, found = ranks
    for rank in found:
        assert rank[f"{kind}, again"]["losses"] == rank[f"{kind}, off"]["losses"]
    # rank 0 alone knows what was there, and still all take part in the same forwards
    assert_same_run(folder / kind, folder / f"{kind} again")


@pytest.mark.parametrize("kind", ["replicated", "sharded"])
def test_ranks_that_were_killed_go_on_with_their_run(ranks, kind):
    folder, found = ranks
    for rank in found:
        began, weights = rank[f"{kind}, killed"]
        # from the last time that it saved itself
        assert began == 3 and weights == rank[f"{kind}, whole"] == rank[f"{kind}, without"]
    assert [row["step"] for row in RunFolder.open(folder / f"{kind} killed" / "run").steps()] == [0, 2, 4, 6, 8]
    assert_same_run(folder / f"{kind} whole" / "run", folder / f"{kind} killed" / "run")


@pytest.mark.parametrize("kind", ["replicated", "sharded"])
def test_layers_go_by_the_names_that_one_rank_would_give_them(ranks, kind):
    folder, found = ranks
    names = ["embed", "blocks.0", "blocks.1"]
    assert RunFolder.open(folder / f"{kind} killed" / "run").config()["attached"]["layers"] == names
    for rank in found:
        for wrapper in ("LoRA", "compiled"):
            assert rank[f"{kind}, {wrapper}"] == {"names": names, "states_error": 0}
