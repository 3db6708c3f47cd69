"""Step probes of an attached loop: those of runs, wherever they are scored, and a loop that stops goes on with them."""

import json
import logging
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastcluster_lm.config import config_from_dict
from fastcluster_lm.engine import start_run
from fastcluster_lm.errors import UsageError
from fastcluster_lm.probe import Cadence
from fastcluster_lm.probe.cost import Cost
from fastcluster_lm.probe.pending import Captured
from fastcluster_lm.probe.record import Record
from fastcluster_lm.probe.runners.shared_states import StatesScorer
from fastcluster_lm.probe.scorer import Scorer
from fastcluster_lm.scores.engines import choose_engine
from fastcluster_lm.store import RunFolder
from fastcluster_lm.store.set_aside import TIMES
from tests.laws.conftest import SMALL
from tests.probe.attached import QUICK, Net, instances, seed_all
from tests.probe.attached_loops import attach
from tests.probe.test_attached_resume import Job
from tests.probe.test_attached_worker import left

ROOT = Path(__file__).parents[2]
tokens, labels = instances()
VAL = (tokens.flip(0), {kind: own.flip(0) for kind, own in labels.items()})
# every fifth step, in full every fifteenth; a map of half the instances
TIERS = {"full_every": 15, "map_points": 24, "val": VAL}


