"""Several tokens in one probe: each has the rows and maps that it has alone, and the laws of a run hold with them."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from fastcluster_lm.cli import main
from fastcluster_lm.config import RunConfig, apply_settings
from fastcluster_lm.engine import resume_run, start_run
from fastcluster_lm.errors import RunFolderError
from tests.laws.conftest import fingerprint, run_to_end
from tests.laws.test_resume import maps_hash, scores_hash, stop_after

POSITIONS = ("instruction", "input")


def probing(config: RunConfig, *positions: str, source: str = "fresh", worker: str = "off") -> RunConfig:
    """Probe these tokens: afresh now and then, or of training's own states at every step."""
    cadence = {"every": 1, "full_every": 4} if source == "batch" else {"every": 4}
    probe = replace(config.probe, source=source, worker=worker, **cadence)
    return apply_settings(replace(config, probe=probe), [f"probe.positions={json.dumps(positions)}"])


@pytest.mark.parametrize("source", ["fresh", "batch"])
def test_the_scores_and_maps_of_a_token_are_those_it_has_alone(small, tmp_path, source):
    both = run_to_end(probing(small, *POSITIONS, source=source), tmp_path / "both").folder
    rows = both.scores()
    assert {row["position"] for row in rows} == set(POSITIONS) and {row["tier"] for row in rows} >= {"full"}
    for at, position in enumerate(POSITIONS):
        alone = run_to_end(probing(small, position, source=source), tmp_path / position).folder
        # where training's own last block rounds is not changed by what is looked at
        assert fingerprint(alone) == fingerprint(both)
        assert [row for row in rows if row["position"] == position] == alone.scores()
        assert alone.map_steps() == both.map_steps() == [0, 4, 8, 12]
        for step in both.map_steps():
            (arrays, notes), (own, own_notes) = both.read_map(step), alone.read_map(step)
            assert np.array_equal(arrays[f"points/{position}" if at else "points"], own["points"])
            assert notes[f"warm/{position}" if at else "warm"] == own_notes["warm"]
            assert all(np.array_equal(arrays[name], values) for name, values in own.items() if name != "points")
    # the end of an instruction does not know the input, and its token alone knows nothing else
    by_input = {
        row["position"]: row["ari"]
        for row in rows
        if (row["step"], row["layer"], row["split"], row["space"], row["group"], row["labels"])
        == (12, 0, "val", "hidden", "all", "input")
    }
    assert by_input["input"] == 1.0 and abs(by_input["instruction"]) < 0.1


def test_every_reader_shows_the_first_token_or_the_one_that_is_asked_for(small, tmp_path):
    path = run_to_end(probing(small, *POSITIONS), tmp_path / "run").folder.path

    def said(*command: str, status: int = 0) -> str:
        done = CliRunner().invoke(main, [*command], catch_exceptions=False)
        assert done.exit_code == status, done.output
        return done.stdout if status == 0 else done.stderr

    everything = json.loads(said("scores", str(path), "--json"))
    assert len(everything) == 2 * len(json.loads(said("scores", str(path), "--json", "--position", "input")))
    own = [row for row in everything if row["position"] == "input"]
    assert json.loads(said("scores", str(path), "--json", "--position", "input")) == own
    assert "position" in said("scores", str(path), "--step", "12").splitlines()[0]
    assert "position" not in said("scores", str(path), "--step", "12", "--position", "input").splitlines()[0]
    assert said("scores", str(path), "--position", "inputs", status=2) == (
        "fclm: --position: expected one of the run's tokens (instruction, input), got 'inputs'; did you mean 'input'?\n"
    )
    place = {"step": 12, "labels": "task", "split": "val", "space": "hidden", "group": "input_output", "layer": 2}
    headline = {row["position"]: row["ari"] for row in everything if place.items() <= row.items()}
    assert headline["instruction"] != headline["input"]
    assert json.loads(said("runs", str(tmp_path), "--json"))[0]["ari"] == headline["instruction"]
    # a finished run is told again
    closing = " ".join(said("train", "--resume", str(path)).split())
    assert f"Layer 2: task ARI {headline['instruction']:.2f}" in closing
    assert f"Layer 2, input token: task ARI {headline['input']:.2f}" in closing


@pytest.mark.parametrize("source", ["fresh", "batch"])
def test_a_run_of_two_tokens_goes_on_bit_for_bit(small, tmp_path, source):
    config = probing(small, *POSITIONS, source=source)
    whole = run_to_end(config, tmp_path / "whole").folder
    assert not start_run(config, tmp_path / "run", stop_after(7)).finished
    folder = resume_run(tmp_path / "run").folder
    assert (fingerprint(folder), scores_hash(folder), maps_hash(folder)) == (
        fingerprint(whole),
        scores_hash(whole),
        maps_hash(whole),
    )
    state = whole.read_checkpoint(12)[0]["probe"]
    assert state["map"].shape == state["positions/input/map"].shape == (3, 96, 2)
    if source == "batch":
        assert state["ring/states"].shape == (2 * 3, 96, 16)


@pytest.mark.parametrize("source", ["fresh", "batch"])
def test_two_tokens_are_scored_the_same_beside_training(small, tmp_path, source):
    within = run_to_end(probing(small, *POSITIONS, source=source), tmp_path / "within").folder
    beside = run_to_end(probing(small, *POSITIONS, source=source, worker="on"), tmp_path / "beside").folder
    assert (fingerprint(beside), scores_hash(beside), maps_hash(beside)) == (
        fingerprint(within),
        scores_hash(within),
        maps_hash(within),
    )


def test_one_token_keeps_the_files_it_had_whichever_key_names_it(small, tmp_path):
    named = apply_settings(small, ["probe.position=instruction"])
    listed = apply_settings(small, ['probe.positions=["instruction"]'])
    one, other = (run_to_end(own, tmp_path / name).folder for name, own in (("one", named), ("other", listed)))
    assert (one.path / "run.toml").read_bytes() == (other.path / "run.toml").read_bytes()
    assert b"positions =" not in (one.path / "run.toml").read_bytes()
    assert set(one.read_map(4)[0]) == {"points", "is_val", "ids", "task", "distribution", "input", "output"}
    assert not any("positions" in name for name in one.read_checkpoint(12)[0]["probe"])
    assert {row["position"] for row in one.scores()} == {"instruction"}


@pytest.mark.parametrize(
    ("wanted", "found", "message"),
    [
        (POSITIONS, ("instruction",), r"expected positions/input/NAME beside each of .*map.*, found none"),
        (("instruction",), POSITIONS, r"expected the positions instruction, found 'positions/input/"),
    ],
)
def test_a_checkpoint_of_other_tokens_is_refused(small, tmp_path, wanted, found, message):
    for name, positions in (("run", wanted), ("other", found)):
        start_run(probing(small, *positions), tmp_path / name, stop_after(5))
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    shutil.copytree(tmp_path / "other" / "checkpoints", tmp_path / "run" / "checkpoints")
    with pytest.raises(RunFolderError, match=message):
        resume_run(tmp_path / "run")
