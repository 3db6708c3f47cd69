"""What a resume changes for the steps to come is said and written down with its step; all else is refused."""

import math
import shlex
import tomllib
from dataclasses import replace

import pytest
import tomli_w
import torch

from fastcluster_lm.cli import main
from fastcluster_lm.config import StoreConfig, config_to_dict, load_config
from fastcluster_lm.engine import Hooks, resume_run, start_run
from fastcluster_lm.errors import ConfigError, TrainingError, UsageError
from fastcluster_lm.kernels import native
from fastcluster_lm.scores import engines
from fastcluster_lm.store import RunFolder
from fastcluster_lm.training import Trainer
from tests.laws.conftest import fingerprint, run_to_end
from tests.laws.test_nothing_lost import files
from tests.laws.test_resume import maps_hash, scores_hash, stop_after


@pytest.fixture
def stopped(small, tmp_path):
    start_run(small, tmp_path / "run", stop_after(5))
    return RunFolder.open(tmp_path / "run")


def edit(folder, change):
    values = tomllib.loads((folder.path / "run.toml").read_text())
    change(values)
    (folder.path / "run.toml").write_bytes(tomli_w.dumps(values).encode())


def another_level(monkeypatch, folder):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "OTHER")
    return r"torch's level of instructions \w+ -> OTHER", {"resolved.cpu_capability": "OTHER"}


def kernels_off(monkeypatch, folder):
    edit(folder, lambda values: values["resolved"].update(kernels="x86-64-v9"))
    monkeypatch.setattr(native, "compiled", lambda: False)
    return "compiled kernels x86-64-v9 -> none", {"resolved.kernels": "none"}


def kernels_of_another_level(monkeypatch, folder):
    monkeypatch.setattr(native, "compiled", lambda: True)
    monkeypatch.setattr(native, "level", lambda: "x86-64-v9")
    return r"compiled kernels [\w-]+ -> x86-64-v9", {"resolved.kernels": "x86-64-v9"}


def no_engine(monkeypatch, folder):
    edit(folder, lambda values: values["resolved"].update(engine="reference"))
    monkeypatch.setattr(engines, "_absent_packages", lambda: ["openTSNE"])
    return "scoring engine reference -> fused", {"resolved.engine": "fused"}


def no_gpu(monkeypatch, folder):
    edit(folder, lambda values: values["resolved"].update(device="cuda", gpu="H200"))
    return "device cuda -> cpu, GPU H200 -> none", {"resolved.device": "cpu", "resolved.gpu": "none"}


ELSEWHERE = [another_level, kernels_off, kernels_of_another_level, no_engine, no_gpu]