def train(path, steps=14, **options):
    """Train with a probe every two steps, in full every six; give the probe, and the states of each step."""
    seed_all()
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe = attach(model, path, **{"full_every": 6, "map_points": 24, "val": VAL, **options})
    states = {}
    for step in range(steps):
        due = probe.is_due(step)
        probe.step(step, loss=float(step))
        if due:
            states[step] = probe.states()
        loss = torch.nn.functional.cross_entropy(model(tokens), labels["output"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    probe.close(steps)
    return probe, states


def tiers_of(folder):
    rows = folder.scores()
    return {
        step: {row["tier"] for row in rows if row["step"] == step} for step in sorted({row["step"] for row in rows})
    }


@pytest.fixture(scope="module")
def within(tmp_path_factory):
    """Train with step probes that are scored at once."""
    path = tmp_path_factory.mktemp("within") / "run"
    return path, *train(path, worker="off")


def test_rows_say_their_tier_as_in_runs(within):
    _, probe, states = within
    assert tiers_of(probe.folder) == {
        **dict.fromkeys((0, 6, 12, 14), {"full"}),
        **dict.fromkeys((2, 4, 8, 10), {"step"}),
    }
    rows = [row for row in probe.history if row["tier"] == "step"]
    assert {row["space"] for row in rows} == {"hidden", "map"}
    for row in rows:
        assert (row["split"], row["group"], row["labels"], row["warm"]) == ("train", "all", "task", True)
        assert row["n_points"] == 24 and row["null_ari"] is None and row["ari"] is not None
    assert probe.folder.map_steps() == [0, 6, 12, 14]
    assert {step: sorted(own) for step, own in states.items() if step in (4, 6)} == {4: ["train"], 6: ["train", "val"]}
    assert states[4]["train"].shape == (2, 24, 16) and states[6]["train"].shape == (2, 48, 16)
    assert [row["loss"] for row in probe.folder.steps()] == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0, None]
    assert probe.folder.config()["probe"]["full_every"] == 6
    assert "every 2 steps, in full every 6, into" in repr(probe)


def test_a_step_probe_reads_the_states_of_the_map_s_points(tmp_path):
    model = Net()
    model.noise = 0.0
    # at a token of its own for each instance
    options = {"position": torch.arange(48) % 2, "map_points": 24, "full_every": 2}
    probe = attach(model, tmp_path / "run", every=1, worker="off", **options)
    probe.step(0)
    whole, on_map = probe.states()["val"], probe._points["val"].on_map
    probe.step(1)
    torch.testing.assert_close(probe.states()["val"], whole[:, on_map])
    assert len(on_map) == 24 and not torch.equal(on_map, torch.arange(24))


def test_rows_are_those_of_the_scorer_that_runs_have(within):
    """Nothing but the states depends on the loop: the same Scorer, given them in turn, finds the same."""
    _, probe, states = within
    known = probe._points
    scorer = Scorer(replace(QUICK, perplexity=5.0), choose_engine("auto", "cpu"), torch.device("cpu"), 0)
    for step, own in states.items():
        full = step % 6 == 0
        points = {name: (known[name] if full else known[name].shown()).at(X) for name, X in own.items()}
        rows = scorer.score(Captured(step, points, full=full, key_frame=step == 0, position="last")).rows
        found = [row for row in probe.history if row["step"] == step and row["labels"] != "task_input"]
        assert found == [{**dict.fromkeys(found[0]), **row} for row in rows if row["labels"] != "task_input"]


@pytest.mark.parametrize("options", [{}, {"positions": {"word": 0, "input": 1}}, {"val": None, "plan": None}])
def test_a_worker_leaves_what_scores_at_once_do(tmp_path, within, options):
    path = within[0]
    if options:
        train(path := tmp_path / "off", worker="off", **options)
    probe, _ = train(tmp_path / "on", worker="on", **options)
    assert left(tmp_path / "on") == left(path) and len(left(path)) > 20
    assert probe.folder.config()["resolved"]["probe_worker"] is True


def test_a_worker_is_given_no_new_memory_for_each_tier(tmp_path):
    probe = attach(Net(), tmp_path / "run", every=1, full_every=2, map_points=24, val=VAL, worker="on")
    for step in range(8):
        probe.step(step), probe.wait()
    # what it was told, and the states of one full probe: of train and of val
    assert len(probe._probes.runner._process._given) == 3
    probe.close()


@pytest.mark.parametrize("kind", ["run", "attached"])
def test_a_full_probe_scores_as_if_no_step_probe_had_been(tmp_path, kind):
    """But for the map, which goes on from where step probes moved it, unless it starts cold."""
    scores = {}
    for name, every in (("between", 3), ("alone", 6)):
        if kind == "attached":
            config = replace(QUICK, key_frame_every=2)
            folder = train(tmp_path / name, steps=24, every=every, scores=config)[0].folder
        else:
            probe = {**SMALL["probe"], "every": every, "full_every": 6}
            training = {**SMALL["training"], "steps": 24}
            own = {**SMALL, "probe": probe, "training": training, "scores": {**SMALL["scores"], "key_frame_every": 2}}
            folder = start_run(config_from_dict(own), tmp_path / name).folder
        rows = [row for row in folder.scores() if row["tier"] == "full"]
        assert {row["step"] for row in rows} == {0, 6, 12, 18, 24}
        cold = [row for row in rows if row["space"] == "hidden" or row["step"] in (0, 12, 24)]
        scores[name] = cold, [row for row in rows if row not in cold]
        assert all(row["warm"] for row in scores[name][1]) and not any(row["warm"] for row in cold)
    assert scores["between"][0] == scores["alone"][0] and scores["between"][1] != scores["alone"][1]


def assert_same_curves(path, other):
    """Compare all bytes of rows, maps and states, steps but for their times, and summaries but for theirs."""
    one, two = RunFolder.open(path), RunFolder.open(other)
    assert one.status() == two.status() == "finished"
    assert left(path) == left(other)
    steps = [[{k: v for k, v in row.items() if k not in TIMES} for row in run.steps()] for run in (one, two)]
    assert steps[0] == steps[1]
    summaries = [{k: v for k, v in run.summary().items() if k != "probe_seconds"} for run in (one, two)]
    assert summaries[0] == summaries[1]


@pytest.fixture(scope="module", params=["before", "after"])
def whole(request, tmp_path_factory):
    """Train 40 steps in one go, probed before a step or after it; the end is no step of a full probe."""
    path = tmp_path_factory.mktemp("whole") / "run"
    Job(path, request.param, **TIERS).train(40)
    return request.param, path


def test_the_end_has_a_full_probe_beside_its_step_probe(whole):
    order, path = whole
    folder = RunFolder.open(path)
    tiers = tiers_of(folder)
    # a loop that gave the last step before it ended has both
    assert tiers.pop(40) == ({"full"} if order == "before" else {"step", "full"})
    # the first one there is, is a full one
    assert [step for step, own in tiers.items() if own == {"full"}] == ([0] if order == "before" else [5]) + [15, 30]
    assert [row["step"] for row in folder.steps()][-2:] == ([35, 40] if order == "before" else [40, 40])
    assert folder.map_steps()[-1] == 40


# 12, 22, 28 and 37 lie between a step probe and a full one
@pytest.mark.parametrize(
    ("end", "worker"), [(12, "off"), (16, "off"), (22, "on"), (28, "off"), (37, "on"), (39, "off")]
)
@pytest.mark.filterwarnings("ignore:.* set aside in")
def test_a_loop_that_stopped_anywhere_has_the_curves_of_one_that_did_not(whole, tmp_path, end, worker):
    order, path = whole
    saved = Job(tmp_path / "run", order, worker=worker, **TIERS).train(40, end=end)
    Job(tmp_path / "run", order, saved, resume=True, worker=worker, **TIERS).train(40)
    assert_same_curves(path, tmp_path / "run")
    assert not (tmp_path / "run" / "set-aside").exists()


@pytest.mark.filterwarnings("ignore:.* set aside in")
@pytest.mark.parametrize("end", [20, 33])
def test_a_loop_that_ended_goes_on_as_one_that_was_longer_from_the_start(whole, tmp_path, end):
    """Its end is probed in full, at a step that a longer loop has a step probe of, or none."""
    order, path = whole
    saved = Job(tmp_path / "run", order, **TIERS).train(end)
    assert "full" in tiers_of(RunFolder.open(tmp_path / "run"))[end]
    Job(tmp_path / "run", order, saved, resume=True, **TIERS).train(40)
    assert_same_curves(path, tmp_path / "run")
    # the full probe's rows are nowhere else
    (kept,) = (tmp_path / "run" / "set-aside").glob("*/scores.jsonl")
    assert {json.loads(line)["step"] for line in kept.read_text().splitlines()} == {end}


def test_an_end_that_a_longer_loop_has_not_is_no_place_to_go_on_from(tmp_path):
    with attach(Net(), tmp_path / "run", full_every=6) as probe:
        probe.step(0), probe.step(2)
        # due, but as a step probe
        probe.close(4)
    with pytest.warns(UserWarning, match="1 checkpoint, 1 map, .* set aside in"):
        probe = attach(Net(), tmp_path / "run", full_every=6, resume=True)
        probe.step(5)
    assert [row["step"] for row in probe.folder.steps()] == [0, 2] and probe.folder.map_steps() == [0]
    probe.step(8)
    assert tiers_of(probe.folder) == {0: {"full"}, 2: {"step"}, 8: {"step"}}


@pytest.mark.filterwarnings("ignore:.* set aside in")
@pytest.mark.parametrize("what", ["centroids", "map", "ids", "full_probes"])
def test_a_state_that_lacks_something_would_be_seen(whole, tmp_path, monkeypatch, what):
    order, path = whole
    saved = Job(tmp_path / "run", order, **TIERS).train(40, end=22)
    if what == "full_probes":
        go_back = Record.go_back
        monkeypatch.setattr(Record, "go_back", lambda self, *given: (go_back(self, *given), setattr(self, what, 3))[0])
    else:
        load = Scorer.load_state
        monkeypatch.setattr(
            Scorer,
            "load_state",
            lambda self, state: load(
                self, {name: own.flip(-1) if what in name else own for name, own in state.items()}
            ),
        )
    Job(tmp_path / "run", order, saved, resume=True, **TIERS).train(40)
    with pytest.raises(AssertionError):
        assert_same_curves(path, tmp_path / "run")


def test_what_is_gone_on_with_has_the_same_cadence(tmp_path):
    attach(Net(), tmp_path / "run", full_every=6).close(0)
    for options, named in (({}, "full_every = 6, and is to go on with 2"), ({"full_every": 8}, "go on with 8")):
        with pytest.raises(UsageError, match=named):
            attach(Net(), tmp_path / "run", resume=True, **options)
    # as it is rounded up
    attach(Net(), tmp_path / "run", resume=True, full_every=5).close(0)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"full_every": 0}, "full_every: expected 1 or more, got 0"),
        ({"full_every": 4, "map_points": 5, "val": VAL}, "map_points: expected more .*n_neighbors=5, got 5"),
    ],
)
def test_what_is_wrong_is_said_before_training(tmp_path, options, part):
    with pytest.raises(UsageError, match=part):
        attach(Net(), tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_scores_of_both_tiers_go_by_names_of_their_own(tmp_path):
    told = []
    options = {"log": lambda metrics, step: told.append((step, metrics)), "positions": {"word": 0, "input": 1}}
    probe, _ = train(tmp_path / "run", steps=3, **options)
    assert [step for step, _ in told] == [0, 2, 3]
    names = {f"{place}/blocks.{layer}/{column}" for place in ("fclm/word", "fclm/input") for layer in (0, 1)
             for column in ("ari", "knn_share")}  # fmt: skip
    steps = {name.replace("/blocks", "/step/blocks") for name in names}
    assert [set(metrics) for _, metrics in told] == [names, steps, names]
    # those of several probes at once: the newest of each name
    rows = [row for row in probe.history if row["step"] < 3]
    assert set(probe.headline(rows)) == names | steps
    assert probe.headline(rows) == told[0][1] | told[1][1] and probe.headline() == told[2][1]
    row = next(r for r in rows if r["tier"] == "step" and r["layer"] == 1 and r["position"] == "input")
    assert told[1][1]["fclm/input/step/blocks.1/ari"] == row["ari"] and row["space"] == "hidden"


@pytest.mark.parametrize(
    ("full", "step", "said"),
    [
        # in 50 steps of 0.5 s there are 1 s of a full probe and four times 0.1 s: 1.4 of 26.4 s
        ((1.0, 0.0), (0.1, 0.0), r"step 0 took 1 s of training's time; the step probe of step 10 took 0.1 s of "
         r"training's time: 5.3% of it at every=10, full_every=50, where a step takes 0.5 s; every=11, full_every=55 "),
        # the process needs 60 s for those of a turn
        ((0.1, 20.0), (0.1, 10.0), r"step 0 took 0.1 s of training's time, and 20 s beside it; .* step 10 took 0.1 s "
         r"of training's time, and 10 s beside it: 2.0% of it .* every=24, full_every=120 keeps"),
    ],
)  # fmt: skip
def test_one_line_says_what_both_tiers_take(monkeypatch, caplog, full, step, said):
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    cadence = Cadence(10, None, 1, full_every=50)
    cost = Cost(cadence, torch.device("cpu"))
    with caplog.at_level(logging.INFO):
        for at in range(60):
            cost.count(at)
            if cadence.is_due(at):
                seconds, beside = full if cadence.is_full(at) else step
                clock[0] += seconds
                cost.spend(seconds)
                cost.probed(at, seconds, beside, full=cadence.is_full(at))
            clock[0] += 0.5
    (record,) = caplog.records
    assert re.search(said, record.getMessage()), record.getMessage()


def test_a_step_probe_without_memory_is_skipped_alone(tmp_path, monkeypatch):
    score = StatesScorer.score

    def short(self, asked, states):
        if asked.step == 4:
            raise torch.OutOfMemoryError("none at all")
        return score(self, asked, states)

    monkeypatch.setattr(StatesScorer, "score", short)
    with pytest.warns(UserWarning, match="step 4 was skipped: OutOfMemoryError: none at all"):
        probe, _ = train(tmp_path / "run", steps=8, worker="off")
    assert [row["step"] for row in probe.folder.steps() if row["skipped"]] == [4]
    assert tiers_of(probe.folder) == {0: {"full"}, 2: {"step"}, 6: {"full"}, 8: {"full"}}


def test_ranks_of_a_sharded_model_run_the_same_probes_after_a_resume(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "-m", "tests.probe.attached_tier_ranks", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert tiers_of(RunFolder.open(tmp_path / "run")) == {
        2: {"full"},
        4: {"step"},
        6: {"full"},
        8: {"step"},
        9: {"full"},
    }
