"""Scores beside an attached loop: the same bytes as at once, some steps later; what goes wrong there ends no loop."""

import logging
import os
import re
import signal
import time
from dataclasses import replace

import pytest
import torch

from fastcluster_lm.errors import ProbeError, UsageError
from fastcluster_lm.probe import Cadence, ProbePlan, ProbeSkippedWarning
from fastcluster_lm.probe.cost import Cost
from fastcluster_lm.probe.runners import attached
from fastcluster_lm.probe.runners.shared_states import Region
from tests.probe.attached import Net, instances, seed_all
from tests.probe.attached_loops import attach

tokens, labels = instances()


def train(path, steps=8, **options):
    """Train with a probe every two steps; give what it left of the model, and the steps whose rows each call gave."""
    seed_all()
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe = attach(model, path, val=(tokens.flip(0), {kind: own.flip(0) for kind, own in labels.items()}), **options)
    came, losses = [], []
    for step in range(steps):
        came.append({row["step"] for row in probe.step(step, loss=float(step))})
        loss = torch.nn.functional.cross_entropy(model(tokens), labels["output"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    came.append({row["step"] for row in probe.close(steps)})
    return [*(own.tolist() for own in model.state_dict().values()), losses, torch.rand(3).tolist()], came, probe


def left(path):
    """Give all bytes of rows, maps and states of a run, and its steps without their times."""
    files = [file for place in ("maps", "checkpoints") for file in sorted((path / place).rglob("*")) if file.is_file()]
    return {str(file.relative_to(path)): file.read_bytes() for file in [path / "scores.jsonl", *files]}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Train with and without a worker."""
    root = tmp_path_factory.mktemp("both")
    return root, train(root / "off", worker="off"), train(root / "on", worker="on")


def test_a_worker_leaves_what_scores_at_once_do(both):
    root, (trained_off, _, off), (trained_on, _, on) = both
    assert trained_off == trained_on
    assert left(root / "off") == left(root / "on") and len(left(root / "on")) > 10
    assert off.scores == on.scores and off.scores
    seen = [
        [{k: v for k, v in row.items() if not k.endswith("_ms")} for row in one.folder.steps()] for one in (off, on)
    ]
    assert seen[0] == seen[1] and [row["step"] for row in seen[0]] == [0, 2, 4, 6, 8]
    assert on.folder.config()["resolved"]["probe_worker"] is True


def test_rows_come_some_steps_later_and_close_waits(both):
    _, (_, came_off, _), (_, came_on, _) = both
    assert came_off[0] == {0} and came_on[0] == set()
    assert set().union(*came_on) == set().union(*came_off) == {0, 2, 4, 6, 8}


def test_training_stands_still_for_the_states_alone(both):
    steps = both[2][2].folder.steps()
    assert all(row["probe_wait_ms"] < row["probe_ms"] for row in steps)


def test_wait_gives_what_is_under_way(tmp_path):
    model = Net()
    probe = attach(model, tmp_path / "run", worker="on")
    assert probe.step(0) == []
    assert {row["step"] for row in probe.wait()} == {0} and probe.wait() == []
    states = probe.states()["val"]
    assert states.shape == (2, 48, 16)
    model.embed.weight.data.zero_()
    probe.step(2), probe.wait()
    # they are the caller's own
    assert not torch.equal(states, probe.states()["val"])
    probe.close()


def test_a_process_that_ends_costs_its_probes_and_training_goes_on(tmp_path):
    seed_all()
    model = Net()
    model.noise = 0.0
    probe = attach(model, tmp_path / "run", every=1, worker="on")
    probe.step(0), probe.wait()
    os.kill(probe._probes.runner._process.pid, signal.SIGSTOP)
    probe.step(1), probe.step(2)
    os.kill(probe._probes.runner._process.pid, signal.SIGKILL)
    with pytest.warns(ProbeSkippedWarning, match=r"step [12] was skipped: the probe's process ended: its status is -9"):
        assert probe.wait() == []
    # the next one has a process of its own, which goes on from the last map
    assert probe.step(3) == []
    rows = probe.wait()
    assert {row["step"] for row in rows} == {3} and any(row["warm"] for row in rows if row["space"] == "map")
    probe.close()
    steps = probe.folder.steps()
    assert [row["step"] for row in steps] == [0, 1, 2, 3]
    assert [row["skipped"] is None for row in steps] == [True, False, False, True]
    assert probe.folder.status() == "finished"


def test_an_answer_for_another_probe_costs_what_was_under_way(tmp_path, monkeypatch):
    probe = attach(Net(), tmp_path / "run", every=1, worker="on")
    take = attached._Process.take
    monkeypatch.setattr(attached._Process, "take", lambda self: (replace((got := take(self))[0], step=7), *got[1:]))
    probe.step(0)
    with pytest.warns(ProbeSkippedWarning, match="step 0 was skipped: .* it answered for step 7 where step 0 was due"):
        probe.wait()
    monkeypatch.undo()
    probe.step(1)
    assert {row["step"] for row in probe.close()} == {1}
    assert [(row["step"], row["skipped"] is None) for row in probe.folder.steps()] == [(0, False), (1, True)]


def test_a_probe_that_fails_there_is_named_and_the_next_is_scored(tmp_path):
    model = Net()
    probe = attach(model, tmp_path / "run", every=1, worker="on")
    weight = model.blocks[1][0].weight.detach().clone()
    model.blocks[1][0].weight.data.fill_(torch.nan)
    probe.step(0)
    with pytest.warns(ProbeSkippedWarning, match="step 0 skipped layer 1: states of val are not finite"):
        probe.wait()
    model.blocks[1][0].weight.data.copy_(weight)
    probe.step(1)
    assert all(row["ari"] is not None for row in probe.wait() if row["group"] == "all")
    probe.close()


def test_reading_that_fails_is_written_in_its_turn(tmp_path):
    model = Net()
    probe = attach(model, tmp_path / "run", every=1, worker="on")
    probe.step(0)
    handle = model.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("none at all")))
    probe.step(1)
    handle.remove()
    probe.step(2)
    with pytest.warns(ProbeSkippedWarning, match="step 1 was skipped: OutOfMemoryError: none at all"):
        probe.close()
    assert [(row["step"], row["skipped"] is None) for row in probe.folder.steps()] == [(0, True), (1, False), (2, True)]


def test_a_loop_that_ends_in_an_error_ends_the_process_at_once(tmp_path):
    with pytest.raises(KeyError), attach(Net(), tmp_path / "run", worker="on") as probe:
        probe.step(0)
        process = probe._probes.runner._process._worker.process
        raise KeyError
    assert process.poll() == -signal.SIGKILL and probe.folder.status() == "stopped"


def test_signals_are_for_training(tmp_path):
    """Ctrl-C reaches the whole group of a terminal; the process is not in it, and ignores it anyway."""
    probe = attach(Net(), tmp_path / "run", worker="on")
    pid = probe._probes.runner._process.pid
    assert os.getpgid(pid) != os.getpgid(0)
    probe.step(0)
    probe.wait()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(pid, number)
    probe.step(2)
    assert {row["step"] for row in probe.wait()} == {2}
    probe.close()


def test_an_interrupted_wait_can_be_taken_up_again(tmp_path):
    probe = attach(Net(), tmp_path / "run", worker="on")
    probe.step(0)
    before = signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(KeyboardInterrupt):
            probe.wait()
            time.sleep(10)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert {row["step"] for row in probe.close(0)} == {0}


def test_training_waits_where_there_is_no_more_room(tmp_path, monkeypatch):
    """Of states this large only one probe may be under way, and memory is that of one."""
    monkeypatch.setattr(attached, "LEAD_BYTES", 1)
    probe = attach(Net(), tmp_path / "run", every=1, worker="on")
    probe.step(0)
    assert {row["step"] for row in probe.step(1)} == {0}
    assert len(probe._probes.runner._process._given) == 2  # what it was told, and one probe's states
    probe.close()
    assert len(probe.folder.steps()) == 2


def test_memory_that_cannot_be_had_is_refused_in_words():
    with pytest.raises(ProbeError, match="MiB that two processes share cannot be had"):
        Region.of(2**60)


def test_a_run_that_goes_on_has_the_curves_of_one_that_did_not_stop(tmp_path, both):
    """The map and the centroids of the process that ended are those that the next begins with."""
    root, _, _ = both
    seed_all()
    model, order = Net(), {"val": (tokens.flip(0), {kind: own.flip(0) for kind, own in labels.items()})}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe = attach(model, tmp_path / "run", worker="on", **order)
    for step in range(8):
        if step == 5:
            probe.wait()
            probe.abandon()
            probe = attach(model, tmp_path / "run", worker="on", resume=True, **order)
        probe.step(step, loss=float(step))
        loss = torch.nn.functional.cross_entropy(model(tokens), labels["output"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    probe.close(8)
    assert left(tmp_path / "run") == left(root / "on")


@pytest.mark.parametrize(
    ("wanted", "device", "cores", "n_bytes", "expected"),
    [
        ("auto", "cpu", 4, 2**20, (True, "training takes 1 of 4 cores")),
        ("auto", "cpu", 4, 2**20 - 1, (False, "MiB of states are scored before a process has started")),
        ("auto", "cpu", 1, 2**30, (False, "takes all of 1 cores; torch.set_num_threads below")),
        ("auto", "cuda", 4, 2**30, (False, "the model lies on cuda")),
        ("on", "cuda", 1, 1, (True, "asked for")),
        ("off", "cpu", 4, 2**30, (False, "turned off")),
    ],
)
def test_where_scores_are_made_by_themselves(monkeypatch, wanted, device, cores, n_bytes, expected):
    monkeypatch.setattr(attached, "cpu_cores", lambda: cores)
    monkeypatch.setattr(attached.torch, "get_num_threads", lambda: 1)
    beside, reason = attached.beside_policy(wanted, torch.device(device), n_bytes)
    assert beside is expected[0] and expected[1] in reason


def test_another_word_for_where_is_refused(tmp_path):
    with pytest.raises(UsageError, match="worker: expected auto, on or off, got 'yes'"):
        attach(Net(), tmp_path / "run", worker="yes")
    assert not (tmp_path / "run").exists()


def test_a_process_that_cannot_start_leaves_no_folder_locked(tmp_path, monkeypatch):
    def refuse(entry):
        raise ProbeError("no process can be started")

    monkeypatch.setattr(attached, "started", refuse)
    with pytest.raises(ProbeError, match="no process can be started"):
        attach(Net(), tmp_path / "run", worker="on")
    monkeypatch.undo()
    attach(Net(), tmp_path / "run", worker="off", resume=True).close(0)


@pytest.mark.parametrize(
    ("seconds", "beside", "every", "said"),
    [
        # 19 steps' worth of training for each of the probe: a step takes 0.5 s
        (1.0, 0.0, 50, "took 1 s of training's time: 3.8% of it at every=50, where a step takes 0.5 s; every=38 keeps"),
        (1.0, 0.0, 5, "28.6% of it at every=5, .* every=38 keeps it under 5%"),
        (0.1, 40.0, 5, "took 0.1 s of training's time, and 40 s beside it: 3.8% .* every=80 keeps it under 5%"),
    ],
)
def test_one_line_says_what_a_probe_takes_and_how_often_it_may_come(monkeypatch, caplog, seconds, beside, every, said):
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    cost = Cost(Cadence(every, None, 1), torch.device("cpu"))
    with caplog.at_level(logging.INFO):
        for step in range(60):
            cost.count(step)
            if step % every == 0:
                clock[0] += seconds
                cost.spend(seconds)
                cost.probed(step, seconds, beside)
            clock[0] += 0.5
    assert len(caplog.records) == 1
    assert caplog.records[0].levelno >= logging.WARNING
    assert re.search(said.replace("(", r"\("), caplog.records[0].getMessage()), caplog.records[0].getMessage()


def test_the_line_is_told_in_a_loop(tmp_path, caplog):
    probe = attach(Net(), tmp_path / "run", every=3, plan=ProbePlan((), (), map=False))
    for step in range(12):
        probe.step(step)
    assert len([record for record in caplog.records if "of training's time" in record.getMessage()]) == 1


@pytest.mark.parametrize("trainer", ["hugging_face", "lightning"])
def test_a_trainer_that_saves_itself_waits_for_what_came_before(tmp_path, trainer):
    """Else who goes on from the checkpoint would lack rows, and the map that the next goes on from."""
    probe = attach(Net(), tmp_path / "run", worker="on")
    probe.step(0)
    if trainer == "hugging_face":
        transformers = pytest.importorskip("transformers")
        from fastcluster_lm import FclmTrainerCallback

        callback = FclmTrainerCallback(lambda model: probe)
        callback.probe = probe
        arguments = transformers.TrainingArguments(output_dir=str(tmp_path / "out"), report_to=[])
        callback.on_save(arguments, transformers.TrainerState(), transformers.TrainerControl())
    else:
        lightning = pytest.importorskip("lightning.pytorch")
        from fastcluster_lm import FclmLightningCallback

        callback = FclmLightningCallback(lambda model: probe)
        callback.probe = probe
        callback.on_save_checkpoint(lightning.Trainer(logger=False), lightning.LightningModule(), {})
    assert [row["step"] for row in probe.folder.steps()] == [0]
    probe.close()


def test_several_tokens_are_scored_beside_training_as_at_once(tmp_path):
    for worker in ("on", "off"):
        seed_all()
        probe = attach(Net(), tmp_path / worker, worker=worker, positions={"word": 0, "input": 1}, layers="blocks.*")
        probe.step(0), probe.step(2)
        probe.wait()
        assert sorted(probe.states()) == ["val/input", "val/word"]
        probe.close()
    assert left(tmp_path / "on") == left(tmp_path / "off")
    assert {row["position"] for row in probe.scores} == {"word", "input"}
