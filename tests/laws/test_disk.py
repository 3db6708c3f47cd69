"""A run takes on disk what was said before it began, keeps to its limit, and leaves no litter."""

from dataclasses import replace

import pytest

from fastcluster_lm.cli import main
from fastcluster_lm.config import StoreConfig, apply_settings, load_preset
from fastcluster_lm.engine import Hooks, resume_run, start_run
from fastcluster_lm.errors import ConfigError
from fastcluster_lm.store.disk_plan import plan_disk
from fastcluster_lm.store.folder import RunFolder
from fastcluster_lm.tasks import taskset_of
from tests.laws.conftest import fingerprint, run_to_end
from tests.laws.test_resume import maps_hash, scores_hash, stop_after


def measured(folder: RunFolder) -> int:
    return sum(path.stat().st_size for path in folder.path.rglob("*") if path.is_file())


def assert_as_planned(config, path) -> None:
    notes = []
    folder = start_run(config, path, Hooks(note=notes.append)).folder
    plan = plan_disk(config, taskset_of(config.tasks, config.seed))
    assert plan.total == pytest.approx(measured(folder), rel=0.05)
    # what depends on how numbers are written is rows alone
    assert len(folder.checkpoint_steps()) == plan.n_checkpoints and len(folder.map_steps()) == plan.n_maps
    assert set(folder.checkpoint_sizes().values()) <= set(range(plan.checkpoint - 99, plan.checkpoint + 99))
    assert all(abs(folder.map_size(step) - plan.map) < 99 for step in folder.map_steps())
    assert folder.sizes()["rows"] == pytest.approx(plan.rows, rel=0.1)
    assert notes[0].startswith(f"takes {plan}")


QUICK = ["scores.n_iter=30", "scores.warm_iter=5", "scores.n_init=1", "scores.n_nulls=3", "probe.worker=off"]
SHORT = [
    ("nano", 50, 100, []),
    ("nano", 1, 52, []),
    ("nano", 1, 120, ["probe.source=batch"]),
    ("nano", 5, 60, ['probe.positions=["instruction", "input"]', "probe.full_every=25", "probe.source=batch"]),
    ("nano", 0, 60, ["training.checkpoint_every=25"]),
    ("tiny", 50, 50, []),
]


@pytest.mark.parametrize(("preset", "every", "steps", "more"), SHORT)
def test_a_short_run_takes_what_was_said(tmp_path, preset, every, steps, more):
    settings = [f"probe.every={every}", f"training.steps={steps}", *QUICK, *more]
    assert_as_planned(apply_settings(load_preset(preset), settings), tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("every", [50, 1])
@pytest.mark.parametrize("preset", ["nano", "tiny"])
def test_a_whole_run_takes_what_was_said(tmp_path, preset, every):
    assert_as_planned(apply_settings(load_preset(preset), [f"probe.every={every}"]), tmp_path / "run")


def test_data_says_it_without_torch(capsys):
    import subprocess
    import sys

    code = "import sys; from fastcluster_lm.cli import main; main(['data', '--json'], standalone_mode=False)"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; sys.exit('torch' in sys.modules)"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("a run takes ") and "MiB on disk at the end: 3 checkpoints" in done.stderr


def limited(small, **limits):
    """Give a run with seven maps and six checkpoints."""
    return replace(
        small,
        probe=replace(small.probe, every=10, map_points=96),
        training=replace(small.training, steps=60, checkpoint_every=10),
        scores=replace(small.scores, key_frame_every=2),
        store=StoreConfig(**limits),
    )


def test_a_run_with_few_maps_is_the_same_run_and_a_resume_keeps_the_same(small, tmp_path):
    whole = run_to_end(limited(small), tmp_path / "whole").folder
    few = run_to_end(limited(small, keep_maps=4), tmp_path / "few").folder
    assert whole.map_steps() == [0, 10, 20, 30, 40, 50, 60] and few.map_steps() == [0, 20, 40, 60]
    start_run(limited(small, keep_maps=4), tmp_path / "stopped", stop_after(35))
    stopped = resume_run(tmp_path / "stopped").folder
    for folder in (few, stopped):
        assert fingerprint(folder) == fingerprint(whole) and scores_hash(folder) == scores_hash(whole)
    assert maps_hash(stopped) == maps_hash(few)
    assert not (stopped.path / "set-aside").exists() and not list(stopped.path.rglob("*.tmp-*"))


def test_a_limit_is_kept_at_every_step_and_costs_no_row(small, tmp_path, monkeypatch):
    from fastcluster_lm.store import budget, disk_plan

    for module in (budget, disk_plan):
        monkeypatch.setattr(module, "MIB", 1000)
    whole = run_to_end(limited(small), tmp_path / "whole").folder
    plan = plan_disk(limited(small), taskset_of(small.tasks, small.seed))
    limit = (plan.least + 4 * plan.map) // 1000
    assert plan.total > limit * 1000
    sizes = []
    folder = RunFolder(tmp_path / "run")
    watch = Hooks(on_step=lambda row, scores: sizes.append(measured(folder)))
    assert start_run(limited(small, max_mib=limit), folder.path, watch).finished
    assert max(sizes) <= limit * 1000 and measured(folder) <= limit * 1000
    assert 2 <= len(folder.map_steps()) < 7 and folder.checkpoint_steps()[-1] == 60
    assert {0, 60} <= set(folder.map_steps())
    assert fingerprint(folder) == fingerprint(whole) and scores_hash(folder) == scores_hash(whole)
    with pytest.raises(ConfigError, match="store.max_mib: expected at least"):
        start_run(limited(small, max_mib=plan.least // 1000 - 1), tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def test_a_report_of_a_run_with_few_maps_opens(small, tmp_path, capsys):
    few = run_to_end(limited(small, keep_maps=2), tmp_path / "few").folder
    with pytest.raises(SystemExit) as left:
        main(["report", str(few.path), "-o", str(tmp_path / "report.html")])
    assert left.value.code == 0 and (tmp_path / "report.html").stat().st_size > 10_000
    assert few.map_steps() == [0, 60]


def test_a_map_that_goes_while_a_page_reads_it_is_passed_over(small, tmp_path):
    from fastcluster_lm.views.report.history import read_history
    from fastcluster_lm.views.report.sources import RunSources

    folder = run_to_end(limited(small), tmp_path / "run").folder
    history = read_history(folder)
    for step in (10, 30):
        folder.drop_map(step)
    sources = RunSources(history)
    sources.fill(packed=True)
    assert sources.models.frames.data["step"] == [0, 20, 40, 50, 60]


def test_a_finished_run_under_a_limit_that_is_taken_up_from_the_beginning_ends_as_it_was(small, tmp_path, monkeypatch):
    from fastcluster_lm.store import budget, disk_plan

    for module in (budget, disk_plan):
        monkeypatch.setattr(module, "MIB", 1000)
    plan = plan_disk(limited(small), taskset_of(small.tasks, small.seed))
    limit = (plan.least + 4 * plan.map) // 1000
    folder = run_to_end(limited(small, max_mib=limit), tmp_path / "run").folder
    (folder.path / "report.html").write_bytes(b"x" * 10 * limit * 1000)
    before, notes = (maps_hash(folder), folder.map_steps(), folder.checkpoint_steps()), []
    assert resume_run(folder.path, Hooks(note=notes.append), from_step=0).finished
    assert (maps_hash(folder), folder.map_steps(), folder.checkpoint_steps()) == before
    assert not (folder.path / "set-aside").exists()
    assert any("does not count" in note for note in notes) and not any("is saved" in note for note in notes)