def test_the_five_facts_are_in_run_toml(stopped):
    resolved = stopped.config()["resolved"]
    kernels = native.level() if native.compiled() else "none"
    assert (resolved["device"], resolved["threads"], resolved["engine"]) == ("cpu", 1, "fused")
    assert resolved["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert resolved["kernels"].startswith(kernels)


@pytest.mark.parametrize("move", ELSEWHERE)
def test_another_machine_is_refused_or_goes_on_by_wish_and_is_written_down(stopped, monkeypatch, move):
    said, now = move(monkeypatch, stopped)
    before = files(stopped)
    with pytest.raises(UsageError, match=rf"{said} .*fclm train --resume {stopped.path} --on-this-machine") as raised:
        resume_run(stopped.path)
    assert "\n" not in str(raised.value) and files(stopped) == before
    was = {key: stopped.config()["resolved"][key.removeprefix("resolved.")] for key in now}
    notes = []
    outcome = resume_run(stopped.path, replace(stop_after(8), note=notes.append), on_this_machine=True)
    assert not outcome.finished and len(notes) == 1 and notes[0].startswith("on this machine from step 5 on: ")
    stored = stopped.config()
    assert stored["changes"] == [{"step": 5, "was": was, "now": now}]
    assert now.items() <= {f"resolved.{key}": value for key, value in stored["resolved"].items()}.items()
    # the newest facts are those that count
    assert resume_run(stopped.path, Hooks(note=notes.append)).finished and len(notes) == 1
    assert stopped.config() == stored


def test_facts_are_those_of_the_steps_that_are_kept(small, stopped, tmp_path, monkeypatch):
    whole = run_to_end(small, tmp_path / "whole").folder
    with monkeypatch.context() as patch:
        another_level(patch, stopped)
        resume_run(stopped.path, stop_after(8), on_this_machine=True)
    with pytest.raises(UsageError, match="OTHER -> "):
        resume_run(stopped.path)
    # the step behind which it moved is of the first machine
    assert resume_run(stopped.path, from_step=5).finished
    assert "changes" not in stopped.config()
    assert fingerprint(stopped) == fingerprint(whole) and maps_hash(stopped) == maps_hash(whole)


def test_facts_that_an_earlier_version_did_not_store_are_not_compared_and_said_once(stopped, monkeypatch):
    edit(stopped, lambda values: [values["resolved"].pop(key) for key in ("cpu_capability", "kernels", "torch")])
    another_level(monkeypatch, stopped)
    notes = []
    for step in (8, 10):
        resume_run(stopped.path, replace(stop_after(step), note=notes.append))
    assert notes == [
        "run.toml, of an earlier version, does not say cpu_capability, kernels, torch: not compared, and written there "
        "now"
    ]
    assert stopped.config()["resolved"]["cpu_capability"] == "OTHER"


def test_another_version_of_torch_is_said_and_written_down(stopped):
    edit(stopped, lambda values: values["resolved"].update(torch="2.1.0"))
    notes = []
    assert resume_run(stopped.path, Hooks(note=notes.append)).finished
    assert notes == [f"on this machine from step 5 on: torch 2.1.0 -> {torch.__version__}"]
    assert stopped.config()["changes"][0]["was"] == {"resolved.torch": "2.1.0"}


@pytest.fixture
def explodes_at_seven(monkeypatch):
    """Give a loss of NaN at step 7 where the learning rate is above 0.003."""
    real = Trainer._loss_of

    def explode(self, batch):
        loss, states = real(self, batch)
        return (loss * float("nan") if self.step == 6 and self.config.learning_rate > 3e-3 else loss), states

    monkeypatch.setattr(Trainer, "_loss_of", explode)


def test_the_advice_after_a_nan_loss_is_true(small, tmp_path, explodes_at_seven, capsys):
    (tmp_path / "small.toml").write_bytes(tomli_w.dumps(config_to_dict(small)).encode())
    run = tmp_path / "run"
    with pytest.raises(SystemExit) as left:
        main(["train", "-c", str(tmp_path / "small.toml"), "--out", str(run)])
    assert left.value.code == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("fclm: step 7: expected a finite loss, got nan; go on from the last checkpoint")
    folder = RunFolder.open(run)
    kept = (run / "scores.jsonl").read_bytes()
    assert [row["step"] for row in folder.steps()] == list(range(7)) and folder.latest_checkpoint() == 5
    fclm, *command = shlex.split(message.partition("learning_rate: ")[2])
    assert fclm == "fclm" and command == ["train", "--resume", str(run), "-s", "training.learning_rate=0.002"]
    with pytest.raises(SystemExit) as left:
        main(command)
    assert left.value.code == 0
    said = capsys.readouterr().err
    assert "from step 5 on: training.learning_rate 0.004 -> 0.002" in said.replace("\n", " ")
    assert folder.status() == "finished" and (run / "scores.jsonl").read_bytes().startswith(kept)
    rates = {row["step"]: row["lr"] for row in folder.steps()}
    assert rates[3] == pytest.approx(0.004 * (0.5 + 0.5 * math.cos(math.pi * 0.1)))
    assert max(rates[step] for step in range(6, 13)) < 0.002
    stored = folder.config()
    assert stored["training"]["learning_rate"] == 0.002
    assert stored["changes"] == [
        {"step": 5, "was": {"training.learning_rate": 0.004}, "now": {"training.learning_rate": 0.002}}
    ]
    # a replay cannot silently be another run
    with pytest.raises(ConfigError, match=r"learning_rate was changed from 0.004 to 0.002 after step 5.*-s training"):
        load_config(run / "run.toml")
    assert load_config(run / "run.toml", chosen=["training.learning_rate"]).training.learning_rate == 0.002


def lay_over(**values):
    return lambda config: replace(config, training=replace(config.training, **values))


def test_a_lower_rate_from_the_beginning_is_the_run_that_always_had_it(small, stopped, tmp_path):
    lower = lay_over(learning_rate=1e-3)
    whole = run_to_end(lower(small), tmp_path / "whole").folder
    assert resume_run(stopped.path, wanted=lower, from_step=0).finished
    assert fingerprint(stopped) == fingerprint(whole) and scores_hash(stopped) == scores_hash(whole)
    assert stopped.config() == whole.config()


def test_a_resume_goes_on_with_what_was_changed_and_takes_back_what_it_goes_behind(small, stopped):
    resume_run(stopped.path, stop_after(8), wanted=lay_over(learning_rate=1e-3))
    resume_run(stopped.path, stop_after(11), wanted=lay_over(grad_clip=0.5))
    changes = [(entry["step"], list(entry["now"])) for entry in stopped.config()["changes"]]
    assert changes == [(5, ["training.learning_rate"]), (8, ["training.grad_clip"])]
    resume_run(stopped.path, stop_after(10), from_step=8, wanted=lambda stored: stored)
    assert stopped.config()["training"]["grad_clip"] == 0.5
    # the newest values hold, from the step that the run was taken back to
    resume_run(stopped.path, stop_after(9), from_step=5)
    (change,) = stopped.config()["changes"]
    assert change["step"] == 5 and change["now"] == {"training.grad_clip": 0.5, "training.learning_rate": 1e-3}


def test_how_often_is_saved_can_change_and_no_bit_of_the_run_does(small, stopped, tmp_path):
    whole = run_to_end(small, tmp_path / "whole").folder
    saved = lay_over(checkpoint_every=2, keep_checkpoints=2)
    outcome = resume_run(stopped.path, wanted=lambda stored: replace(saved(stored), store=StoreConfig(keep_maps=2)))
    assert outcome.finished and stopped.checkpoint_steps() == [10, 12] and stopped.map_steps() == [0, 12]
    assert fingerprint(stopped) == fingerprint(whole) and scores_hash(stopped) == scores_hash(whole)
    assert list(stopped.config()["changes"][0]["now"].values()) == [2, 2, 2]
    # it repeats the run
    assert load_config(stopped.path / "run.toml").training.checkpoint_every == 2


def test_a_diverged_run_without_a_checkpoint_begins_anew(small, tmp_path, diverges_after):
    diverges_after(3)
    with pytest.raises(TrainingError, match=r"fclm train --resume .*run -s training.learning_rate=0.002"):
        start_run(small, tmp_path / "run")
