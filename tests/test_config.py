"""Configs: strict about keys, types and ranges, and the same after a trip through TOML."""

import pytest
import tomli_w

from fastcluster_lm.config import (
    RunConfig,
    apply_settings,
    config_from_dict,
    config_to_dict,
    describe_settings,
    differing_keys,
    load_config,
    load_preset,
    preset_names,
)
from fastcluster_lm.errors import ConfigError


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_and_survives_toml(name, tmp_path):
    config = load_preset(name)
    assert config.name == name
    (tmp_path / "run.toml").write_text(tomli_w.dumps(config_to_dict(config)))
    assert load_config(tmp_path / "run.toml") == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trainig": {}}, "unknown key 'trainig'; did you mean 'training'?"),
        ({"training": {"step": 3}}, "unknown key 'training.step'; did you mean 'steps'?"),
        ({"training": {"steps": "3"}}, "training.steps: expected a whole number, got '3'"),
        ({"training": {"steps": True}}, "training.steps: expected a whole number, got True"),
        ({"training": {"steps": 3.0}}, "training.steps: expected a whole number, got 3.0"),
        ({"training": {"steps": 0}}, "training.steps: expected at least 1, got 0"),
        ({"training": {"learning_rate": float("nan")}}, "training.learning_rate: expected a finite number, got nan"),
        ({"training": {"learning_rate": float("inf")}}, "training.learning_rate: expected a finite number, got inf"),
        ({"training": {"batch_size": 2**31}}, "training.batch_size: expected at most 16777216, got 2147483648"),
        ({"model": {"dropout": 1.0}}, "model.dropout: expected at most 0.9, got 1.0"),
        ({"training": {"loss": "outputs"}}, "expected one of output, all, got 'outputs'; did you mean 'output'?"),
        ({"training": 3}, "training: expected a table of keys, got 3"),
        ({"model": {"n_heads": 5}}, "model.n_heads: expected a divisor of model.d_model=32, got 5"),
        ({"probe": {"map_points": 5000}}, "probe.map_points: expected at most probe.n_points"),
        ({"report": {"layer": 7}}, "report.layer: expected at most model.n_layers=6, got 7"),
    ],
)
def test_a_wrong_value_is_refused_with_its_key(values, message):
    with pytest.raises(ConfigError) as caught:
        config_from_dict(values, origin="mine.toml")
    assert message in str(caught.value)
    assert str(caught.value).startswith("mine.toml: ")


def test_a_value_at_the_end_of_its_range_is_taken():
    config = config_from_dict({"model": {"dropout": 0.9}, "training": {"learning_rate": 1}, "report": {"layer": 6}})
    assert (config.model.dropout, config.training.learning_rate, config.report.layer) == (0.9, 1.0, 6)
    assert type(config.training.learning_rate) is float
    assert config_from_dict({"probe": {"n_points": 96, "map_points": 96}}).probe.map_points == 96


def test_the_headline_s_layer_is_the_one_named_and_the_last_for_minus_one():
    layers = {layer: config_from_dict({"report": {"layer": layer}}).headline_layer for layer in (-1, 0, 3, 6)}
    assert layers == {-1: 6, 0: 0, 3: 3, 6: 6}


def test_a_file_is_laid_over_its_base_and_names_its_task_set_from_its_own_folder(tmp_path):
    (tmp_path / "mine.toml").write_text("[tasks]\nfile = 'sets/a=b.toml'\n[training]\nsteps = 7\n")
    config = load_config(tmp_path / "mine.toml", apply_settings(RunConfig(), ["seed=3", "training.batch_size=8"]))
    assert config.tasks.file == str(tmp_path.resolve() / "sets" / "a=b.toml")
    assert (config.seed, config.training.steps, config.training.batch_size) == (3, 7, 8)


def test_a_setting_s_value_may_hold_an_equals_sign():
    assert apply_settings(RunConfig(), ["tasks.file=a=b.toml"]).tasks.file == "a=b.toml"


