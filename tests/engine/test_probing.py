"""Scores of models that exist: those that the probe within training gave, and of a language model in a folder."""

import re
from dataclasses import replace

import numpy as np
import pytest
import tomli_w

from fastcluster_lm.config import config_from_dict
from fastcluster_lm.engine import start_run
from fastcluster_lm.engine.probe_work import ProbeOptions
from fastcluster_lm.engine.probing import probe_model, probe_run, settings_for
from fastcluster_lm.errors import ConfigError, DataError, RunExistsError, RunFolderError, TaskError, UsageError
from fastcluster_lm.store import SCORE_COLUMNS, RunFolder
from fastcluster_lm.tasks import load_questions, taskset_from_dict
from tests.laws.conftest import SMALL
from tests.tiny_language_model import N_BLOCKS, QUESTIONS, write_model, write_tokenizer

# no map goes on from another, so that all rows of a run can be found again
COLD = {**SMALL, "scores": {**SMALL["scores"], "key_frame_every": 1}}
COLD["training"] = {**SMALL["training"], "steps": 8, "checkpoint_every": 4}


def contents(folder):
    return {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}


def known_again(rows):
    """Leave out the one column that is about the probe before."""
    return [{name: value for name, value in row.items() if name != "neighbor_overlap"} for row in rows]


@pytest.fixture(scope="module", params=[("input",), ("instruction",), ("instruction", "input")])
def run(request, tmp_path_factory):
    """Train a run with a probe and a checkpoint at steps 4 and 8."""
    config = config_from_dict({**COLD, "probe": {**SMALL["probe"], "positions": request.param}})
    return start_run(config, tmp_path_factory.mktemp("probing") / "run").folder


def test_rows_are_those_of_the_probe_within_training(run):
    before = contents(run)
    rows = probe_run(run.path)
    within = [row for row in run.scores() if row["step"] == 8]
    assert len(rows) > 80 and {row["space"] for row in rows} == {"hidden", "map"}
    assert list(rows[0]) == list(SCORE_COLUMNS) and None not in {row["position"] for row in rows}
    assert known_again(rows) == known_again(within)
    assert contents(run) == before


def test_every_checkpoint_can_be_scored(run):
    rows = probe_run(run.path, step="all")
    assert known_again(rows) == known_again([row for row in run.scores() if row["step"] in (4, 8)])
    assert probe_run(run.path, options=ProbeOptions(layers=(2,), spaces=("hidden",)), step=4) == [
        row for row in rows if (row["step"], row["layer"], row["space"]) == (4, 2, "hidden")
    ]
    with pytest.raises(RunFolderError, match="no checkpoint of step 5; whole ones: 4, 8"):
        probe_run(run.path, step=5)


def test_other_tokens_than_the_runs_own_can_be_scored(run, tmp_path):
    choose = settings_for(['probe.positions=["input", "instruction"]'], {})
    rows = probe_run(run.path, choose, ProbeOptions(out=tmp_path / "out"))
    assert list(dict.fromkeys(row["position"] for row in rows)) == ["input", "instruction"]
    within = [row for row in run.scores() if row["step"] == 8]
    for position in {row["position"] for row in within}:
        alike = [[row for row in known_again(found) if row["position"] == position] for found in (rows, within)]
        assert alike[0] == alike[1]
    folder = RunFolder.open(tmp_path / "out")
    arrays, notes = folder.read_map(8)
    assert arrays["points/instruction"].shape == arrays["points"].shape == (3, 96, 2)
    assert notes["warm/instruction"] == "false"
    assert folder.config()["probe"]["position"] == "input"
    assert folder.config()["probe"]["positions"] == ["input", "instruction"]


def test_smaller_chunks_change_no_more_than_rounding_does(run):
    whole, parts = probe_run(run.path), probe_run(run.path, options=ProbeOptions(batch_size=7))
    for one, other in zip(whole, parts, strict=True):
        if one["space"] == "hidden" and one["knn_share"] is not None:
            assert one["knn_share"] == pytest.approx(other["knn_share"], abs=0.02)


