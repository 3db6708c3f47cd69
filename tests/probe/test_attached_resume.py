"""An attached run that was stopped goes on: its curves, maps and end are those of a loop that never stopped."""

import copy
import json
from dataclasses import replace

import pytest
import torch

from fastcluster_lm.errors import HeldError, RunExistsError, UsageError
from fastcluster_lm.probe.record import Record
from fastcluster_lm.probe.scorer import Scorer
from fastcluster_lm.store import RunFolder
from fastcluster_lm.store.set_aside import TIMES
from tests.probe.attached import QUICK, Net, instances
from tests.probe.attached_loops import attach

tokens, labels = instances()
SCORES = replace(QUICK, key_frame_every=4)


class Job:
    """A loop that saves itself every ten steps, and may end at any: probed before a step, or after it."""

    def __init__(self, path, order, saved=None, **options):
        torch.manual_seed(0)
        self.model = Net()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.order, self.taken, self.saved = order, 0, saved
        if saved is not None:
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.taken = saved["taken"]
        self.probe = attach(self.model, path, every=5, scores=SCORES, **options)

    def train(self, steps, *, end=None):
        """Take steps up to a number; end: where the process dies, between a step and whatever is due after it."""
        while self.taken < steps:
            torch.manual_seed(self.taken)
            if self.order == "before":
                self.probe.step(self.taken)
            loss = torch.nn.functional.cross_entropy(self.model(tokens), labels["output"])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.taken += 1
            if self.taken == end:
                self.probe.abandon()
                return self.saved
            if self.order == "after":
                self.probe.step(self.taken, loss=loss.item())
            if self.taken % 10 == 0 or self.taken == steps:
                # who goes on from here has the rows of all probes before
                self.probe.wait()
                state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
                self.saved = copy.deepcopy({**state, "taken": self.taken})
        self.probe.close(self.taken)
        return self.saved


def assert_same_run(path, other, aside=False):
    """Compare two run folders: rows and maps byte for byte, steps but for their times, and nothing is left aside."""
    one, two = RunFolder.open(path), RunFolder.open(other)
    assert one.status() == two.status() == "finished"
    assert (path / "scores.jsonl").read_bytes() == (other / "scores.jsonl").read_bytes()
    assert one.map_steps() == two.map_steps() == one.checkpoint_steps() == two.checkpoint_steps()
    for place in ("maps", "checkpoints"):
        names = [file.relative_to(path) for file in sorted((path / place).rglob("*")) if file.is_file()]
        assert names and all((path / name).read_bytes() == (other / name).read_bytes() for name in names)
    steps = [[{k: v for k, v in row.items() if k not in TIMES} for row in run.steps()] for run in (one, two)]
    assert steps[0] == steps[1]
    summaries = [{k: v for k, v in run.summary().items() if k != "probe_seconds"} for run in (one, two)]
    assert summaries[0] == summaries[1]
    assert (other / "set-aside").exists() is aside


@pytest.fixture(scope="module", params=["before", "after"])
def whole(request, tmp_path_factory):
    """Train 40 steps in one go."""
    path = tmp_path_factory.mktemp("whole") / "run"
    Job(path, request.param).train(40)
    return request.param, path


# the last checkpoint is older than the last probe, of the same step, or of none that was probed; or there is none
@pytest.mark.parametrize("end", [3, 12, 16, 20, 28, 39])
@pytest.mark.filterwarnings("ignore:.* set aside in")
def test_a_loop_that_stopped_anywhere_has_the_curves_of_one_that_did_not(whole, tmp_path, end):
    order, path = whole
    saved = Job(tmp_path / "run", order).train(40, end=end)
    assert RunFolder.open(tmp_path / "run").status() == "stopped"
    Job(tmp_path / "run", order, saved, resume=True).train(40)
    assert_same_run(path, tmp_path / "run")


@pytest.mark.filterwarnings("ignore:.* set aside in")
def test_a_loop_that_ended_goes_on_as_one_that_was_longer_from_the_start(whole, tmp_path):
    order, path = whole
    # 33 is not due: the probe at the end is one that a longer loop has not, though the checkpoint is of that step too
    saved = Job(tmp_path / "run", order).train(33)
    assert saved["taken"] == 33 and [row["step"] for row in RunFolder.open(tmp_path / "run").steps()][-1] == 33
    with pytest.warns(UserWarning, match=r"run: .*map.* set aside in .*/set-aside/"):
        Job(tmp_path / "run", order, saved, resume=True).train(40)
    # its rows are nowhere else, so they stay where they were moved
    assert_same_run(path, tmp_path / "run", aside=True)
    (kept,) = (tmp_path / "run" / "set-aside").glob("*/scores.jsonl")
    assert {json.loads(line)["step"] for line in kept.read_text().splitlines()} >= {33}


