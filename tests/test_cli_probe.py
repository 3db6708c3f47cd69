"""`fclm probe` as a new user types it: rows as `fclm scores` prints them, one line a mistake, no pickle, no network."""

import json
import pickle
import re
import shlex
import shutil
import socket
from pathlib import Path

import pytest
import torch

from fastcluster_lm.config import config_from_dict
from fastcluster_lm.engine import start_run
from fastcluster_lm.store import SCORE_COLUMNS
from tests.laws.conftest import SMALL
from tests.test_cli import assert_one_line, call
from tests.tiny_language_model import QUESTIONS, write_model, write_tokenizer

QUICK = ("--space", "hidden", "-s", "scores.n_init=2", "-s", "scores.n_nulls=2")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Give a folder with a run, a language model of transformers and questions for it."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("place")
    start_run(config_from_dict({**SMALL, "training": {**SMALL["training"], "steps": 8}}), folder / "RUN")
    write_model(folder / "model")
    (folder / "asked.toml").write_text(QUESTIONS)
    return folder


@pytest.fixture(autouse=True)
def stand_beside_them(place, monkeypatch):
    """Let every call stand in that folder, away from any network."""
    monkeypatch.chdir(place)

    def refuse(self, address):
        raise AssertionError(f"something wants to reach {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


class Trap:
    """What writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def sprung(tmp_path) -> Path:
    """Name the file that is there once the trap was read."""
    return tmp_path / "sprung"


def copy_of_model(folder: Path, *without: str) -> Path:
    shutil.copytree("model", folder)
    for name in without:
        (folder / name).unlink()
    return folder


def test_json_and_csv_are_the_columns_of_the_score_table():
    done = call("probe", "RUN", "--json", *QUICK)
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    assert rows and all(list(row) == list(SCORE_COLUMNS) for row in rows)
    assert done.stderr.startswith("step 8: 192 instances, 3 layers, ")
    done = call("probe", "model", "--tasks", "asked.toml", "--csv", *QUICK)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[0].split(",") == list(SCORE_COLUMNS) and len(done.stdout.splitlines()) > 30


def test_layers_steps_and_instances_are_chosen():
    done = call("probe", "RUN", "--layers", "0,2-2", "--step", "5", "--instances", "64", "--json", *QUICK,
                "-s", "scores.n_neighbors=3")  # fmt: skip
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    assert {row["layer"] for row in rows} == {0, 2} and {row["step"] for row in rows} == {5}
    assert {row["n_points"] for row in rows if row["group"] == "all"} == {64}


def test_facts_are_asked_of_a_language_model():
    from fastcluster_lm.studies.fact_questions import fact_questions

    # two countries, and some to spare
    n = 2 * fact_questions().n_wordings
    done = call("probe", "model", "--tasks", "facts", "--instances", n + 9, "--json", *QUICK)
    assert done.exit_code == 0, done.output
    assert {(row["n_points"], row["split"]) for row in json.loads(done.stdout) if row["group"] == "all"} == {(n, "val")}


def test_an_exported_run_is_asked_in_its_own_words_alone(tmp_path):
    assert call("export", "RUN", tmp_path / "exported", "--to", "hf").exit_code == 0
    done = call("probe", tmp_path / "exported", "--tasks", "asked.toml")
    assert_one_line(done, 2, "expected words that the model's tokenizer knows, got 'what'")
    task = '[[tasks]]\nname = "{0}"\nwordings = ["{0} b c {{input}}", "{0} c c {{input}}", "{0} d a {{input}}"]\n'
    table = 'table = { i0 = "o0", i1 = "o1" }\n'
    (tmp_path / "asked.toml").write_text("".join(task.format(name) + table for name in "abc"))
    done = call("probe", tmp_path / "exported", "--tasks", tmp_path / "asked.toml", "--json", *QUICK)
    assert done.exit_code == 0, done.output
    assert {row["n_points"] for row in json.loads(done.stdout) if row["group"] == "all"} == {18}


def test_a_kept_result_is_printed_listed_and_drawn(tmp_path):
    done = call("probe", "RUN", "--out", tmp_path / "kept", "--step", "all", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(call("scores", tmp_path / "kept", "--json").stdout) == json.loads(done.stdout)
    assert json.loads(call("runs", tmp_path, "--json").stdout)[0]["step"] == 8
    drawn = call("report", tmp_path / "kept", "-o", tmp_path / "report.html")
    assert drawn.exit_code == 0, drawn.output
    before = sorted(tmp_path.rglob("*"))
    assert_one_line(call("probe", "RUN", "--out", tmp_path / "kept"), 2, "kept exists already", "another name")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_perplexity_that_is_too_large_is_lowered_aloud_and_on_record(tmp_path):
    from fastcluster_lm.store import RunFolder

    done = call("probe", "model", "--tasks", "asked.toml", "--out", tmp_path / "kept", "-s", "scores.n_iter=30")
    assert done.exit_code == 0, done.output
    assert done.stderr.splitlines()[0] == "scores.perplexity 30 lowered to 19.7 for 60 points"
    assert len(done.stderr.splitlines()) == 2
    config = RunFolder.open(tmp_path / "kept").config()
    assert config["scores"]["perplexity"] == config["resolved"]["perplexity"] == 59 / 3


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ("probe RNU", ["there is no folder RNU; did you mean 'RUN'?", "--download"]),
        ("probe org/name --tasks facts", ["there is no folder org/name; nothing is fetched from a network unless"]),
        ("probe . --tasks facts", [". has no config.json, so it is no model's folder, and no run.toml"]),
        ("probe RUN/run.toml", ["expected a run's or a model's folder, got a file"]),
        ("probe RUN --step 7", ["no checkpoint of step 7; whole ones: 5, 8"]),
        ("probe RUN --step last", ["--step", "'last' is neither a step nor all"]),
        ("probe RUN --layers 1,3", ["--layers: expected 0 to 2, got 3"]),
        ("probe RUN --layers last", ["--layers", "'last' is no list of layers such as 0,3,6 or 0-6"]),
        ("probe RUN --layers 2-1", ["--layers", "'2-1' names no layer"]),
        ("probe RUN --sapce map", ["No such option '--sapce'", "--space"]),
        ("probe RUN -s scores.n_iters=3", ["unknown key 'scores.n_iters'; did you mean 'n_iter'?"]),
        ("probe RUN -s training.steps=3", ["expected device or a key of probe or scores, got training.steps"]),
        ("probe RUN --tasks asked.toml", ["asked.toml: tasks: these are asked in words"]),
        ("probe RUN --tasks facts", ["--tasks: expected a TOML file of expressions for RUN, got facts"]),
        ("probe RUN --chat", ["--chat: expected with HF_FOLDER alone"]),
        ("probe RUN --device cuda", ["device: expected a CUDA GPU, found none"]),
        ("probe RUN --engine rapids", ["engine 'rapids' cannot run here"]),
        ("probe model", ["--tasks: expected facts, or a TOML file"]),
        ("probe model --tasks fact", ["fact: no such task file"]),
        ("probe model --tasks aksed.toml", ["aksed.toml: no such task file; did you mean 'asked.toml'?"]),
        ("probe model --tasks asked.toml --step 3", ["--step: expected with RUN alone"]),
        ("probe model --tasks asked.toml --chat", ["tokenizer without a chat template"]),
        ("probe model --tasks asked.toml --instances 9", ["expected room for 10 prompts", "raise --instances"]),
        ("probe model --tasks asked.toml --layers 9", ["--layers: expected 0 to 3, got 9"]),
        ("probe model --tasks asked.toml --engine rapids", ["engine 'rapids' cannot run here"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_is_told_in_one_line(arguments, parts, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = call(*arguments.split())
    assert_one_line(done, 1 if "--step 7" in arguments else 2, *parts)


def test_a_wording_without_its_place_is_told_with_its_key(tmp_path):
    (tmp_path / "asked.toml").write_text(QUESTIONS.replace("name the money of {input}", "name the money"))
    done = call("probe", "model", "--tasks", tmp_path / "asked.toml")
    assert_one_line(done, 2, "asked.toml: tasks[1].wordings[2]: expected {input} where the input goes")


@pytest.mark.parametrize(
    ("without", "part"),
    [
        (("tokenizer.json", "tokenizer_config.json"), "expected a tokenizer beside the weights"),
        (("config.json",), "has no config.json, so it is no model's folder"),
        (("model.safetensors",), "expected weights as *.safetensors beside config.json, found none"),
    ],
)
def test_a_folder_that_lacks_something_is_told_what(tmp_path, without, part):
    folder = copy_of_model(tmp_path / "bare", *without)
    assert_one_line(call("probe", folder, "--tasks", "asked.toml"), 2, str(folder), part)


def test_a_damaged_file_is_told_in_one_line(tmp_path):
    unknown = "transformers cannot load it: "
    for number, (name, data, part) in enumerate(
        [("config.json", b"{", "config.json is damaged: "), ("config.json", b'{"model_type": "odd"}', unknown),
         ("config.json", b"{}", unknown), ("model.safetensors", b"nothing", "model.safetensors: expected"),
         ("tokenizer.json", b"{}", unknown)]
    ):  # fmt: skip
        folder = copy_of_model(tmp_path / str(number))
        (folder / name).write_bytes(data)
        assert_one_line(call("probe", folder, "--tasks", "asked.toml"), 2, part)


def test_a_pickle_is_refused_and_never_read(tmp_path, sprung):
    folder = copy_of_model(tmp_path / "pickled", "model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(sprung)))
    done = call("probe", folder, "--tasks", "asked.toml")
    assert_one_line(done, 2, "found pytorch_model.bin, a pickle", "expected weights as safetensors", "python -c ")
    for name in ("model.bin", "model.pt", "model.pth", "model.ckpt"):
        (tmp_path / name).write_bytes(pickle.dumps(Trap(sprung)))
        assert_one_line(call("probe", tmp_path / name), 2, "got a pickle", "expected a folder with weights as")
    # beside safetensors a pickle does no harm, nor does one in a run
    shutil.copy("model/model.safetensors", folder)
    assert call("probe", folder, "--tasks", "asked.toml", *QUICK).exit_code == 0
    shutil.copytree("RUN", tmp_path / "RUN")
    for where in (tmp_path / "RUN", tmp_path / "RUN" / "checkpoints" / "step-000008"):
        (where / "model.pt").write_bytes(pickle.dumps(Trap(sprung)))
    assert call("probe", tmp_path / "RUN", *QUICK).exit_code == 0
    assert not sprung.exists()
    pickle.loads((tmp_path / "model.pt").read_bytes())
    assert sprung.exists()


def test_the_command_that_is_named_makes_a_folder_that_is_read(tmp_path, monkeypatch):
    from safetensors.torch import load_file

    folder = copy_of_model(tmp_path / "pickled", "model.safetensors")
    torch.save(load_file("model/model.safetensors"), folder / "pytorch_model.bin")
    asked, whole = Path("asked.toml").resolve(), call("probe", "model", "--tasks", "asked.toml", "--json", *QUICK)
    refused = call("probe", folder, "--tasks", "asked.toml").stderr
    words = shlex.split(re.search(r"write it anew: (.*), then name SAFE", refused).group(1))
    assert words[:2] == ["python", "-c"]
    monkeypatch.chdir(tmp_path)
    exec(words[2], {})
    done = call("probe", "SAFE", "--tasks", asked, "--json", *QUICK)
    assert done.exit_code == 0 and done.stdout == whole.stdout


def test_code_in_a_folder_is_not_run(tmp_path, sprung):
    folder = copy_of_model(tmp_path / "coded")
    (folder / "modeling_odd.py").write_text(f"from pathlib import Path\nPath({str(sprung)!r}).touch()\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "odd",
        "auto_map": {"AutoConfig": "modeling_odd.C", "AutoModelForCausalLM": "modeling_odd.M"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    assert_one_line(call("probe", folder, "--tasks", "asked.toml"), 2, "transformers cannot load it: ")
    assert not sprung.exists()


def test_a_model_is_fetched_where_it_is_asked_for_alone(monkeypatch, place):
    import huggingface_hub

    calls = []

    def snapshot_download(name, **options):
        calls.append((name, options))
        return str(place / "model")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert_one_line(call("probe", "org/name", "--tasks", "asked.toml"), 2, "nothing is fetched")
    # a folder that is there needs no fetching
    assert call("probe", "model", "--tasks", "asked.toml", "--download", *QUICK).exit_code == 0
    assert calls == []
    done = call("probe", "org/name", "--tasks", "asked.toml", "--download", "--json", *QUICK)
    assert done.exit_code == 0, done.output
    assert done.stdout == call("probe", "model", "--tasks", "asked.toml", "--json", *QUICK).stdout
    [(name, options)] = calls
    assert name == "org/name" and "*.safetensors" in options["allow_patterns"]
    for ending in (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".py"):
        assert not any(pattern.endswith((ending, ".*", "*")) for pattern in options["allow_patterns"])

    def fail(name, **options):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    done = call("probe", "org/name", "--tasks", "asked.toml", "--download")
    assert_one_line(done, 2, "--download: org/name could not be fetched: no network")


def test_without_transformers_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("fastcluster_lm.engine.hugging_face.importlib.util.find_spec", lambda name: None)
    done = call("probe", "model", "--tasks", "asked.toml")
    assert_one_line(done, 2, "pip install 'fastcluster-lm[hf]'")


def test_a_tokenizer_is_looked_for_before_weights_are_loaded(tmp_path):
    write_tokenizer(tmp_path)
    assert_one_line(call("probe", tmp_path, "--tasks", "asked.toml"), 2, "has no config.json")
