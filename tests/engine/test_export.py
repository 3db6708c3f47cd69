"""What other programs get: transformers computes our logits from the exported folder, Parquet holds our tables."""

import json
import shutil

import pytest
import torch
from click.testing import CliRunner

from fastcluster_lm.cli import main
from fastcluster_lm.config import config_from_dict
from fastcluster_lm.data import Vocabulary
from fastcluster_lm.engine import Rooms, start_run
from fastcluster_lm.engine.export import export_hugging_face, export_parquet
from fastcluster_lm.errors import DataError, RunExistsError, RunFolderError
from fastcluster_lm.store import RunFolder
from fastcluster_lm.tasks import taskset_from_dict
from tests.laws.conftest import SMALL

LOGIT_ERROR = 1e-5


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Train the small run, with an inner width and dropout that are not the default ones."""
    config = {**SMALL, "model": {**SMALL["model"], "d_mlp": 24, "dropout": 0.1}}
    return start_run(config_from_dict(config), tmp_path_factory.mktemp("export") / "run").folder


def test_transformers_computes_our_logits(run, tmp_path):
    transformers = pytest.importorskip("transformers")
    out = export_hugging_face(run.path, tmp_path / "hf")
    assert sorted(entry.name for entry in out.iterdir()) == [
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(theirs).__name__ == "GPT2LMHeadModel" and not theirs.training
    stored = run.config()
    rooms = Rooms(config_from_dict({k: v for k, v in stored.items() if k not in ("resolved", "taskset")}),
                      taskset_from_dict(stored["taskset"]))  # fmt: skip
    weights, _ = run.read_checkpoint(run.latest_checkpoint())
    rooms.trainer.model.load_state_dict({name: torch.from_numpy(array) for name, array in weights["model"].items()})
    tokens = rooms.trainer.val.tokens
    with torch.no_grad():
        ours = rooms.trainer.model.eval()(tokens, torch.full((len(tokens),), 3), all_tokens=True).logits
        found = theirs(tokens).logits
    assert ours.std() > 0.1
    assert float((found - ours).abs().max()) <= LOGIT_ERROR


def test_the_tokenizer_gives_our_numbers_and_refuses_what_it_does_not_know(run, tmp_path):
    transformers = pytest.importorskip("transformers")
    out = export_hugging_face(run.path, tmp_path / "hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    vocabulary = Vocabulary.of(taskset_from_dict(run.config()["taskset"]))
    words = list(vocabulary.tokens[1:])
    assert tokenizer(" ".join(words))["input_ids"] == vocabulary.encode(words)
    assert tokenizer.decode(vocabulary.encode(words)) == " ".join(words)
    assert tokenizer.pad_token_id == 0 and len(tokenizer) == len(vocabulary)
    batch = tokenizer([words[0], " ".join(words[:3])], padding=True, return_tensors="pt")
    assert batch["input_ids"][0].tolist() == [*vocabulary.encode(words[:1]), 0, 0]
    with pytest.raises(Exception, match="UNK"):
        tokenizer("nonsense")


def test_a_checkpoint_may_be_chosen(run, tmp_path):
    last = export_hugging_face(run.path, tmp_path / "last")
    early = export_hugging_face(run.path, tmp_path / "early", step=5)
    assert (last / "model.safetensors").read_bytes() != (early / "model.safetensors").read_bytes()
    assert (last / "tokenizer.json").read_bytes() == (early / "tokenizer.json").read_bytes()
    with pytest.raises(RunFolderError, match="no checkpoint of step 7; whole ones: 5, 10, 12"):
        export_hugging_face(run.path, tmp_path / "none", step=7)
    with pytest.raises(RunExistsError, match="exists already"):
        export_hugging_face(run.path, tmp_path / "last")


def test_parquet_holds_the_tables(run, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    out = export_parquet(run.path, tmp_path / "tables")
    for name, rows in (("scores", run.scores()), ("steps", run.steps())):
        table = parquet.read_table(out / f"{name}.parquet")
        assert table.to_pylist() == rows
        assert not any(str(field.type) == "null" for field in table.schema)
    assert {str(table.schema.field(key).type) for key in ("loss", "skipped")} == {"double", "string"}


def test_parquet_takes_whole_numbers_of_any_size_in_columns_of_others(run, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    shutil.copytree(run.path, tmp_path / "run")
    with (tmp_path / "run" / "steps.jsonl").open("a") as file:
        file.write('{"step": 1000, "tokens_per_s": 1000000000000000000000000000000}\n')
    out = export_parquet(tmp_path / "run", tmp_path / "tables")
    assert parquet.read_table(out / "steps.parquet").column("tokens_per_s").to_pylist()[-1] == 1e30


def test_a_token_with_a_blank_is_refused(run, tmp_path):
    stored = run.config()
    name = stored["taskset"]["outputs"][0]
    stored["taskset"] = json.loads(json.dumps(stored["taskset"]).replace(f'"{name}"', '"two words"'))
    other = RunFolder.create(tmp_path / "run", stored, {})
    other.write_checkpoint(1, run.read_checkpoint(12)[0], {})
    with pytest.raises(DataError, match="token 'two words' has a blank in it"):
        export_hugging_face(other.path, tmp_path / "hf")


def test_the_command_prints_the_folder_and_explains_misuse(run, tmp_path):
    done = CliRunner().invoke(main, ["export", str(run.path), "--to", "hf", str(tmp_path / "hf")])
    assert done.exit_code == 0 and done.stdout == f"{tmp_path / 'hf'}\n"
    done = CliRunner().invoke(main, ["export", str(run.path), "--to", "parquet", str(tmp_path / "x"), "--step", "5"])
    assert done.exit_code == 2 and "--step: expected with --to hf alone" in done.stderr
    assert not (tmp_path / "x").exists()