def test_the_first_step_that_is_given_is_scored_as_the_model_is_now(tmp_path):
    first, second = Net(), Net()
    first.noise = second.noise = 0.0
    with attach(first, tmp_path / "run") as probe:
        old = [probe.step(step) for step in (2, 4)]
    with pytest.warns(UserWarning, match="29 rows|1 map"):
        new = attach(second, tmp_path / "run", resume=True).step(4, loss=0.5)
    assert new and [row.get("cdnv") for row in new] != [row.get("cdnv") for row in old[1]]
    stored = [row["cdnv"] for row in RunFolder.open(tmp_path / "run").scores()]
    assert stored == [row.get("cdnv") for row in old[0] + new]


@pytest.mark.filterwarnings("ignore:.* set aside in")
@pytest.mark.parametrize("what", ["map", "neighbors", "preserved", "probes", "full_probes"])
def test_a_state_that_lacks_something_would_be_seen(whole, tmp_path, monkeypatch, what):
    order, path = whole
    saved = Job(tmp_path / "run", order).train(40, end=28)
    if what.endswith("probes"):
        go_back = Record.go_back
        monkeypatch.setattr(Record, "go_back", lambda self, *given: (go_back(self, *given), setattr(self, what, 3))[0])
    else:
        load = Scorer.load_state

        def spoiled(self, state):
            value = state[what]
            load(self, {**state, what: value + 1 if what == "preserved" else value.flip(1)})

        monkeypatch.setattr(Scorer, "load_state", spoiled)
    Job(tmp_path / "run", order, saved, resume=True).train(40)
    with pytest.raises(AssertionError):
        assert_same_run(path, tmp_path / "run", aside=True)


def test_a_run_begins_where_there_is_none_yet(tmp_path):
    with attach(Net(), tmp_path / "run", resume=True) as probe:
        probe.step(0)
    assert RunFolder.open(tmp_path / "run").status() == "finished"
    with pytest.raises(RunExistsError, match="run exists already; give another out=, .* resume=True to go on with it"):
        attach(Net(), tmp_path / "run")
    with pytest.raises(UsageError, match="resume: expected out="):
        attach(Net(), None, resume=True)


def test_what_is_gone_on_with_is_the_same(tmp_path):
    attach(Net(), tmp_path / "run").close(0)
    before = sorted((file, file.read_bytes()) for file in (tmp_path / "run").rglob("*") if file.is_file())
    other = {**labels, "task": labels["task"].roll(1)}
    for options, named in (
        (
            {"layers": ["embed", "blocks.*"]},
            r"attached.layers = \['blocks.0', 'blocks.1'\], and is to go on with \['emb",
        ),
        ({"every": 3}, "probe.every = 2, and is to go on with 3"),
        ({"position": 0}, "attached.position = '-1', and is to go on with '0'"),
        ({"position": torch.ones(48, dtype=torch.int64)}, "attached.position = '-1', and is to go on with 'tensor "),
        ({"seed": 1}, "seed = 0, and is to go on with 1"),
        ({"labels": other}, "attached.labels_sha256"),
        ({"scores": replace(QUICK, n_init=3)}, "scores.n_init = 2"),
    ):
        with pytest.raises(UsageError, match=f"run was begun with .*{named}"):
            attach(Net(), tmp_path / "run", resume=True, **options)
    with pytest.raises(UsageError, match=r"model.d_model|attached.n_parameters"):
        attach(Net(width=8), tmp_path / "run", resume=True)
    # nor was anything written, or is it where the loop never says where it goes on
    attach(Net(), tmp_path / "run", resume=True).close()
    after = sorted((file, file.read_bytes()) for file in (tmp_path / "run").rglob("*") if file.is_file())
    assert [entry for entry in after if entry[0].name != "lock"] == [
        entry for entry in before if entry[0].name != "lock"
    ]


