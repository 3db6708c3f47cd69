"""Folders of models that mean harm or do not fit: each one clear error, soon; nothing run, nothing read outside."""

import json
import os
import pickle
import shutil
import time
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastcluster_lm.engine import hugging_face
from fastcluster_lm.engine.hugging_face import load_model
from fastcluster_lm.engine.model_folder import check_model_folder
from fastcluster_lm.engine.probe_work import ProbeOptions
from fastcluster_lm.engine.probing import probe_model
from fastcluster_lm.errors import FclmError, UsageError
from fastcluster_lm.tasks import Prompt, load_questions
from tests.tiny_language_model import QUESTIONS, write_model, write_tokenizer

CPU = torch.device("cpu")
# each error comes within seconds, beside other work
SOON_S = 60.0


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "made", chat=True)


@pytest.fixture
def folder(made, tmp_path):
    shutil.copytree(made, tmp_path / "model")
    return tmp_path / "model"


class Trap:
    """A pickle that leaves a mark when it is read."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return open, (self.mark, "w")


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def shard(folder, name="part.safetensors"):
    """Keep the weights in a file of another name, behind an index."""
    (folder / "model.safetensors").rename(folder / name)
    write_index(folder, name)


def write_index(folder, name):
    names = load_file(str(folder / "part.safetensors")) if (folder / "part.safetensors").exists() else {"x": 0}
    weight_map = dict.fromkeys(names, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def refused(folder, *parts):
    """Load a folder and see one error, soon."""
    started = time.monotonic()
    with pytest.raises(FclmError) as caught:
        load_model(folder, CPU)
    assert time.monotonic() - started < SOON_S
    told = str(caught.value)
    assert "\n" not in told and str(folder) in told, told
    for part in parts:
        assert part in told, told


def asked(text):
    return Prompt(text, "", "", "", "")


def test_weights_in_several_files_are_loaded(folder):
    shard(folder)
    assert load_model(folder, CPU).model.config.num_hidden_layers == 3


def test_an_index_that_names_a_pickle_is_refused_and_the_pickle_never_read(folder, tmp_path):
    mark = tmp_path / "sprung"
    shard(folder)
    (folder / "weights.bin").write_bytes(pickle.dumps(Trap(mark)))
    torch.save({"a": torch.zeros(1)}, folder / "weights.pt")
    for name in ("weights.bin", "weights.pt"):
        write_index(folder, name)
        refused(folder, "expected names of *.safetensors in this folder", repr(name))
    change(folder / "config.json", transformers_weights="weights.bin")
    refused(folder, "transformers_weights: expected safetensors, found 'weights.bin'")
    assert not mark.exists()


@pytest.mark.parametrize("name", ["../outside/part.safetensors", "/etc/part.safetensors", "..", "a\x00.safetensors"])
def test_an_index_that_leads_out_of_the_folder_is_refused(folder, tmp_path, name):
    shard(folder)
    shutil.copytree(folder, tmp_path / "outside")
    write_index(folder, name)
    refused(folder, "expected names of *.safetensors in this folder")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_link_out_of_the_folder_is_refused(folder, tmp_path, name):
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    refused(folder, f"{name} is a link out of the folder")


def test_links_of_the_hubs_cache_are_followed_within_their_own_model(folder, tmp_path):
    model = tmp_path / "hub" / "models--org--made"
    (model / "blobs").mkdir(parents=True)
    (model / "snapshots" / "abc").mkdir(parents=True)
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(model / "blobs" / f"{number}")
        (model / "snapshots" / "abc" / path.name).symlink_to(f"../../blobs/{number}")
    assert load_model(model / "snapshots" / "abc", CPU).chat
    other = tmp_path / "hub" / "models--org--other" / "blobs"
    other.mkdir(parents=True)
    weights = model / "snapshots" / "abc" / "model.safetensors"
    weights.resolve().rename(other / "1")
    weights.unlink()
    weights.symlink_to(other / "1")
    refused(model / "snapshots" / "abc", "model.safetensors is a link out of the folder")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "generation_config.json"])
@pytest.mark.parametrize("kind", ["pipe", "device", "loop", "endless"])
def test_what_is_no_file_is_refused(folder, name, kind):
    path = folder / name
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless":
        with path.open("wb") as file:
            file.truncate(2**36)
    else:
        path.symlink_to("/dev/zero" if kind == "device" else name)
    refused(folder, name)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"num_attention_heads": 0}, ()),
        ({"num_attention_heads": -2}, ()),
        ({"num_key_value_heads": 0}, ()),
        ({"num_hidden_layers": 10**6}, ("config.json: num_hidden_layers: expected at most",)),
        ({"num_hidden_layers": 10**12}, ("config.json: num_hidden_layers: expected at most",)),
        ({"num_labels": 10**9}, ("config.json: num_labels: expected at most",)),
        ({"vocab_size": 10**9}, ("config.json describes",)),
        ({"hidden_size": 2**22}, ("config.json describes",)),
        ({"intermediate_size": 2**62}, ("intermediate_size: expected at most",)),
        ({"vocab_size": 4}, ()),
        ({"hidden_size": "16"}, ()),
        ({"head_dim": 10**8}, ()),
        ({"rope_parameters": {"rope_type": "odd"}}, ()),
        ({"dtype": "odd"}, ()),
        # passed over: the class and how weights are kept are ours to choose
        ({"quantization_config": {"quant_method": "odd"}}, None),
        ({"architectures": ["os.system"]}, None),
    ],
)
def test_a_config_that_does_not_fit_its_weights_is_refused_before_it_takes_memory(folder, changes, parts):
    change(folder / "config.json", **changes)
    if parts is None:
        assert load_model(folder, CPU).model.dtype == torch.float32
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refused(folder, *parts)


def test_a_model_larger_than_the_machine_is_refused(folder, monkeypatch):
    real = os.sysconf
    monkeypatch.setattr(
        hugging_face.os, "sysconf", lambda name: 1 if name == "SC_PHYS_PAGES" else real(name), raising=True
    )
    refused(folder, "expected a model that this machine has room for")


def test_weights_of_another_model_are_refused(folder):
    weights = load_file(str(folder / "model.safetensors"))
    weights["model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 3)
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    refused(folder)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    refused(folder, "expected all weights of LlamaForCausalLM")


def test_code_in_the_folder_is_not_run(folder, tmp_path):
    mark = tmp_path / "sprung"
    code = f"open({str(mark)!r}, 'w')\nfrom transformers import LlamaConfig as C, LlamaForCausalLM as M\n"
    for name in ("custom", "configuration_custom", "modeling_custom", "tokenization_custom"):
        (folder / f"{name}.py").write_text(code)
    auto = {"AutoConfig": "custom.C", "AutoModelForCausalLM": "custom.M", "AutoTokenizer": ["custom.T", None]}
    change(folder / "config.json", auto_map=auto)
    load_model(folder, CPU)
    change(folder / "config.json", model_type="custom")
    refused(folder)
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["custom.T", None]}, tokenizer_class="T")
    refused(folder)
    assert not mark.exists()


def test_an_adapter_that_names_another_model_is_refused(folder, tmp_path):
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "other")}))
    refused(folder, "an adapter (adapter_config.json) loads another model")


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"{", b"\xff\xfe", b'{"model": {"type": "BPE"}}', b"[" * 10**5])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_garbled_files_beside_the_weights_are_one_error(folder, name, data):
    (folder / name).write_bytes(data)
    if name == "generation_config.json" or (name == "tokenizer_config.json" and data.endswith(b"}")):
        # what it says is not needed, as long as it can be passed over
        try:
            load_model(folder, CPU)
        except UsageError as error:
            assert "\n" not in str(error)
        return
    refused(folder)


def test_a_missing_tokenizer_is_named(folder):
    for path in [*folder.glob("tokenizer*"), *folder.glob("*.jinja")]:
        path.unlink()
    refused(folder, "tokenizer")


@pytest.mark.parametrize("key", ["fast_tokenizer_files", "vocab_file"])
def test_a_tokenizer_that_names_files_elsewhere_is_refused(folder, key):
    change(folder / "tokenizer_config.json", **{key: ["../tokenizer.4.0.json"]})
    refused(folder, f"{key}: expected a name in this folder")


TEMPLATES = {
    "raises": ("{{ raise_exception('no') }}", "TemplateError: no"),
    "not a template": ("{% for %}", "TemplateSyntaxError"),
    "loops": ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "it does not end"),
    "grows": (
        "{% set ns = namespace(x='a') %}{% for a in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
        "",
    ),
    "huge": ("{{ 'a' * 10**10 }}", "MemoryError"),
    "long": ("{{ 'a' * 10**8 }}", "it wrote 100000000 letters"),
    "number": ("{{ 10 ** (10 ** 10) }}", ""),
    "reaches out": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
    "changes": ("{{ messages.append(1) }}", "SecurityError"),
    "reads": ("{% include '/etc/passwd' %}", "TypeError"),
    "unknown": ("{{ messages[9].content.text }}", "UndefinedError"),
}


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_chat_template_that_means_harm_is_one_error(folder, kind, tmp_path):
    template, part = TEMPLATES[kind]
    (folder / "chat_template.jinja").write_text(template)
    (tmp_path / "asked.toml").write_text(QUESTIONS)
    started = time.monotonic()
    with pytest.raises(UsageError, match="expected a chat template") as caught:
        probe_model(folder, load_questions(tmp_path / "asked.toml"), options=ProbeOptions(spaces=("hidden",)))
    assert time.monotonic() - started < SOON_S
    assert part in str(caught.value) and "\n" not in str(caught.value)


def test_the_template_writes_what_transformers_does(folder):
    loaded = load_model(folder, CPU)
    tokenizer = hugging_face.load_tokenizer(folder)
    turn = [{"role": "user", "content": "what is the capital of chad ?"}]
    expected = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert loaded.encode(asked("what is the capital of chad ?")) == list(expected)


def test_tokens_without_an_embedding_are_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "other")
    write_tokenizer(tmp_path / "other", chat=False)
    vocabulary = json.loads((folder / "tokenizer.json").read_text())
    vocabulary["model"]["vocab"]["capital"] = 5000
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary))
    loaded = load_model(folder, CPU)
    with pytest.raises(UsageError, match=r"expected tokens from 0 to 27, .* gave 5000"):
        loaded.encode(asked("what is the capital of chad"))


def test_the_folder_itself_may_be_a_link(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    assert check_model_folder(tmp_path / "link").keys() == check_model_folder(Path(folder)).keys()
