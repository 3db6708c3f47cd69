"""Law 2: a run that was stopped anywhere goes on as if it never was."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import tomli_w

from fastcluster_lm.config import config_to_dict
from fastcluster_lm.engine import Hooks, resume_run, start_run
from fastcluster_lm.errors import ConfigError, TrainingError
from fastcluster_lm.store import RunFolder
from tests.laws.conftest import fingerprint, run_to_end


def scores_hash(folder: RunFolder) -> str:
    return hashlib.sha256((folder.path / "scores.jsonl").read_bytes()).hexdigest()


def maps_hash(folder: RunFolder) -> str:
    digest = hashlib.sha256()
    for path in sorted((folder.path / "maps").iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def stop_after(step: int) -> Hooks:
    """Stop a run once this many steps are done."""
    seen = []
    return Hooks(
        on_step=lambda row, scores: seen.append(row["step"]), should_stop=lambda: bool(seen) and seen[-1] >= step
    )


@pytest.mark.parametrize("stop", [1, 4, 5, 6, 8, 11])
def test_a_stopped_run_goes_on_bit_for_bit(small, tmp_path, stop):
    whole = run_to_end(small, tmp_path / "whole").folder
    assert not start_run(small, tmp_path / "stopped", stop_after(stop)).finished
    outcome = resume_run(tmp_path / "stopped")
    assert outcome.finished and outcome.resumed_from == stop
    assert fingerprint(outcome.folder) == fingerprint(whole)
    assert scores_hash(outcome.folder) == scores_hash(whole)
    assert maps_hash(outcome.folder) == maps_hash(whole)


def test_lines_later_than_the_checkpoint_are_dropped_and_written_again(small, tmp_path):
    whole = run_to_end(small, tmp_path / "whole").folder
    broken = run_to_end(small, tmp_path / "broken").folder
    # as after a crash: everything later than step 5 was written, but no checkpoint of it
    for step in (10, 12):
        for part in (broken.path / "checkpoints" / f"step-{step:06d}").iterdir():
            part.unlink()
        (broken.path / "checkpoints" / f"step-{step:06d}").rmdir()
    (broken.path / "summary.json").unlink()
    outcome = resume_run(broken.path)
    assert outcome.resumed_from == 5
    assert fingerprint(outcome.folder) == fingerprint(whole)
    assert scores_hash(outcome.folder) == scores_hash(whole)


def test_a_finished_run_is_left_as_it_is(small, tmp_path):
    folder = run_to_end(small, tmp_path / "run").folder
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    outcome = resume_run(folder.path)
    assert outcome.already_finished
    assert before == {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}


def test_another_config_is_refused_with_the_keys_that_differ(small, tmp_path):
    start_run(small, tmp_path / "run", stop_after(5))
    before = scores_hash(RunFolder.open(tmp_path / "run"))
    other = replace(small, training=replace(small.training, weight_decay=1.0, learning_rate=1.0))
    with pytest.raises(ConfigError, match="other values for training.weight_decay; .*only training.learning_rate"):
        resume_run(tmp_path / "run", wanted=lambda stored: other)
    assert scores_hash(RunFolder.open(tmp_path / "run")) == before


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(small, tmp_path):
    hot = replace(small, training=replace(small.training, learning_rate=1e30, warmup_steps=5, grad_clip=0.0))
    with pytest.raises(TrainingError, match="go on from the last checkpoint"):
        start_run(replace(hot, training=replace(hot.training, checkpoint_every=1)), tmp_path / "run")
    folder = RunFolder.open(tmp_path / "run")
    assert folder.latest_checkpoint() is not None
    tensors, _ = folder.read_checkpoint(folder.latest_checkpoint())
    assert set(tensors) == {"model", "optimizer", "probe"}


def test_the_stored_config_repeats_the_run(small, tmp_path):
    from fastcluster_lm.config import load_config

    first = run_to_end(small, tmp_path / "first").folder
    again = run_to_end(load_config(first.path / "run.toml"), tmp_path / "again").folder
    assert fingerprint(again) == fingerprint(first)
    assert scores_hash(again) == scores_hash(first)


def start_command(folder: Path, name: str) -> subprocess.Popen:
    """Start `fclm train` on the stored config and wait until its folder is there."""
    path = folder / name
    process = subprocess.Popen(
        [sys.executable, "-m", "fastcluster_lm", "train", "-c", str(folder / "config.toml"), "--out", str(path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    while not path.exists() and process.poll() is None:
        time.sleep(0.001)
    return process


def kill_sweep(config, folder: Path, kills: int, seed: int) -> None:
    """Kill runs at random moments of their lives, resume each, and compare with the run that was left alone."""
    (folder / "config.toml").write_bytes(tomli_w.dumps(config_to_dict(config)).encode())
    process = start_command(folder, "whole")
    born = time.monotonic()
    assert process.wait() == 0
    life = time.monotonic() - born
    whole = RunFolder.open(folder / "whole")
    draw = random.Random(seed)
    interrupted = 0
    for number in range(5 * kills):
        process = start_command(folder, f"killed-{number}")
        born = time.monotonic()
        time.sleep(draw.uniform(0, life))
        process.send_signal(signal.SIGKILL)
        if process.wait() == -signal.SIGKILL:
            interrupted += 1
        else:
            # this one was quicker than those before
            life = min(life, time.monotonic() - born)
        outcome = resume_run(folder / f"killed-{number}")
        assert outcome.finished
        assert fingerprint(outcome.folder) == fingerprint(whole)
        assert scores_hash(outcome.folder) == scores_hash(whole)
        assert maps_hash(outcome.folder) == maps_hash(whole)
        if interrupted == kills:
            break
    assert interrupted == kills  # or the sweep has shown nothing


def test_a_run_killed_at_random_moments_goes_on_bit_for_bit(small, tmp_path):
    kill_sweep(small, tmp_path, kills=3, seed=0)


@pytest.mark.slow
def test_a_run_killed_at_twenty_random_moments_goes_on_bit_for_bit(small, tmp_path):
    longer = replace(small, training=replace(small.training, steps=60))
    kill_sweep(longer, tmp_path, kills=20, seed=1)


def test_a_run_that_diverges_leaves_the_rows_that_led_there(small, tmp_path, diverges_after):
    diverges_after(3)
    with pytest.raises(TrainingError):
        start_run(small, tmp_path / "run")
    assert [row["step"] for row in RunFolder.open(tmp_path / "run").steps()] == [0, 1, 2, 3]


def test_a_resumed_run_keeps_the_threads_it_began_with(small, tmp_path, monkeypatch):
    import torch

    free = replace(small, training=replace(small.training, threads=0))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        stopped = Hooks(should_stop=lambda: True)
        assert not start_run(free, tmp_path / "run", stopped).finished
        torch.set_num_threads(2)
        seen = []
        hooks = Hooks(on_step=lambda row, scores: seen.append(torch.get_num_threads()))
        assert resume_run(tmp_path / "run", hooks).finished
        # within the run, while its caller's are put back
        assert set(seen) == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
