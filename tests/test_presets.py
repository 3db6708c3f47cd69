"""Every preset can be built and takes a step; the wide ones with a narrow model, and whole where slow tests run."""

import pytest

from fastcluster_lm.config import apply_settings, load_preset, preset_names
from fastcluster_lm.engine import start_run

NARROW = ["model.d_model=8", "model.n_heads=2", "model.n_layers=1"]
ONE_STEP = ["training.steps=1", "training.warmup_steps=0", "scores.n_iter=10", "scores.n_init=1", "scores.n_nulls=1"]


def test_the_presets_are_three_small_ones_and_the_papers_three_widths():
    assert preset_names() == ["nano", "paper-2048", "paper-32", "paper-768", "tiny", "tiny-constant"]
    widths = {name: load_preset(name).model.d_model for name in preset_names()}
    small = dict.fromkeys(("nano", "tiny", "tiny-constant", "paper-32"), 32)
    assert widths == {**small, "paper-768": 768, "paper-2048": 2048}
    assert {load_preset(name).model.n_layers for name in preset_names() if name != "nano"} == {6}


@pytest.mark.parametrize("name", ["paper-32", "paper-768", "paper-2048", "tiny", "tiny-constant", "nano"])
def test_a_preset_builds_steps_and_probes(name, tmp_path):
    config = apply_settings(load_preset(name), [*NARROW, *ONE_STEP, "report.layer=1"])
    outcome = start_run(config, tmp_path / "run")
    assert outcome.finished
    assert {row["step"] for row in outcome.folder.scores()} == {0, 1}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["paper-768", "paper-2048"])
def test_a_wide_preset_takes_one_step_and_one_probe(name, tmp_path):
    # the model is whole, the instances few: validating and probing all of them takes many minutes on two cores
    few = ["tasks.n_inputs=2", "data.n_val_instructions=2", "probe.n_points=192", "probe.map_points=96"]
    config = apply_settings(load_preset(name), [*ONE_STEP, *few, "training.batch_size=16"])
    outcome = start_run(config, tmp_path / "run")
    assert outcome.finished
    layers = {row["layer"] for row in outcome.folder.scores()}
    assert layers == set(range(7))
