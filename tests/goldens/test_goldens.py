"""The comparison of two records: what changed is named, and what is new is no failure."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from tests.goldens import __main__ as command
from tests.goldens.comparison import compare
from tests.goldens.contents import contents_of


def row(layer: int, ari: float | None, **more: object) -> dict:
    return {
        "step": 0,
        "layer": layer,
        "split": "val",
        "space": "hidden",
        "group": "all",
        "labels": "task",
        "ari": ari,
    } | more


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give a run folder with a table, a map and a checkpoint."""
    folder = tmp_path / "run"
    (folder / "maps").mkdir(parents=True)
    write_rows(folder, [row(0, 0.5), row(1, 0.25)])
    steps = [{"step": step, "loss": 1.0 / step, "step_ms": 7.0, "probe_ms": None} for step in (1, 2)]
    (folder / "steps.jsonl").write_text("".join(json.dumps(own) + "\n" for own in steps))
    save_file({"val": np.zeros((2, 3), np.float32)}, folder / "maps" / "step-000000.safetensors", {"warm": "false"})
    write_state(folder, digest="0")
    (folder / "run.toml").write_text(
        '[model]\nn_layers = 1\n[resolved]\nengine = "fused"\nblock_reason = "it is narrow"\n'
    )
    (folder / "lock").write_text("77")
    return folder


def write_state(folder: Path, *, digest: str) -> None:
    text = json.dumps({"files": {"a": {"sha256": digest}}, "state": {"step": 2}, "sha256": digest})
    (folder / "state.json").write_text(text)


def write_rows(folder: Path, rows: list[dict]) -> None:
    (folder / "scores.jsonl").write_text("".join(json.dumps(own) + "\n" for own in rows))


def differences(was: dict, folder: Path) -> tuple[list[str], list[str]]:
    comparison = compare({"one": was}, {"one": contents_of(folder)})
    return comparison.differences, comparison.news


def test_equal_folders_agree_whatever_the_clock_and_digests_of_whole_files_say(folder):
    was = contents_of(folder)
    (folder / "steps.jsonl").write_text((folder / "steps.jsonl").read_text().replace("7.0", "9.5"))
    (folder / "lock").write_text("78")
    write_state(folder, digest="1")
    (folder / "run.toml").write_text((folder / "run.toml").read_text().replace("narrow", "not wide"))
    assert differences(was, folder) == ([], [])
    assert set(was) == {"scores.jsonl", "steps.jsonl", "maps/step-000000.safetensors", "state.json", "run.toml"}


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([row(0, 0.5), row(1, 0.2500000000000001)], "ari differs in 1 of 2 rows, first step=0 layer=1"),
        ([row(0, 0.5), row(1, None)], "was 0.25, is null"),
        ([row(0, 0.5), {**row(1, 0.25), "layer": 1.0}], "layer differs in 1 of 2 rows"),
        ([row(0, 0.5)], "1 of 2 rows are gone, first step=0 layer=1 split=val space=hidden group=all labels=task"),
        ([row(1, 0.25), row(0, 0.5)], "its rows come in another order"),
        ([row(0, 0.5), {name: value for name, value in row(1, 0.25).items() if name != "ari"}], "is nothing"),
    ],
)
def test_a_row_that_is_another_or_gone_is_a_difference(folder, rows, told):
    was = contents_of(folder)
    write_rows(folder, rows)
    found, news = differences(was, folder)
    assert len(found) == 1 and found[0].startswith("one: scores.jsonl: ") and told in found[0] and not news


def test_new_columns_rows_files_and_tensors_are_told_and_are_no_failure(folder):
    was = contents_of(folder)
    # another position first, and the recorded rows among the new ones
    write_rows(folder, [row(layer, ari, position=name) for layer, own in ((0, 0.5), (1, 0.25), (2, 0.1))
                        for name, ari in (("end", 0.9), ("input", own))])  # fmt: skip
    (folder / "run.toml").write_text((folder / "run.toml").read_text() + "fresh = 1\n")
    (folder / "report.html").write_text("a page")
    path = folder / "maps" / "step-000000.safetensors"
    save_file({"val": np.zeros((2, 3), np.float32), "train": np.ones(2)}, path, {"warm": "false"})
    assert differences(was, folder) == (
        [],
        [
            "one: file report.html is new",
            "one: maps/step-000000.safetensors: train is new",
            "one: run.toml: resolved.fresh is new",
            "one: scores.jsonl: 4 rows are new, first step=0 layer=0 split=val space=hidden group=all labels=task "
            "position=end",
            "one: scores.jsonl: column position is new",
        ],
    )


@pytest.mark.parametrize("harm", ["value", "dtype", "shape", "beside", "gone", "file"])
def test_a_tensor_that_is_another_or_gone_is_a_difference(folder, harm):
    was, values = contents_of(folder), np.zeros((2, 3), np.float32)
    if harm == "value":
        values[1, 2] = -0.0
    elif harm == "dtype":
        values = values.view(np.int32)
    elif harm == "shape":
        values = values.T.copy()
    path = folder / "maps" / "step-000000.safetensors"
    save_file({"other" if harm == "gone" else "val": values}, path, {"warm": str(harm == "beside").lower()})
    if harm == "file":
        path.unlink()
    found, _ = differences(was, folder)
    name = {"beside": ": metadata.warm was", "gone": ": val is gone", "file": " is gone"}.get(
        harm, ': val was "F32[2, 3] '
    )
    assert len(found) == 1 and f"maps/step-000000.safetensors{name}" in found[0]


def test_a_changed_setting_and_a_run_that_is_gone_are_differences(folder):
    was = contents_of(folder)
    (folder / "run.toml").write_text((folder / "run.toml").read_text().replace("fused", "rapids"))
    assert differences(was, folder) == (['one: run.toml: resolved.engine was "fused", is "rapids"'], [])
    comparison = compare({"one": was, "two": was}, {"one": was, "three": was})
    assert comparison.differences == ["run two is gone"] and comparison.news == ["run three is new"]


def test_the_command_ends_with_1_where_something_differs_alone(folder, monkeypatch):
    recorded = {"machine": {"environment": {"python": "3"}}, "one": contents_of(folder), "two": contents_of(folder)}
    found, file = copy.deepcopy(recorded), folder / "record.json"
    chosen: list[tuple[str, ...]] = []

    def run_all(only: tuple[str, ...]) -> dict:
        chosen.append(only)
        return {name: own for name, own in found.items() if name != "two" or not only}

    monkeypatch.setattr(command, "_run_all", run_all)

    def call(*arguments: object) -> tuple[int, list[str]]:
        done = CliRunner().invoke(command.main, [str(argument) for argument in arguments])
        return done.exit_code, done.stdout.splitlines()

    assert call("record", file) == (0, [])
    found["one"]["scores.jsonl"][0]["fresh"] = 1
    assert call("check", file) == (0, ["new: one: scores.jsonl: column fresh is new", "2 runs, 8 rows: no differences"])
    found["two"]["scores.jsonl"][0]["ari"] = 0.75
    assert call("check", file, "--only", "one")[0] == 0 and chosen[-1] == ("one",)
    code, lines = call("check", file)
    assert code == 1 and lines[1].startswith("DIFFERS: two: scores.jsonl: ari differs in 1 of 2 rows")
    found["two"], found["machine"]["environment"] = recorded["two"], {"python": "4"}
    assert call("check", file, "--only", "one")[0] == 1