def test_settings_of_probe_and_scores_are_laid_over_the_runs_own(run):
    fewer = settings_for(["scores.n_neighbors=1"], {"probe.n_points": 32, "probe.seed": 3})
    rows = probe_run(run.path, fewer, ProbeOptions(spaces=("hidden",)))
    assert {row["n_points"] for row in rows if row["group"] == "all"} == {32}
    drawn = probe_run(run.path, settings_for(["scores.n_neighbors=1"], {"probe.n_points": 32}),
                      ProbeOptions(spaces=("hidden",)))  # fmt: skip
    assert rows != drawn
    with pytest.raises(ConfigError, match="--set: expected device or a key of probe or scores, got model.d_model"):
        probe_run(run.path, settings_for(["model.d_model=8"], {}))
    with pytest.raises(ConfigError, match="scores.n_neighbors: expected at most"):
        probe_run(run.path, settings_for(["scores.n_neighbors=40"], {}))


def test_other_tasks_may_be_asked_in_the_runs_own_tokens(run):
    stored = run.config()["taskset"]
    other = {**stored, "tasks": [{**task, "name": f"other {task['name']}"} for task in reversed(stored["tasks"])]}
    # the outputs of each input change places
    swap = dict(zip(stored["outputs"], reversed(stored["outputs"]), strict=True))
    for task in other["tasks"]:
        task["table"] = {given: swap[output] for given, output in task["table"].items()}
    rows = probe_run(run.path, taskset=taskset_from_dict(other))
    assert known_again(rows) != known_again(probe_run(run.path)) and {row["n_points"] for row in rows} >= {96}
    same = probe_run(run.path, taskset=taskset_from_dict(stored))
    assert same == probe_run(run.path)
    strange = {**stored, "outputs": [*stored["outputs"], "new"]}
    with pytest.raises(TaskError, match="expected outputs that the run's model knows, got 'new'; its tokens are "):
        probe_run(run.path, taskset=taskset_from_dict(strange))
    with pytest.raises(TaskError, match="at most 3 letters, as the run's model reads them, got lengths up to 4"):
        probe_run(run.path, taskset=taskset_from_dict({**stored, "lengths": [4]}))


def test_a_kept_result_is_a_folder_that_others_read(run, tmp_path):
    rows = probe_run(run.path, options=ProbeOptions(out=tmp_path / "new" / "kept"), step="all")
    kept = RunFolder.open(tmp_path / "new" / "kept")
    assert kept.scores() == rows and kept.status() == "finished" and kept.map_steps() == [4, 8]
    for step in (4, 8):
        theirs, ours = run.read_map(step), kept.read_map(step)
        assert theirs[0].keys() == ours[0].keys() and theirs[1] == ours[1]
        assert all((theirs[0][name] == ours[0][name]).all() for name in theirs[0])
    with pytest.raises(RunExistsError, match="exists already"):
        probe_run(run.path, options=ProbeOptions(out=kept.path))
    with pytest.raises(UsageError, match="--layers: expected without --out"):
        probe_run(run.path, options=ProbeOptions(layers=(1,), out=tmp_path / "other"))
    with pytest.raises(ConfigError, match="expected a run that `fclm train` made"):
        probe_run(kept.path)
    # states are gone, and nothing else is left beside it
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["kept"]


