"""Probes in a process beside training give what probes within it give, byte for byte, and end when it ends."""

import gc
import json
import os
import signal
import time
from dataclasses import replace
from multiprocessing import Pipe
from threading import Thread
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastcluster_lm.device import Device, worker_policy
from fastcluster_lm.engine import Hooks, Rooms, resume_run, serve_probes, start_run
from fastcluster_lm.errors import ConfigError, ProbeError, TrainingError, UsageError
from fastcluster_lm.kernels import native
from fastcluster_lm.probe import (
    FinishedProbe,
    InlineRunner,
    RunProbe,
    SavedState,
    Waiting,
    WorkerProcess,
    WorkerRunner,
)
from fastcluster_lm.probe.runners import worker as runners
from fastcluster_lm.store import RunFolder
from fastcluster_lm.tasks import taskset_of
from tests.laws.conftest import fingerprint, run_to_end


def probing(config, worker, **changes):
    return replace(config, probe=replace(config.probe, worker=worker, **changes))


def files(folder):
    """Read all that a run leaves but timings, the stored configuration and the machine's description."""
    parts = [path for part in ("maps", "checkpoints") for path in sorted((folder.path / part).rglob("*.safetensors"))]
    return {str(path.relative_to(folder.path)): path.read_bytes() for path in [folder.path / "scores.jsonl", *parts]}


@pytest.mark.parametrize("changes", [{"every": 4}, {"every": 1, "full_every": 5, "source": "batch"}])
def test_a_process_beside_training_scores_what_training_itself_would(small, tmp_path, changes):
    within = run_to_end(probing(small, "off", **changes), tmp_path / "within").folder
    beside = run_to_end(probing(small, "on", **changes), tmp_path / "beside").folder
    assert files(beside) == files(within)
    assert fingerprint(beside) == fingerprint(within)
    assert [row["step"] for row in beside.steps()] == [row["step"] for row in within.steps()]
    probed = [row for row in beside.steps() if row["probe_ms"] is not None]
    assert len(probed) == sum(row["probe_ms"] is not None for row in within.steps())
    assert all(row["probe_wait_ms"] is not None for row in beside.steps())
    assert beside.config()["resolved"]["probe_worker"] and not within.config()["resolved"]["probe_worker"]


def test_a_run_stopped_beside_its_worker_goes_on_bit_for_bit(small, tmp_path):
    small = probing(small, "on", every=1, full_every=5, source="batch")
    whole = run_to_end(small, tmp_path / "whole").folder
    seen = []
    hooks = Hooks(on_step=lambda row, scores: seen.append(row["step"]), should_stop=lambda: 7 in seen)
    assert not start_run(small, tmp_path / "stopped", hooks).finished
    outcome = resume_run(tmp_path / "stopped")
    assert outcome.finished and outcome.resumed_from == 7
    # a stop leaves a checkpoint of its own
    extra = {name for name in files(outcome.folder) if "step-000007" in name}
    assert {name: data for name, data in files(outcome.folder).items() if name not in extra} == files(whole)


@pytest.fixture
def worker(small):
    """Start a worker of a small run that streams states."""
    config = probing(small, "on", every=1, full_every=4, source="batch")
    run = Rooms(config, taskset_of(config.tasks, config.seed))
    runner = run.start_runner()
    assert isinstance(runner, WorkerRunner)
    yield run, runner
    runner.close()


@pytest.mark.parametrize(("asked", "threads"), [(0, [2, 3]), (1, [1, 1])])
def test_kernels_take_all_cores_while_training_waits(small, tmp_path, monkeypatch, asked, threads):
    monkeypatch.setattr(native, "cpu_cores", lambda: 3)
    monkeypatch.setattr(gc, "freeze", lambda: None)
    monkeypatch.setattr(native, "_threads", 0)
    seen = []
    score = RunProbe.score
    monkeypatch.setattr(RunProbe, "score", lambda self, step: seen.append(native.thread_count()) or score(self, step))
    ours, theirs = Pipe()
    shared = (tmp_path / "shared").open("wb+")
    shared.write(b"\0")
    shared.flush()
    # in a thread of this process, so that it can be looked at
    thread = Thread(target=serve_probes, args=(os.dup(theirs.fileno()), shared.fileno()))
    beside = SimpleNamespace(pid=os.getpid(), returncode=None, poll=lambda: None, wait=thread.join, kill=lambda: None)
    config = probing(replace(small, scores=replace(small.scores, threads=asked)), "on")
    run = Rooms(config, taskset_of(config.tasks, config.seed))
    thread.start()
    runner = run.start_runner(WorkerProcess(beside, ours, Waiting(shared.fileno())))
    try:
        runner.submit(0)
        assert runner._arrived.poll(60_000)
        runner.collect(wait=False)
        with runner._patience.waiting(), runner._worker.waiting.told():
            runner.submit(4)
            assert runner._arrived.poll(60_000)
    finally:
        theirs.close()
        runner._sender.shutdown()
        ours.close()
        thread.join()
        shared.close()
    assert seen == threads