def test_defaults_that_the_scores_rest_on():
    config = RunConfig()
    # docs/architecture.md, "Scores and their names": k, the draws behind a null; a task set follows the run's seed
    assert (config.scores.n_neighbors, config.scores.n_nulls, config.tasks.seed) == (5, 20, -1)


def test_settings_are_laid_over_by_dotted_name():
    config = apply_settings(
        RunConfig(), ["training.steps=7", "training.warmup_steps=2", "scores.engine=reference", "seed=3"]
    )
    assert (config.training.steps, config.scores.engine, config.seed) == (7, "reference", 3)
    assert differing_keys(config, RunConfig()) == ["scores.engine", "seed", "training.steps", "training.warmup_steps"]


def test_a_setting_without_a_value_is_refused():
    with pytest.raises(ConfigError, match="expected KEY=VALUE, got 'probe.every'"):
        apply_settings(RunConfig(), ["probe.every"])
    with pytest.raises(ConfigError, match="'seed' was given a value of its own"):
        apply_settings(RunConfig(), ["seed=3", "seed.more=4"])


def test_settings_that_only_fit_together_are_taken_together():
    config = apply_settings(RunConfig(), ["model.d_model=30", "model.n_heads=5"])
    assert (config.model.d_model, config.model.n_heads) == (30, 5)


def test_a_preset_with_a_typo_gets_the_nearest_name():
    with pytest.raises(ConfigError, match="got 'tinny'; did you mean 'tiny'"):
        load_preset("tinny")


def test_one_probed_token_or_several_are_named_by_whichever_key_came_last():
    several = apply_settings(RunConfig(), ['probe.positions=["instruction", "input"]'])
    assert several.probe.all_positions == ("instruction", "input")
    # of one token the file is as it always was, whichever key was written
    one = apply_settings(RunConfig(), ["probe.position=instruction"])
    assert apply_settings(RunConfig(), ['probe.positions=["instruction"]']) == one
    assert apply_settings(several, ["probe.position=instruction"]) == one and one.probe.all_positions == (
        "instruction",
    )
    assert "positions" not in config_to_dict(one)["probe"] and differing_keys(one, several) == ["probe.positions"]
    assert apply_settings(several, ["probe.every=10"]).probe.all_positions == ("instruction", "input")
    assert config_from_dict(config_to_dict(several)) == several
    assert config_to_dict(several)["probe"]["positions"] == ["instruction", "input"]


@pytest.mark.parametrize("given", ['"input"', '["inputs"]', '["input", "input"]', "[1]", "input", "{ a = 1 }"])
def test_probed_tokens_that_are_none_are_refused(given):
    with pytest.raises(ConfigError, match=r"probe.positions: expected (a list|each of input, instruction|one key)"):
        apply_settings(RunConfig(), [f"probe.positions={given}"])


def test_a_missing_or_broken_file_is_one_clear_error(tmp_path):
    with pytest.raises(ConfigError, match="expected a TOML file, found none"):
        load_config(tmp_path / "none.toml")
    (tmp_path / "broken.toml").write_text("[training\nsteps=3")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "broken.toml")


def test_every_setting_is_described():
    rows = describe_settings()
    assert len(rows) > 50
    defaults = config_to_dict(RunConfig())
    for key, _, default, _ in rows:
        room, _, name = key.rpartition(".")
        assert default == (defaults[room] if room else defaults).get(name, []), key
    assert all(meaning and len(meaning) > 5 for _, _, _, meaning in rows)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["seed=99999999999999999999999"], "seed: expected at most 4294967295"),
        (["probe.seed=4294967296"], "probe.seed: expected at most"),
        (["training.threads=99999"], "training.threads: expected at most 1024"),
        (["name=../elsewhere"], "name: expected letters, digits"),
        (["probe.every=5", "probe={n_points=96}"], "probe: expected one key at a time"),
        (["probe={n_points=96}"], "probe: expected one key at a time"),
    ],
)
def test_values_no_run_could_use_are_refused_before_it_begins(given, message):
    with pytest.raises(ConfigError, match=message):
        apply_settings(RunConfig(), given)