def test_a_model_that_cannot_be_scored_leaves_no_folder(run, tmp_path):
    broken = RunFolder.create(tmp_path / "broken", run.config(), {})
    tensors, state = run.read_checkpoint(8)
    broken.write_checkpoint(4, run.read_checkpoint(4)[0], {})
    tensors["model"]["wte.weight"] = np.full_like(tensors["model"]["wte.weight"], np.nan)
    broken.write_checkpoint(8, tensors, state)
    with pytest.raises(DataError, match="NaN or infinity in layer 0, 1, 2;"):
        probe_run(broken.path, options=ProbeOptions(out=tmp_path / "deep" / "kept"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["broken"]
    # what came before it is kept, as of a run that was stopped
    with pytest.raises(DataError, match="NaN or infinity"):
        probe_run(broken.path, options=ProbeOptions(out=tmp_path / "kept"), step="all")
    kept = RunFolder.open(tmp_path / "kept")
    assert {row["step"] for row in kept.scores()} == {4} and kept.status() == "stopped"


def test_a_run_without_a_checkpoint_has_nothing_to_score(run, tmp_path):
    bare = RunFolder.create(tmp_path / "bare", run.config(), {})
    with pytest.raises(RunFolderError, match="has no checkpoint yet, so there are no weights to score"):
        probe_run(bare.path)


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """Write a language model, one with a chat template, and questions for them."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("asked")
    (folder / "asked.toml").write_text(QUESTIONS)
    write_model(folder / "plain")
    write_model(folder / "chat", chat=True)
    return folder


SETTINGS = settings_for(["scores.n_init=2", "scores.n_iter=30", "scores.n_nulls=3"], {})


def test_a_language_model_is_scored_layer_by_layer(asked):
    questions = load_questions(asked / "asked.toml")
    rows = probe_model(asked / "plain", questions, SETTINGS)
    assert {row["layer"] for row in rows} == set(range(N_BLOCKS + 1))
    assert {(row["step"], row["split"], row["source"], row["warm"]) for row in rows} == {(0, "val", "fresh", False)}
    at = {(row["layer"], row["space"], row["group"], row["labels"]): row for row in rows}
    assert at[1, "hidden", "all", "task"]["n_points"] == 60
    # all prompts end in one token, so that the embedding knows nothing
    assert at[0, "hidden", "all", "task"]["ari"] == 0
    # a wording is a distribution, and both tasks have five
    assert at[1, "hidden", "all", "distribution"]["n_clusters"] == 10
    # some inputs have one answer to both tasks
    assert at[1, "hidden", "input_output", "task"]["n_points"] == 4 * 10
    assert at[3, "hidden", "input", "task"]["knn_share_across"] is not None
    assert probe_model(asked / "plain", questions, SETTINGS) == rows


def test_a_task_that_the_last_token_tells_is_seen(asked, tmp_path):
    # the tasks end in tokens of their own, and so each is one place in the embedding
    told = QUESTIONS.replace('ending = " ?"', "")
    for word, last in (("capital", "from"), ("currency", "with")):
        told = re.sub(rf'(name = "{word}"\nwordings = ).*', rf'\1["{{input}} {last}", "the {{input}} {last}"]', told)
    (tmp_path / "told.toml").write_text(told)
    rows = probe_model(asked / "plain", load_questions(tmp_path / "told.toml"), SETTINGS, ProbeOptions(layers=(0,)))
    head = next(row for row in rows if (row["space"], row["group"], row["labels"]) == ("hidden", "all", "task"))
    assert head["ari"] == 1 and head["knn_share_across"] == 1


def test_a_chat_template_is_used_where_there_is_one(asked):
    questions = load_questions(asked / "asked.toml")
    hidden = ProbeOptions(spaces=("hidden",))
    plain = probe_model(asked / "chat", questions, SETTINGS, hidden, chat=False)
    assert plain == probe_model(asked / "plain", questions, SETTINGS, hidden)
    chat = probe_model(asked / "chat", questions, SETTINGS, hidden)
    assert chat == probe_model(asked / "chat", questions, SETTINGS, hidden, chat=True) and chat != plain
    # what the template makes of a prompt, written out
    spelled = replace(
        questions,
        ending=" ? . assistant :",
        tasks=tuple(
            replace(task, wordings=tuple(f"user : {wording}" for wording in task.wordings)) for task in questions.tasks
        ),
    )
    assert chat == probe_model(asked / "plain", spelled, SETTINGS, hidden)
    with pytest.raises(UsageError, match="--chat: .* has a tokenizer without a chat template"):
        probe_model(asked / "plain", questions, SETTINGS, chat=True)


def test_a_language_models_scores_are_kept_as_a_run_is(asked, tmp_path):
    rows = probe_model(
        asked / "plain", load_questions(asked / "asked.toml"), SETTINGS, ProbeOptions(out=tmp_path / "kept")
    )
    kept = RunFolder.open(tmp_path / "kept")
    assert kept.scores() == rows and kept.map_steps() == [0] and kept.status() == "finished"
    described = kept.config()["attached"]
    assert described["model"] == "LlamaForCausalLM" and described["names"]["task"] == ["capital", "currency"]
    assert kept.config()["report"] == {"space": "hidden", "group": "input_output", "layer": N_BLOCKS}
    assert str(tmp_path) not in tomli_w.dumps(kept.config())


def test_prompts_that_the_model_cannot_read_are_refused(asked):
    questions = load_questions(asked / "asked.toml")
    with pytest.raises(UsageError, match="--tasks: expected prompts of at most 64 tokens, .* got 1"):
        probe_model(asked / "plain", replace(questions, ending=" a" * 99), SETTINGS)


def test_weights_that_are_missing_are_not_drawn_at_random(asked, tmp_path):
    from safetensors.torch import load_file, save_file

    write_tokenizer(tmp_path)
    (tmp_path / "config.json").write_bytes((asked / "plain" / "config.json").read_bytes())
    weights = load_file(asked / "plain" / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="found none for model.layers.1.mlp.up_proj.weight and 0 more"):
        probe_model(tmp_path, load_questions(asked / "asked.toml"), SETTINGS)