def test_weights_are_copied_when_a_probe_is_asked_for(worker):
    run, runner = worker
    inline = InlineRunner(run.probe)
    for step in range(3):
        if step:
            result = run.trainer.advance()
            for one in (inline, runner):
                one.observe(result.batch, result.states, step)
        inline.submit(0)
        runner.submit(0)
        with torch.no_grad():
            # as training would go on, long before the process has started
            for weight in run.trainer.model.parameters():
                weight.mul_(1.01)
            if step:
                result.states.mul_(1.5)
    inline.save()
    runner.save()
    # the process has only just begun to start, so that nothing has come
    assert (runner.behind, runner.probes_behind) == (4, 3) and inline.probes_behind == 0
    ours, theirs = runner.collect(wait=True), inline.collect(wait=True)
    assert [type(event) for event in ours] == [FinishedProbe] * 3 + [SavedState] == [type(event) for event in theirs]
    for one, other in zip(ours[:3], theirs[:3], strict=True):
        assert one.result.rows == other.result.rows
    assert ours[3].tensors.keys() == theirs[3].tensors.keys()
    assert all(torch.equal(value, theirs[3].tensors[name]) for name, value in ours[3].tensors.items())
    assert runner.behind == runner.probes_behind == 0


@pytest.mark.parametrize("seconds", [0.0, 3600.0])
def test_training_is_only_so_far_ahead(worker, monkeypatch, seconds):
    run, runner = worker
    # probes that take long together leave it less far ahead, once that is known
    monkeypatch.setattr(runners, "LEAD_SECONDS", seconds)
    most = runners.LEAD if seconds == 0 else runners.LONGEST_LEAD
    runner.submit(0)
    runner.collect(wait=True)
    for step in range(runners.LONGEST_LEAD + 3):
        runner.submit(0)
        # what has come is taken only where it must be
        assert runner.behind == min(step + 1, most)


def test_a_process_beside_training_names_layers_that_are_not_finite(worker):
    run, runner = worker
    with torch.no_grad():
        run.trainer.model.ln_f.bias.fill_(float("nan"))
        next(run.trainer.model.parameters()).fill_(float("nan"))
    runner.submit(0)
    (event,) = runner.collect(wait=True)
    named = "states of train and val are not finite"
    assert event.result.skipped == f"layer 0: {named}; layer 1: {named}; layer 2: {named}"
    assert event.result.rows and all(row["ari"] is None for row in event.result.rows)


def test_a_process_that_was_killed_is_named(worker):
    run, runner = worker
    runner.submit(0)
    os.kill(runner.process_id, signal.SIGKILL)
    with pytest.raises(ProbeError, match="the probe's process ended with status -9.*probe.worker=off"):
        runner.collect(wait=True)


def test_the_process_ends_with_its_connection_and_leaves_signals_to_training(worker):
    run, runner = worker
    assert os.getpgid(runner.process_id) != os.getpgid(0)
    for _ in range(2):
        # before it has built anything, and after
        runner.submit(0)
        time.sleep(0.3)
        os.kill(runner.process_id, signal.SIGINT)
        os.kill(runner.process_id, signal.SIGTERM)
        assert len(runner.collect(wait=True)) == 1
    process = runner._worker.process
    # as when training is killed: nobody says goodbye
    runner._sender.shutdown()
    runner._worker.connection.close()
    gc.collect()
    deadline = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.returncode == 0


def test_a_process_that_cannot_be_started_is_explained(small, monkeypatch):
    config = probing(small, "on")
    run = Rooms(config, taskset_of(config.tasks, config.seed))
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with pytest.raises(ProbeError, match="cannot be started: No such file or directory; resume the run with -s probe"):
        run.start_runner()


def test_steps_before_a_probe_that_fails_are_kept(small, tmp_path, monkeypatch):
    kill_at = []

    def submit(self, step):
        if step == 8:
            while self.behind:
                self._receive_one()
            kill_at.append(step)
            os.kill(self.process_id, signal.SIGKILL)
        return whole(self, step)

    whole = WorkerRunner.submit
    monkeypatch.setattr(WorkerRunner, "submit", submit)
    with pytest.raises(ProbeError):
        start_run(probing(small, "on", every=4), tmp_path / "run")
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "steps.jsonl").read_text().splitlines()]
    assert kill_at and steps == list(range(8))
    # what came before the error is there: rows, maps, and the checkpoint of step 5
    folder = RunFolder.open(tmp_path / "run")
    assert {row["step"] for row in folder.scores()} == {0, 4} and folder.map_steps() == [0, 4]
    assert folder.latest_checkpoint() == 5
    monkeypatch.undo()
    # as the message advises
    off = lambda config: replace(config, probe=replace(config.probe, worker="off"))  # noqa: E731
    outcome = resume_run(tmp_path / "run", wanted=off)
    assert outcome.resumed_from == 5
    assert outcome.finished and fingerprint(outcome.folder) == fingerprint(
        run_to_end(probing(small, "off", every=4), tmp_path / "whole").folder
    )


