"""A resume removes nothing that it cannot read: it names it, and moves aside what goes once it is told to."""

import errno
import io
import os
import shutil
from pathlib import Path

import pytest
import torch

from fastcluster_lm.engine import Hooks, resume_run, start_run
from fastcluster_lm.engine.export import export_hugging_face
from fastcluster_lm.engine.probing import probe_run
from fastcluster_lm.errors import FclmError, NewerFormatError, RunFolderError, UsageError
from fastcluster_lm.store import RunFolder
from fastcluster_lm.training import Trainer
from tests.laws.conftest import fingerprint, run_to_end
from tests.laws.test_resume import maps_hash, scores_hash, stop_after
from tests.store.test_store_crash_points import Crash, CrashAt


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def flip_header(path: Path) -> None:
    """Break the JSON of the weights' header."""
    path.write_bytes(path.read_bytes().replace(b'{"', b"{(", 1))


def flip_shape(path: Path) -> None:
    """Let the weights' header say another shape."""
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"shape":[1', b'"shape":[3', 1))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def update(path: Path) -> None:
    path.write_bytes(b'{"format": 99}')


DAMAGES = [
    (flip, "state.json"),
    (cut, "state.json"),
    (Path.unlink, "state.json"),
    (flip, "model.safetensors"),
    (flip_header, "model.safetensors"),
    (flip_shape, "model.safetensors"),
    (cut, "optimizer.safetensors"),
    (Path.unlink, "probe.safetensors"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Give a run of 12 steps left alone, and one stopped behind step 11 with checkpoints at 5, 10 and there."""
    from fastcluster_lm.config import config_from_dict
    from tests.laws.conftest import SMALL

    place = tmp_path_factory.mktemp("runs")
    run_to_end(config_from_dict(SMALL), place / "whole")
    start_run(config_from_dict(SMALL), place / "stopped", stop_after(11))
    assert RunFolder.open(place / "stopped").checkpoint_steps() == [5, 10, 11]
    return place


@pytest.fixture
def stopped(runs, tmp_path):
    shutil.copytree(runs / "stopped", tmp_path / "run")
    return RunFolder.open(tmp_path / "run")


def files(folder: RunFolder) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.path.rglob("*") if path.is_file() and path.name != "lock"}


def assert_as_whole(folder: RunFolder, runs: Path) -> None:
    whole = RunFolder.open(runs / "whole")
    assert fingerprint(folder) == fingerprint(whole)
    assert scores_hash(folder) == scores_hash(whole)
    assert maps_hash(folder) == maps_hash(whole)
    assert not list(folder.path.rglob("*.tmp-*"))


@pytest.mark.parametrize(("damage", "name"), DAMAGES)
def test_the_newest_checkpoint_that_cannot_be_read_is_named_and_all_stays(stopped, runs, damage, name):
    newest = stopped.path / "checkpoints" / "step-000011"
    damage(newest / name)
    before = files(stopped)
    for _ in range(2):
        with pytest.raises(RunFolderError, match=rf"step-000011/{name}.*nothing was changed") as raised:
            resume_run(stopped.path)
        assert f"fclm train --resume {stopped.path} --from-step 10" in str(raised.value)
    assert files(stopped) == before
    damaged = {path.name: path.read_bytes() for path in newest.iterdir()}
    notes = []
    outcome = resume_run(stopped.path, Hooks(note=notes.append), from_step=10)
    assert outcome.finished and outcome.resumed_from == 10
    assert_as_whole(stopped, runs)
    # what it wrote again has gone, what is of no other use is left
    (place,) = (stopped.path / "set-aside").iterdir()
    assert notes == [f"1 checkpoint, 1 row set aside in {place}, later than step 10"]
    left = {path.name: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    # with what it was made with
    assert left == {**damaged, "run.toml": (stopped.path / "run.toml").read_bytes()}


@pytest.mark.parametrize("name", ["checkpoints", "state.json", "model.safetensors", "steps.jsonl", "run.toml"])
def test_a_read_that_fails_once_changes_nothing_and_the_next_resume_goes_on(stopped, runs, monkeypatch, name):
    failed = []

    def failing(real):
        def call(path, *args, **kwargs):
            if not failed and isinstance(path, str | os.PathLike) and Path(path).name == name:
                failed.append(path)
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
            return real(path, *args, **kwargs)

        return call

    before = files(stopped)
    with monkeypatch.context() as patch:
        for module, function in ((io, "open"), (os, "open"), (os, "listdir"), (os, "scandir")):
            patch.setattr(module, function, failing(getattr(module, function)))
        with pytest.raises(RunFolderError, match=f"{name}.*Input/output error"):
            resume_run(stopped.path)
    assert failed and files(stopped) == before
    assert resume_run(stopped.path).resumed_from == 11
    assert_as_whole(stopped, runs)
    assert not (stopped.path / "set-aside").exists()


def test_a_healthy_earlier_checkpoint_can_be_chosen_even_of_a_finished_run(runs, tmp_path):
    shutil.copytree(runs / "whole", tmp_path / "run")
    folder = RunFolder.open(tmp_path / "run")
    for step in (5, 0):
        notes = []
        outcome = resume_run(folder.path, Hooks(note=notes.append), from_step=step)
        assert outcome.finished and outcome.resumed_from == step
        assert "2 checkpoints" in notes[0] if step else "3 checkpoints, 4 maps" in notes[0]
        assert_as_whole(folder, runs)
        # every byte of what was set aside came again
        assert not (folder.path / "set-aside").exists()


def test_a_step_without_a_checkpoint_is_refused_by_name(stopped):
    before = files(stopped)
    with pytest.raises(UsageError, match=r"--from-step: .*\(0, 5, 10, 11\), got 7: there is none"):
        resume_run(stopped.path, from_step=7)
    flip(stopped.path / "checkpoints" / "step-000005" / "state.json")
    with pytest.raises(UsageError, match=r"\(0, 10, 11\), got 5: .*state.json is damaged"):
        resume_run(stopped.path, from_step=5)
    flip(stopped.path / "checkpoints" / "step-000005" / "state.json")
    assert files(stopped) == before


def test_no_readable_checkpoint_is_not_no_checkpoint_yet(stopped, runs):
    for step in (5, 10, 11):
        update(stopped.path / "checkpoints" / f"step-{step:06d}" / "state.json")
    before = files(stopped)
    with pytest.raises(NewerFormatError, match="format 99.*update fclm"):
        resume_run(stopped.path)
    for step in (5, 10, 11):
        cut(stopped.path / "checkpoints" / f"step-{step:06d}" / "state.json")
    with pytest.raises(RunFolderError, match="no earlier one can be read: .*--from-step 0"):
        resume_run(stopped.path)
    assert files(stopped).keys() == before.keys()
    assert resume_run(stopped.path, from_step=0).resumed_from == 0
    assert_as_whole(stopped, runs)


def test_a_run_of_a_newer_format_is_refused_untouched(stopped):
    path = stopped.path / "run.toml"
    path.write_bytes(path.read_bytes().replace(b"format = 1", b"format = 7"))
    before = files(stopped)
    for step in (None, 0, 5):
        with pytest.raises(NewerFormatError, match="update fclm"):
            resume_run(stopped.path, from_step=step)
    assert files(stopped) == before


def test_a_checkpoint_that_was_only_being_written_is_none(small, runs, tmp_path):
    start_run(small, tmp_path / "run", stop_after(2))
    folder = RunFolder.open(tmp_path / "run")
    place = folder.path / "checkpoints"
    (place / "step-000002").rename(place / ".step-000002.tmp-12345")
    (place / ".step-000002.tmp-12345" / "state.json").unlink()
    assert resume_run(folder.path).resumed_from == 0
    assert_as_whole(folder, runs)


def test_readers_name_the_newest_checkpoint_that_cannot_be_read(stopped, tmp_path):
    flip(stopped.path / "checkpoints" / "step-000011" / "model.safetensors")
    cut(stopped.path / "checkpoints" / "step-000011" / "state.json")
    for read in (probe_run, lambda path: export_hugging_face(path, tmp_path / "out")):
        with pytest.raises(RunFolderError, match="step-000011/state.json is damaged.*--step 10"):
            read(stopped.path)
    said = []
    assert {row["step"] for row in probe_run(stopped.path, step="all", say=said.append)} == {5, 10}
    assert any("step 11 is left out" in text for text in said)
    export_hugging_face(stopped.path, tmp_path / "out", step=10)


def crash_while_setting_aside(stopped, runs, monkeypatch, at: int, moment: str) -> bool:
    """End a resume from step 5 at a system call, resume it, and compare; say whether it was still setting aside."""
    with monkeypatch.context() as patch:
        CrashAt(patch, at, moment)
        began = []
        with pytest.raises(Crash):
            resume_run(stopped.path, Hooks(on_start=lambda folder, step: began.append(step)), from_step=5)
    assert resume_run(stopped.path).finished
    assert_as_whole(stopped, runs)
    # the run left alone has no checkpoint of step 11, where the other was stopped
    left = [path for path in (stopped.path / "set-aside").rglob("*") if path.is_file()]
    assert {path.parent.name for path in left if path.name != "run.toml"} <= {"step-000011"}
    return not began


@pytest.mark.parametrize("at", [4, 13, 19, 24])
def test_a_resume_killed_while_it_sets_aside_can_be_taken_up_again(stopped, runs, monkeypatch, at):
    assert crash_while_setting_aside(stopped, runs, monkeypatch, at, "during")


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before", "during", "after"])
def test_a_resume_killed_at_any_system_call_of_its_setting_aside_goes_on_bit_for_bit(
    runs, tmp_path, monkeypatch, moment
):
    at, setting_aside = 0, True
    while setting_aside:
        at += 1
        shutil.copytree(runs / "stopped", tmp_path / str(at))
        setting_aside = crash_while_setting_aside(RunFolder.open(tmp_path / str(at)), runs, monkeypatch, at, moment)
    assert at > 25


def test_what_cannot_be_read_of_what_was_set_aside_stops_no_resume_and_no_end(stopped, runs):
    place = stopped.path / "set-aside" / "20260101T000000Z"
    place.mkdir(parents=True)
    (place / "scores.jsonl").write_bytes(b'{"step";1}\n{"step": 2}\n')
    (place / "summary.json").write_bytes(b"{")
    notes = []
    assert resume_run(stopped.path, Hooks(note=notes.append)).finished
    assert_as_whole(stopped, runs)
    assert stopped.summary()["steps"] == 12 and len(list(place.iterdir())) == 2
    assert any("scores.jsonl" in note and "stays" in note for note in notes)


def test_no_memory_to_load_a_checkpoint_is_not_told_as_a_wrong_one(stopped, monkeypatch):
    for error in (torch.OutOfMemoryError("no memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")):
        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="memory") as raised:
            patch.setattr(Trainer, "load_state", raiser(error))
            resume_run(stopped.path)
        assert raised.value is error


def raiser(error: Exception):
    def call(*_, **__):
        raise error

    return call


DAMAGED_FACTS = [
    ("threads = 1", "", "resolved: .*threads"),
    ('device = "cpu"', 'device = "toaster"', "resolved.device: "),
    ('device = "cpu"', 'device = "cuda:x"', "resolved.device: "),
]


@pytest.mark.parametrize(("now", "other", "said"), DAMAGED_FACTS)
@pytest.mark.parametrize("step", [None, 0, 5])
def test_damaged_facts_of_the_machine_are_told_as_that(stopped, now, other, said, step):
    path = stopped.path / "run.toml"
    text, resolved, facts = path.read_text().partition("[resolved]")
    path.write_text(text + resolved + facts.replace(f"\n{now}\n", f"\n{other}\n", 1))
    before = files(stopped)
    with pytest.raises(RunFolderError, match=f"run.toml is damaged: {said}"):
        resume_run(stopped.path, from_step=step)
    assert files(stopped) == before


@pytest.mark.parametrize("was", ["{}", '{"resolved.threads" = "two"}', '{}, now = {"resolved.threads.more" = 1}'])
def test_damaged_changes_of_a_run_are_told_as_that(stopped, was):
    path = stopped.path / "run.toml"
    entry = f"step = 8, was = {was}" if "now" in was else f'step = 8, was = {was}, now = {{"resolved.threads" = 1}}'
    text = path.read_text().replace("\n[", f"\nchanges = [{{{entry}}}]\n[", 1)
    path.write_text(text)
    before = files(stopped)
    with pytest.raises(FclmError, match="changes"):
        resume_run(stopped.path, from_step=5)
    assert files(stopped) == before