def test_one_process_goes_on_at_a_time(tmp_path):
    first = attach(Net(), tmp_path / "run")
    with pytest.raises(HeldError, match="is being written by process"):
        attach(Net(), tmp_path / "run", resume=True)
    # one that is forgotten lets go
    del first
    attach(Net(), tmp_path / "run", resume=True).close(0)


@pytest.mark.parametrize("fault", ["write_state", "write_step", "append"])
@pytest.mark.filterwarnings("ignore")
def test_a_kill_in_the_middle_of_a_probe_costs_nothing(whole, tmp_path, monkeypatch, fault):
    order, path = whole
    if order == "after":
        pytest.skip("a loop that saves a step before it probes it never comes back to that probe")

    class Killed(BaseException):
        pass

    def die(self, step, *given, **known):
        if step == 25:
            raise Killed
        return honest(self, step, *given, **known)

    name = "write_step" if fault == "write_step" else "write_state"
    honest = getattr(Record, name)
    job = Job(tmp_path / "run", order)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Record, name, die)
        job.train(40)
    job.probe.abandon()
    if fault == "append":
        # the last row is torn
        scores = tmp_path / "run" / "scores.jsonl"
        scores.write_bytes(scores.read_bytes()[:-20])
    Job(tmp_path / "run", order, job.saved, resume=True).train(40)
    assert_same_run(path, tmp_path / "run")


@pytest.mark.filterwarnings("ignore:.* set aside in")
def test_a_damaged_state_is_told_and_the_one_before_it_serves(whole, tmp_path):
    order, path = whole
    saved = Job(tmp_path / "run", order).train(40, end=34)
    # the last one before the step that comes first: 30, or 31
    last = 25 if order == "before" else 30
    damaged = tmp_path / "run" / "checkpoints" / f"step-{last:06d}" / "probe.safetensors"
    data = damaged.read_bytes()[:-1] + b"?"
    damaged.write_bytes(data)
    with pytest.warns(UserWarning, match=f"the probe of step {last} cannot be gone on from: .*damaged"):
        Job(tmp_path / "run", order, saved, resume=True).train(40)
    steps = [row["step"] for row in RunFolder.open(tmp_path / "run").steps()]
    assert [at for at in range(5, 41, 5) if at not in steps] == [last]
    assert data in [file.read_bytes() for file in (tmp_path / "run" / "set-aside").rglob("probe.safetensors")]


def test_steps_go_forward_and_end(tmp_path):
    probe = attach(Net(), tmp_path / "run", every=2)
    # numbers of any kind, as trainers have them
    assert probe.step(torch.tensor(2)) and probe.step(torch.tensor([3]).numpy()[0]) == []
    for wrong in (1.0, -1, True, None, "4", torch.tensor(4.0), torch.tensor([4, 5])):
        with pytest.raises(UsageError, match="step: expected the number of optimiser steps taken, 0 or more, got"):
            probe.step(wrong)
    with pytest.raises(UsageError, match="step: expected 3 or more, the last one given, got 2; a loop that goes back"):
        probe.step(2)
    with pytest.raises(UsageError, match="step: expected 3 or more"):
        probe.close(1)
    assert probe.close(5)
    summary = probe.folder.summary()
    assert probe.close() == probe.close(5) == [] and probe.folder.summary() == summary
    for late in (probe.step, probe.close):
        with pytest.raises(UsageError, match="step: got 6, but this probe's run has ended; .* resume=True"):
            late(6)
    assert [row["step"] for row in probe.folder.steps()] == [2, 5]
    assert {type(row["step"]) for row in probe.folder.scores()} == {int}


def test_an_older_run_without_states_is_set_aside_whole(tmp_path):
    attach(Net(), tmp_path / "run").close(2)
    for file in (tmp_path / "run" / "checkpoints" / "step-000002").iterdir():
        file.unlink()
    (tmp_path / "run" / "checkpoints" / "step-000002").rmdir()
    with pytest.warns(UserWarning, match="the probe of step 2 cannot be gone on from: .*no checkpoint"):
        probe = attach(Net(), tmp_path / "run", resume=True)
        assert not any(row["warm"] for row in probe.step(4))
    assert [row["step"] for row in probe.folder.steps()] == [4]
    assert len([*(tmp_path / "run" / "set-aside").glob("*/scores.jsonl")]) == 1
