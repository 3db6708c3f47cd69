"""Errors a user will make on the command line: one line on stderr, the right status, a traceback only with -v."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tomli_w
import torch
from click.testing import CliRunner, Result

from fastcluster_lm.cli import main
from fastcluster_lm.config import RunConfig, config_from_dict, config_to_dict
from fastcluster_lm.engine import Hooks, start_run
from tests.laws.conftest import SMALL


@pytest.fixture(scope="module")
def config() -> RunConfig:
    """Give the small config with two steps and no probe."""
    small = config_from_dict(SMALL)
    training = replace(small.training, steps=2, checkpoint_every=1)
    return replace(small, training=training, probe=replace(small.probe, every=0))


@pytest.fixture(scope="module")
def folder(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with the config, a run that is finished and one that was stopped after its first step."""
    place = tmp_path_factory.mktemp("cli")
    (place / "config.toml").write_text(tomli_w.dumps(config_to_dict(config)))
    assert start_run(config, place / "finished").finished
    assert not start_run(config, place / "stopped", Hooks(should_stop=lambda: True)).finished
    return place


@pytest.fixture(autouse=True)
def work_in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what a command may write away from the repository."""
    monkeypatch.chdir(tmp_path)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def assert_one_line(done: Result, exit_code: int, *parts: str) -> None:
    """Expect nothing on stdout and one line on stderr, with these parts, in the form of our errors."""
    assert isinstance(done.exception, SystemExit), repr(done.exception)
    assert done.stdout == ""
    assert done.stderr.startswith("fclm: ") and done.stderr.count("\n") == 1 and done.stderr.endswith("\n")
    for part in parts:
        assert part in done.stderr
    assert done.exit_code == exit_code


def contents(path: Path) -> dict[Path, bytes]:
    return {entry: entry.read_bytes() for entry in path.rglob("*") if entry.is_file()}


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["train", "--probe-evry", "3"], ["No such option '--probe-evry'", "--probe-every"]),
        (["train", "--probe-every", "often"], ["--probe-every", "'often' is not a valid integer"]),
        (["train", "--probe-every", "-1"], ["--probe-every", "-1 is not in the range"]),
        (["train", "--engine", "rapid"], ["--engine", "'rapid' is not one of", "'rapids'"]),
        (["train", "--preset"], ["'--preset' requires an argument"]),
        (["train", "extra"], ["unexpected extra argument", "extra"]),
        (["trian"], ["got 'trian'; did you mean 'train'?"]),
        (["runs", "--json", "--csv"], ["expected one of --json and --csv, got both"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_wrong_option_is_refused_in_one_line(arguments, parts):
    assert_one_line(call(*arguments), 2, *parts)


@pytest.mark.parametrize("command", ["train", "data"])
def test_a_preset_with_a_typo_gets_the_nearest_name(command):
    assert_one_line(call(command, "--preset", "tinny"), 2, "--preset: ", "got 'tinny'; did you mean 'tiny'?")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[training]\nstep = 3\n", "mine.toml: unknown key 'training.step'; did you mean 'steps'?"),
        ("[trainig]\nsteps = 3\n", "mine.toml: unknown key 'trainig'; did you mean 'training'?"),
        ("[training]\nsteps = '3'\n", "mine.toml: training.steps: expected a whole number, got '3'"),
        ("training = 3\n", "mine.toml: training: expected a table of keys, got 3"),
        ("[training\nsteps = 3\n", "mine.toml: expected a TOML file, got one that cannot be read"),
        (None, "mine.toml: expected a TOML file, found none"),
    ],
    ids=["key", "table", "type", "no table", "no TOML", "no file"],
)
@pytest.mark.parametrize("command", ["train", "data"])
def test_a_wrong_config_file_is_named_with_its_key(command, text, part):
    if text is not None:
        Path("mine.toml").write_text(text)
    assert_one_line(call(command, "-c", "mine.toml"), 2, part)
    assert not Path("runs").exists()


def test_a_wrong_setting_is_named_with_its_key():
    done = call("train", "-s", "training.stpes=3")
    assert_one_line(done, 2, "--set: unknown key 'training.stpes'; did you mean 'steps'?")
    assert_one_line(call("train", "-s", "training.steps=few"), 2, "training.steps: expected a whole number, got 'few'")


def test_an_output_folder_that_exists_is_left_alone(folder):
    before = contents(folder / "finished")
    done = call("train", "-c", folder / "config.toml", "--out", folder / "finished")
    assert_one_line(done, 2, f"{folder / 'finished'} exists already", "choose another name, resume that run")
    assert contents(folder / "finished") == before


@pytest.mark.parametrize("run", ["stopped", "finished"])
def test_resuming_with_another_config_names_the_keys_that_differ(folder, run):
    before = contents(folder / run)
    done = call("train", "--resume", folder / run, "--seed", 4, "-s", "training.steps=2", "-s", "model.d_model=32")
    assert_one_line(done, 2, str(folder / run), "got other values for model.d_model, seed; leave those options out")
    assert contents(folder / run) == before


def test_resuming_with_the_same_values_said_again_is_not_another_config(folder):
    done = call("train", "--resume", folder / "finished", "-c", folder / "config.toml", "--seed", 0)
    assert done.exit_code == 0, done.output


def test_resuming_what_is_no_run_is_refused(folder):
    assert_one_line(call("train", "--resume", "nowhere"), 1, "there is no run folder nowhere")
    assert_one_line(call("train", "--resume", folder), 1, "has no run.toml, so it is not a run folder")
    done = call("train", "--resume", folder / "stopped", "--out", "other")
    assert_one_line(done, 2, "expected one of --out and --resume, got both")


def test_resuming_a_finished_run_says_so_and_succeeds(folder):
    before = contents(folder / "finished")
    done = call("train", "--resume", folder / "finished")
    assert done.exit_code == 0, done.output
    assert f"{folder / 'finished'} is finished (2 steps); there is nothing to resume" in done.stderr
    assert contents(folder / "finished") == before


def test_rapids_without_a_gpu_is_refused_before_anything_is_written(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = call("train", "-c", folder / "config.toml", "--engine", "rapids", "--out", "run")
    assert_one_line(done, 2, "engine 'rapids' cannot run here", "no CUDA device", "use 'fused'")
    assert not Path("run").exists()


def test_cuda_without_a_gpu_is_refused_before_anything_is_written(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = call("train", "-c", folder / "config.toml", "-s", "device=cuda", "--out", "run")
    assert_one_line(done, 2, "device: expected a CUDA GPU, found none", "set device=cpu")
    assert not Path("run").exists()


@pytest.mark.parametrize("command", ["train", "data"])
def test_the_traceback_is_shown_with_v_alone(command):
    quiet, loud = call(command, "--preset", "tinny"), call(command, "--preset", "tinny", "-v")
    assert "Traceback" not in quiet.stderr
    assert loud.stderr.startswith("Traceback (most recent call last):\n")
    assert "errors.ConfigError: --preset" in loud.stderr
    # the line that explains it comes last, and is the same
    assert loud.stderr.splitlines()[-1] + "\n" == quiet.stderr
    assert loud.exit_code == quiet.exit_code == 2


def test_a_process_of_its_own_prints_no_more_than_the_line(folder):
    # no import may warn, no interpreter may add a traceback
    words = ["train", "-c", str(folder / "config.toml"), "--engine", "rapids", "--out", "run"]
    done = subprocess.run(
        [sys.executable, "-m", "fastcluster_lm", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("fclm: engine 'rapids'") and done.stderr.count("\n") == 1


def test_a_report_needs_a_run_and_writes_where_it_is_told(folder: Path, tmp_path: Path) -> None:
    done = call("report", folder / "finished")
    assert done.exit_code == 0 and done.stdout.startswith(f"{folder / 'finished' / 'report.html'} (")
    done = call("report", folder / "finished", folder / "stopped", "-o", "both.html")
    assert done.exit_code == 0 and (tmp_path / "both.html").stat().st_size > 1e6
    assert_one_line(call("report", folder / "absent"), 1, "there is no run folder")
    assert_one_line(call("report", folder / "finished", "-o", "no/such/folder.html"), 1, "cannot write", "no/such")
    assert_one_line(call("report", folder / "finished", "--png", "figures"), 1, "has no scores")
    assert_one_line(call("report", folder / "finished", folder / "stopped", "--png", "x"), 2, "expected one run")
    assert not (tmp_path / "figures").exists() and not (tmp_path / "x").exists()


def test_a_view_whose_package_is_missing_says_how_to_get_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastcluster_lm.views.extras.find_spec", lambda name: None)
    for command, package in ((("report",), "bokeh"), (("report", "--png", "x"), "matplotlib"), (("watch",), "bokeh")):
        assert_one_line(call(*command, folder / "finished"), 2, package, "pip install 'fastcluster-lm[report]'")


def test_training_writes_event_files_where_it_is_asked(config: RunConfig, folder: Path, tmp_path: Path) -> None:
    done = call("train", "-c", folder / "config.toml", "--out", "run", "--tensorboard")
    assert done.exit_code == 0, done.output
    assert len(list((tmp_path / "run" / "tensorboard").glob("events.out.tfevents.*"))) == 1


def test_sparklines_are_a_row_for_each_place(folder: Path) -> None:
    done = call("scores", folder / "finished", "--sparklines", "--json")
    assert done.exit_code == 0 and done.stdout.strip() == "[]"


@pytest.mark.parametrize("ask", [lambda: torch.empty(2**46), lambda: bytearray(2**62)])
def test_a_lack_of_memory_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch, ask) -> None:
    monkeypatch.setattr("fastcluster_lm.engine.start_run", lambda *_, **__: ask())
    done = CliRunner().invoke(main, ["train", "-c", str(folder / "config.toml"), "--out", "run"])
    assert done.exit_code == 1 and done.exception.code == 1
    assert done.stderr.startswith("fclm: this takes more memory than there is; a smaller batch takes less (")
    assert done.stderr.count("\n") == 1


def test_another_error_of_torch_is_no_lack_of_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastcluster_lm.engine.start_run", lambda *_, **__: torch.empty(2) @ torch.empty(3))
    done = CliRunner().invoke(main, ["train", "-c", str(folder / "config.toml"), "--out", "run"])
    assert isinstance(done.exception, RuntimeError)
