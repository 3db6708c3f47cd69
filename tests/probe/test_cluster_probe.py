"""The attached probe: training is left alone bit for bit, its rows are those of its parts, its failures end nothing."""

import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from fastcluster_lm import device
from fastcluster_lm.cli import main
from fastcluster_lm.config import ScoresConfig
from fastcluster_lm.errors import RunExistsError, ShapeError, UsageError
from fastcluster_lm.probe import ProbeSkippedWarning, scorer, undisturbed
from fastcluster_lm.store import SCORE_COLUMNS, RunFolder
from tests.probe.attached import QUICK, Net, NoisyNet, fingerprint, instances, seed_all
from tests.probe.attached_loops import FAULTS, KINDS, attach

tokens, labels = instances()


@pytest.fixture(scope="module")
def loops(tmp_path_factory):
    """Train small loops in a process of its own: checks of shapes in this one draw from Python's generator."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "tests.probe.attached_loops", str(tmp_path_factory.mktemp("loops"))],
        cwd=root, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("kind", KINDS)
def test_a_loop_is_the_same_with_and_without_the_probe(loops, kind):
    without, with_probe = loops[f"{kind}, off"], loops[f"{kind}, on"]
    assert with_probe["print"] == without["print"]
    assert with_probe["steps"] == [0, 2, 4] and without["steps"] == []
    # nor is a graph compiled again
    assert with_probe["compilations"] == without["compilations"]
    assert (without["compilations"] > 0) == kind.startswith("compiled")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_probe_that_disturbs_a_loop_is_caught(loops, fault):
    assert loops[fault]["steps"] == [0, 2, 4]
    assert loops[fault]["print"] != loops["plain, off"]["print"]


def test_a_model_that_raises_is_put_back_too():
    model = NoisyNet()
    seed_all()
    before = fingerprint(model, [])
    with pytest.raises(KeyError), device.generators_kept(), undisturbed.undisturbed(model):
        model(tokens)
        torch.rand(3)
        raise KeyError
    assert fingerprint(model, []) == before and torch.is_grad_enabled()


def test_a_buffer_of_inference_mode_is_no_obstacle():
    model = Net()
    with torch.inference_mode():
        model.register_buffer("table", torch.ones(3))
    with undisturbed.undisturbed(model):
        assert not model.training
    assert model.training and model.table.is_inference()


def test_a_replaced_buffer_is_put_back():
    model = Net()
    before = model.calls
    with undisturbed.undisturbed(model):
        model.calls = torch.ones(())
    assert model.calls is before


def test_no_hook_stays_and_the_model_can_still_be_pickled(tmp_path):
    model = Net()
    probe = attach(model, tmp_path / "run")
    probe.step(0)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    pickle.dumps(model)
    probe.close()


def test_rows_are_those_of_the_states_themselves(tmp_path):
    torch.manual_seed(0)
    model = Net().eval()
    rows = attach(model, tmp_path / "run").step(0)
    seen = []
    handle = model.blocks[1].register_forward_hook(lambda module, args, output: seen.append(output[:, -1]))
    torch.manual_seed(0)
    with torch.no_grad():
        model(tokens)
    handle.remove()
    row = next(r for r in rows if (r["layer"], r["space"], r["group"], r["labels"]) == (1, "hidden", "all", "task"))
    # the noise is the same for all points, so it moves none against another
    distance = torch.cdist(seen[0], seen[0]).fill_diagonal_(torch.inf)
    near = labels["task"][distance.topk(5, largest=False).indices]
    assert row["knn_share"] == pytest.approx(float((near == labels["task"][:, None]).double().mean()), abs=0.02)
    assert {(r["group"], r["labels"]) for r in rows if r["space"] == "map"} == {
        ("all", kind) for kind in ("task", "distribution", "input", "output")
    }
    assert row["n_points"] == 48 and row["split"] == "val" and row["null_ari"] is not None and row["cdnv"] > 0


def test_separated_blobs_score_one_and_shuffled_labels_nothing(tmp_path):
    task = torch.arange(60) % 3
    model = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(4, 2))
    X = torch.nn.functional.one_hot(task, 4) * 9.0 + torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    for name, given, low, high in (("true", task, 1.0, 1.0), ("shuffled", torch.arange(60) // 20, -0.1, 0.1)):
        rows = attach(model, tmp_path / name, inputs=X, labels=given, layers="0").step(0)
        for row in rows:
            assert low <= row["ari"] <= high, row


def test_validation_is_scored_against_training(tmp_path):
    other, others = tokens.flip(0), {kind: values.flip(0) for kind, values in labels.items()}
    probe = attach(Net(), tmp_path / "run", val=(other, others), map_points=24)
    rows = probe.step(0)
    assert {row["split"] for row in rows} == {"train", "val"}
    stored, _ = probe.folder.read_map(0)
    assert stored["points"].shape == (2, 48, 2) and stored["is_val"].sum() == 24
    # equally many of each task are shown
    assert np.bincount(stored["task"][stored["is_val"] == 0]).tolist() == [8, 8, 8]


def test_the_commands_read_the_run_folder(tmp_path):
    with attach(Net(), tmp_path / "run") as probe:
        rows = probe.step(0, loss=1.5, val_accuracy=float("nan"))
        assert RunFolder.open(tmp_path / "run").status() == "running"
    shown = CliRunner().invoke(main, ["scores", str(tmp_path / "run"), "--json"])
    assert [row["ari"] for row in json.loads(shown.output)] == [row["ari"] for row in rows]
    listed = json.loads(CliRunner().invoke(main, ["runs", str(tmp_path), "--json"]).output)[0]
    assert (listed["status"], listed["step"], listed["layer"], listed["preset"]) == ("finished", 0, 1, "attached")
    headline = [r for r in rows if (r["layer"], r["space"], r["group"], r["labels"]) == (1, "hidden", "all", "task")]
    assert listed["knn_share"] == headline[0]["knn_share"]
    step = RunFolder.open(tmp_path / "run").steps()[0]
    assert step["loss"] == 1.5 and step["val_accuracy"] is None and step["probe_ms"] > 0 and step["skipped"] is None
    attached = RunFolder.open(tmp_path / "run").config()["attached"]
    assert attached["layers"] == ["blocks.0", "blocks.1"] and attached["model"] == "Net"
    assert attached["names"]["task"] == ["0", "1", "2"] and len(attached["names"]["distribution"]) == 6
    resumed = CliRunner().invoke(main, ["train", "--resume", str(tmp_path / "run")])
    assert resumed.exit_code == 2 and "attached to another loop" in resumed.output


def test_labels_alone_have_a_null_that_is_named(tmp_path):
    rows = attach(Net(), tmp_path / "run", labels=labels["task"]).step(0)
    assert {(row["space"], row["group"], row["labels"]) for row in rows} == {
        ("hidden", "all", "task"), ("map", "all", "task"),
    }  # fmt: skip
    for row in rows:
        assert row["null_kind"] == "permutation" and row["base_rate"] == pytest.approx(1 / 3)
        assert abs(row["null_ari"]) < 0.1 and row["null_knn_share"] == pytest.approx(15 / 47, abs=0.1)
    named = attach(Net(), tmp_path / "named").step(0)
    kinds = {row["null_kind"] for row in named if (row["group"], row["labels"]) == ("all", "task")}
    assert kinds == {"distributions"} and {row["null_kind"] for row in named if row["labels"] == "input"} == {None}
    # a row of an older version has neither
    lines = (tmp_path / "run" / "scores.jsonl").read_text().replace('"null_kind":"permutation",', "")
    (tmp_path / "run" / "scores.jsonl").write_text(lines)
    assert {row["null_kind"] for row in RunFolder.open(tmp_path / "run").scores()} == {None}


def test_metrics_go_by_the_names_of_layers_to_any_logger(tmp_path):
    told = []
    probe = attach(Net(), tmp_path / "run", log=lambda metrics, step: told.append((step, metrics)))
    for step in range(5):
        probe.step(step)
    assert [step for step, _ in told] == [0, 2, 4] and told[-1][1] == probe.headline()
    assert set(probe.headline()) == {f"fclm/blocks.{at}/{column}" for at in (0, 1) for column in ("ari", "knn_share")}
    row = next(r for r in probe.scores if (r["layer"], r["group"], r["labels"]) == (1, "all", "task"))
    assert row["space"] == "hidden" and told[-1][1]["fclm/blocks.1/ari"] == row["ari"]
    # an error of the caller's own function is the caller's
    with pytest.raises(ZeroDivisionError):
        attach(Net(), tmp_path / "other", log=lambda metrics, step: 1 / 0).step(0)


def test_a_probe_tells_what_it_is_and_what_it_found(tmp_path):
    model = Net()
    model.noise = 0.0
    probe = attach(model, tmp_path / "run")
    shown = f"2 layers of Net, 48 val instances, every 2 steps into '{tmp_path / 'run'}'; "
    assert repr(probe) == f"<ClusterProbe of {shown}not probed yet>" and probe.history == []
    with pytest.raises(UsageError, match="states: expected a probe in the step that was given last"):
        probe.states()
    first = probe.step(0)
    states = probe.states()
    model.eval()
    with torch.no_grad():
        h = model.embed(tokens)
        h = h + h.mean(1, keepdim=True)
        expected = model.blocks[0](h)[:, -1]
    model.train()
    assert list(states) == ["val"] and torch.equal(states["val"][0], expected)
    probe.step(1)
    with pytest.raises(UsageError, match="there was none"):
        probe.states()
    second = probe.step(2)
    assert [(row["step"], row["ari"]) for row in probe.history] == [
        (row["step"], row.get("ari")) for row in first + second
    ]
    probe.close()
    assert repr(probe) == f"<ClusterProbe of {shown}closed, probed at step 2>" and len(probe.history) == len(first) * 2


@pytest.mark.parametrize("form", ["array", "list", "keywords", "in turn"])
def test_arrays_and_lists_are_inputs(tmp_path, form):
    rows = tokens.numpy()
    given = {"array": rows, "list": rows.tolist(), "keywords": {"tokens": rows.tolist()}, "in turn": [rows]}[form]
    own = {kind: values.tolist() for kind, values in labels.items()}
    options = {"layers": "*", "position": [1] * 48}
    model = torch.nn.Sequential(torch.nn.Embedding(14, 8), torch.nn.Linear(8, 8))
    if form == "keywords":
        model.forward = lambda tokens: model[1](model[0](tokens))
    found = attach(model, tmp_path / "run", inputs=given, labels=own, **options).step(0)
    expected = attach(model, tmp_path / "other", **{**options, "position": 1}).step(0)
    assert [(row["labels"], row["ari"]) for row in found] == [(row["labels"], row["ari"]) for row in expected]


def test_labels_that_are_all_one_or_all_different_are_scored(tmp_path):
    odd = {"task": labels["task"], "distribution": torch.arange(48), "input": torch.zeros(48), "output": ["a"] * 48}
    rows = attach(Net(), tmp_path / "run", labels=odd, map_points=6).step(0)
    assert {row["labels"] for row in rows} == {"task", "distribution", "input", "output", "task_input"}
    assert all(row["n_clusters"] == {"input": 1, "distribution": 48}.get(row["labels"], row["n_clusters"])
               for row in rows if (row["space"], row["group"]) == ("hidden", "all"))  # fmt: skip


def test_an_error_leaves_a_run_that_was_stopped(tmp_path):
    with pytest.raises(KeyError), attach(Net(), tmp_path / "run") as probe:
        probe.step(0)
        raise KeyError
    assert RunFolder.open(tmp_path / "run").status() == "stopped"


def test_maps_go_on_from_the_last_and_start_cold_now_and_then(tmp_path):
    probe = attach(Net(), tmp_path / "run", every=1, scores=replace(QUICK, key_frame_every=3))
    warm = [any(row["warm"] for row in probe.step(step)) for step in range(5)]
    assert warm == [False, True, True, False, True]
    # the same step is scored once
    assert probe.step(4) == [] and len(probe.folder.steps()) == 5


def test_nan_in_a_layer_skips_that_layer_and_says_why(tmp_path):
    model = Net()
    probe = attach(model, tmp_path / "run", every=1)
    probe.step(0)
    with torch.no_grad():
        model.blocks[1][0].weight[0, 0] = torch.nan
    with pytest.warns(ProbeSkippedWarning, match="the probe of step 1 skipped layer 1: states of val are not finite"):
        rows = probe.step(1)
    assert all((row["ari"] is None) == (row["layer"] == 1) for row in rows if row["group"] == "all")
    assert {name.split("/")[1] for name in probe.headline()} == {"blocks.0"}
    with torch.no_grad():
        model.blocks[1][0].weight[0, 0] = 0.0
    assert probe.step(2)
    named = "layer 1: states of val are not finite"
    assert [row["skipped"] for row in probe.folder.steps()] == [None, named, None]
    assert {row["step"] for row in probe.folder.scores()} == {0, 1, 2}


def test_a_layer_that_overflows_in_half_precision_is_skipped(tmp_path):
    model = Net()
    probe = attach(model, tmp_path / "run", every=1)
    # 16-bit floats end at 65504
    model.blocks[1].register_forward_hook(lambda module, args, output: (output.half() * 1e5).float())
    with pytest.warns(ProbeSkippedWarning, match="skipped layer 1: states of val are not finite"):
        rows = probe.step(0)
    assert all((row["ari"] is None) == (row["layer"] == 1) for row in rows if row["group"] == "all")


def test_short_memory_halves_the_batch_then_the_blocks_then_skips(tmp_path, monkeypatch):
    model = Net()
    model.noise = 0.0
    probe = attach(model, tmp_path / "run", every=1, batch_size=40)
    sizes, budgets = [], []

    def short(module, arguments):
        sizes.append(len(arguments[0]))
        if len(arguments[0]) > 12:
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = model.register_forward_pre_hook(short)
    expected = attach(model, tmp_path / "other", batch_size=12).step(0)
    sizes.clear()
    start_space = scorer.start_space

    def score_in_little(*args, engine, **options):
        budgets.append(engine.memory_budget >> 20)
        if engine.memory_budget > 64 << 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return start_space(*args, engine=engine, **options)

    monkeypatch.setattr(scorer, "start_space", score_in_little)
    rows = probe.step(0)
    assert sizes == [40, 20, 10, 10, 10, 10, 8] and budgets == [256, 128, 64, 64]
    assert [row["ari"] for row in rows] == [row["ari"] for row in expected]
    handle.remove()
    handle = model.register_forward_pre_hook(raiser(torch.OutOfMemoryError("CUDA, none\nat all")))
    with pytest.warns(ProbeSkippedWarning, match="OutOfMemoryError: CUDA, none$"):
        assert probe.step(1) == []
    assert probe._reader.batch_size == 1
    handle.remove()
    assert probe.step(2)
    assert probe.folder.steps()[1]["skipped"] == "OutOfMemoryError: CUDA, none"


def test_a_sharded_model_without_memory_is_not_passed_over(tmp_path, monkeypatch):
    model = Net()
    probe = attach(model, tmp_path / "run", every=1)
    monkeypatch.setattr(probe._reader, "sharded", True)
    with pytest.MonkeyPatch.context() as little, pytest.warns(ProbeSkippedWarning, match="no memory to score"):
        little.setattr(scorer, "start_space", raiser(torch.OutOfMemoryError("no memory to score")))
        probe.step(0)
    model.register_forward_pre_hook(raiser(torch.OutOfMemoryError("no memory to run")))
    with pytest.raises(torch.OutOfMemoryError, match="no memory to run"):
        probe.step(1)


def raiser(error):
    """Give a function that raises, whatever it is called with."""

    def fail(*arguments, **options):
        raise error

    return fail


def test_other_errors_are_not_hidden(tmp_path):
    model = Net()
    probe = attach(model, tmp_path / "run", every=1)
    model.register_forward_pre_hook(raiser(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        probe.step(0)


def test_a_layer_that_falls_silent_skips_the_probe(tmp_path):
    model = Net()
    probe = attach(model, tmp_path / "run", every=1)
    model.blocks = model.blocks[:1]
    with pytest.warns(ProbeSkippedWarning, match="no layer 'blocks.1' any more"):
        assert probe.step(0) == []


@pytest.mark.parametrize(
    ("options", "error", "part"),
    [
        ({"layers": "block.*"}, UsageError, r"none matches 'block\.\*'; did you mean 'blocks\.\*'\?; there are: embed"),
        ({"layers": ["blocks.*", "nothing"]}, UsageError, "none matches 'nothing'; there are: embed, blocks, blocks"),
        ({"labels": labels["task"][:40]}, ShapeError, "48 rows of inputs and 40 labels"),
        ({"labels": torch.zeros(48)}, UsageError, "two tasks or more, got one, '0.0'"),
        ({"labels": torch.arange(48)}, UsageError, "5 other instances for each .* in val, .* for one of task '0'"),
        ({"labels": {**labels, "ouput": labels["task"]}}, UsageError, "got 'ouput'; did you mean 'output'"),
        ({"labels": {"input": labels["input"]}}, UsageError, "expected task among them, got input"),
        ({"map_points": 5}, UsageError, "more instances on the map than scores.n_neighbors=5, got 5"),
        ({"every": 0}, UsageError, "every: expected 1 or more"),
        ({"inputs": [[1, 2], [3]]}, ShapeError, "inputs: expected rows of one length, got .* pad them"),
        ({"inputs": "text"}, UsageError, "inputs: expected a tensor, an array, rows .* got 'text'"),
        ({"labels": {"task": ["Peru", *"abcdef" * 7, *"abcde"]}}, UsageError, "got 0 for one of task 'Peru'"),
        ({"labels": {**labels, "instruction": labels["distribution"] // 2}}, UsageError,
         "5 other instances of other instructions for each of a task in val, .* got 0 for one of task '0'"),
        ({"position": 2}, ShapeError, "expected tokens 0 to 1 of layer 'blocks.0', got 2"),
        ({"position": "mask"}, UsageError, "the name of an input tensor, got 'mask'"),
        ({"layers": "norm", "inputs": {"tokens": tokens, "x": tokens[:9]}}, ShapeError, "one row an instance, got"),
        ({"val": (tokens, labels), "position": tokens[:, 0]}, UsageError, "an index, a name or a function"),
        ({"val": (tokens, labels), "positions": {"a": 0, "b": [1] * 48}}, UsageError, "an index, a name or a function"),
        ({"position": 1, "positions": {"a": 0}}, UsageError, "positions: expected without position, got both"),
        ({"positions": {}}, UsageError, "positions: expected names and what they stand for, .* got {}"),
        ({"positions": {"a/b": 0}}, UsageError, "without / and |, got 'a/b'"),
        ({"positions": {"a": 0, "b": {"blocks.0": 0}}}, UsageError, "none of blocks.0 matches 'blocks.1'"),
        ({"positions": {"a": {"block.*": 0}}}, UsageError, r"position: .* none matches 'block\.\*'; did you"),
        ({"val": (tokens, labels["task"])}, UsageError, "the same kinds in each split"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_before_training(tmp_path, options, error, part):
    with pytest.raises(error, match=part):
        attach(Net(), tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


ANSWERS = {"question": 0, "answer": lambda output, rows: output[:, -1]}


def test_several_tokens_of_one_forward_have_the_rows_and_maps_of_each_alone(tmp_path):
    seed_all()
    model = Net()
    model.noise = 0.0
    probe = attach(model, tmp_path / "both", positions=ANSWERS, layers=["embed", "blocks.*"])
    calls = model.calls.item()
    rows = [row for step in range(3) for row in probe.step(step)]
    # one forward a probe, put back afterwards; the trial at construction is another
    assert model.calls.item() == calls and probe.positions == ("question", "answer")
    assert list(dict.fromkeys(row["position"] for row in rows)) == ["question", "answer"]
    states = probe.states()
    assert {name: tuple(X.shape) for name, X in states.items()} == {
        "val/question": (3, 48, 16), "val/answer": (3, 48, 16),
    }  # fmt: skip
    metrics = probe.headline()
    assert {name.split("/")[1] for name in metrics} == {"question", "answer"} and "fclm/answer/blocks.1/ari" in metrics
    probe.close()
    for name, position in (("question", 0), ("answer", 1)):
        alone = attach(model, tmp_path / name, position=position, layers=["embed", "blocks.*"])
        own = [{**row, "position": name} for step in range(3) for row in alone.step(step)]
        assert own == [row for row in rows if row["position"] == name]
        assert torch.equal(alone.states()["val"], states[f"val/{name}"])
        array = "points" if name == "question" else f"points/{name}"
        assert (alone.folder.read_map(2)[0]["points"] == probe.folder.read_map(2)[0][array]).all()
        alone.close()
    assert RunFolder.open(tmp_path / "both").scores() == [dict.fromkeys(SCORE_COLUMNS) | row for row in rows]
    out = tmp_path / "report.html"
    assert CliRunner().invoke(main, ["report", str(tmp_path / "both"), "-o", str(out)]).exit_code == 0


def test_a_loop_of_several_tokens_goes_on_as_if_it_had_not_stopped(tmp_path):
    def loop(path, steps, resume=False, positions=ANSWERS, worker="off"):
        seed_all()
        model = Net()
        model.noise = 0.0
        with attach(model, path, positions=positions, resume=resume, worker=worker) as probe:
            for step in steps:
                probe.step(step)
        return RunFolder.open(path)

    whole = loop(tmp_path / "whole", range(4))
    loop(tmp_path / "run", range(2))
    run = loop(tmp_path / "run", range(2, 4), resume=True)
    assert run.scores() == whole.scores() and {row["warm"] for row in run.scores()} == {True, False}
    assert run.map_steps() == whole.map_steps() == [0, 2]
    for step in run.map_steps():
        (arrays, notes), (own, own_notes) = whole.read_map(step), run.read_map(step)
        assert notes == own_notes and all((own[name] == arrays[name]).all() for name in arrays)
    # nor does it depend on where it is scored
    beside = loop(tmp_path / "beside", range(4), worker="on")
    assert beside.scores() == whole.scores() and beside.config()["resolved"]["probe_worker"] is True
    assert all((beside.read_map(2)[0][name] == array).all() for name, array in whole.read_map(2)[0].items())
    for other in ({"question": 0}, {"question": 1, "answer": -1}, {"answer": -1, "question": 0}):
        with pytest.raises(UsageError, match="was begun with .*position"):
            loop(tmp_path / "run", range(4, 5), resume=True, positions=other)


def test_a_run_folder_that_exists_is_left_alone(tmp_path):
    attach(Net(), tmp_path / "run").close()
    with pytest.raises(RunExistsError):
        attach(Net(), tmp_path / "run")


def test_too_large_a_perplexity_is_lowered_once_and_aloud(tmp_path):
    with pytest.warns(UserWarning, match="perplexity 30 lowered to 15.7 for 48 instances"):
        probe = attach(Net(), tmp_path / "run", scores=ScoresConfig(n_iter=10, n_init=1, n_nulls=1))
    assert probe.folder.config()["resolved"]["perplexity"] == pytest.approx(47 / 3)


@pytest.mark.parametrize("default", ["dtype", "device", "fp32_precision", "deterministic algorithms"])
def test_scores_do_not_change_with_the_callers_defaults(tmp_path, monkeypatch, default):
    model = torch.nn.Sequential(torch.nn.Embedding(14, 8), torch.nn.Linear(8, 8))
    options = {"layers": "*", "position": 1}
    expected = attach(model, tmp_path / "one", **options).step(0)
    if default == "dtype":
        torch.set_default_dtype(torch.bfloat16)
    elif default == "device":
        # tensors of this device hold nothing, so none may be made on it
        torch.set_default_device("meta")
    elif default == "fp32_precision":
        # torch's older getters raise from now on
        torch.backends.cuda.matmul.fp32_precision = "tf32"
    else:
        torch.use_deterministic_algorithms(True, warn_only=True)
        seen = []
        monkeypatch.setattr(
            scorer, "start_space",
            lambda *args, score=scorer.start_space, **options: (
                seen.append(torch.are_deterministic_algorithms_enabled()), score(*args, **options),
            )[1],
        )  # fmt: skip
    try:
        rows = attach(model, tmp_path / "other", **options).step(0)
        if default == "dtype":
            assert torch.get_default_dtype() == torch.bfloat16
        elif default == "device":
            assert torch.get_default_device().type == "meta"
        elif default == "fp32_precision":
            assert torch.backends.cuda.matmul.fp32_precision == "tf32"
        else:
            assert torch.is_deterministic_algorithms_warn_only_enabled() and seen == [False, False]
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
        torch.backends.cuda.matmul.fp32_precision = "none"
        torch.use_deterministic_algorithms(False)
    assert [row["ari"] for row in rows] == [row["ari"] for row in expected]
    assert [row.get("kl") for row in rows] == [row.get("kl") for row in expected]