def test_an_answer_for_another_step_is_refused(worker):
    run, runner = worker
    runner.submit(0)
    runner._pending[0] = 3
    with pytest.raises(ProbeError, match="expected the probe's process to answer for step 3, got an answer for 0"):
        runner.collect(wait=True)


def test_what_cannot_be_sent_ends_the_wait_for_it(worker):
    run, runner = worker
    runner._send("score", 0, lambda: None)
    runner._pending.append(0)
    with pytest.raises(ProbeError, match="ended with status -9"):
        runner.collect(wait=True)
    with pytest.raises(ProbeError):
        runner.submit(0)


def test_answers_that_came_before_a_message_that_cannot_be_sent_are_kept(worker):
    run, runner = worker
    runner.submit(0)
    assert runner._arrived.poll(60_000)
    # an answer is sent at one go
    time.sleep(0.5)
    os.kill(runner.process_id, signal.SIGKILL)
    runner._worker.process.wait()
    runner.observe(torch.arange(16), torch.zeros(16, 3, 16), 5)
    assert runner._sending.exception() is not None
    with pytest.raises(ProbeError, match="ended with status -9"):
        runner.submit(5)
    (first,) = runner.collect(wait=True)
    assert first.step == 0 and first.result.rows
    with pytest.raises(ProbeError, match="ended with status -9"):
        runner.collect(wait=True)


def test_a_probe_that_cannot_be_built_says_why(small):
    config = probing(small, "on")
    run = Rooms(config, taskset_of(config.tasks, config.seed))
    run.config = replace(config, probe=replace(config.probe, n_points=48, map_points=48))
    runner = run.start_runner()
    try:
        runner.submit(0)
        with pytest.raises(ConfigError, match="scores.n_neighbors: expected at most"):
            runner.collect(wait=True)
    finally:
        runner.close()


def test_a_loss_that_is_not_finite_keeps_the_checkpoints_of_probes_under_way(small, tmp_path, diverges_after):
    diverges_after(6)
    for worker in ("on", "off"):
        with pytest.raises(TrainingError):
            start_run(probing(small, worker, every=4), tmp_path / worker)
    one, other = (RunFolder.open(tmp_path / worker) for worker in ("on", "off"))
    assert files(one) == files(other) and one.latest_checkpoint() == 5
    assert len(one.steps()) == len(other.steps()) == 7


def test_bytes_that_wait_to_be_sent_are_bounded(worker, monkeypatch):
    run, runner = worker
    monkeypatch.setattr(runners, "LEAD_BYTES", 5000)
    states, most = torch.zeros(16, 3, 16), 0
    for step in range(1, 200):
        runner.observe(torch.arange(16), states, step)
        most = max(most, runner._unsent)
    # one message beyond the limit, and the one that is being sent
    assert 0 < most <= 5000 + 2 * (states.nbytes + 16 * 8)


def test_answers_are_taken_while_messages_wait_to_be_sent(worker, monkeypatch):
    run, runner = worker
    monkeypatch.setattr(runners, "LEAD_BYTES", 5000)
    monkeypatch.setattr(runner._patience, "_limit_s", 5.0)
    # more than a pipe holds, both ways
    for _ in range(300):
        runner.save()
    states = torch.zeros(16, 3, 16)
    for step in range(1, 200):
        runner.observe(torch.arange(16), states, step)
    assert len(runner.collect(wait=True)) == 300


def test_who_gets_a_process_beside_training(monkeypatch):
    monkeypatch.setattr("fastcluster_lm.device.cpu_cores", lambda: 2)
    on = {threads: Device(torch.device("cpu"), torch.float32, threads, "") for threads in (1, 2)}
    assert worker_policy("auto", on[1], 31) == (True, "training takes 1 of 2 cores")
    assert worker_policy("auto", on[2], 31)[0] is False and worker_policy("on", on[2], 1)[0] is True
    assert worker_policy("auto", on[1], 3) == (False, "3 probes are done before a process has started")
    assert worker_policy("off", on[1], 31) == (False, "turned off")
    gpu = Device(torch.device("cuda"), torch.float32, 1, "")
    assert worker_policy("auto", gpu, 31)[0] is False
    with pytest.raises(UsageError, match="probe.worker: expected auto or off on a GPU"):
        worker_policy("on", gpu, 31)


def test_sizes_count_arrays_alone():
    assert runners._size({"a": np.zeros(3), "b": np.zeros((2, 2), np.float32)}) == 40
    assert runners._size("score") == runners._size(7) == 0 and runners._size(np.zeros(2)) == 16
