"""Models as people have them, made from configs: BERT with padding, T5, GPT-2 and Llama with LoRA; and their loops."""

import hashlib
import json
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from fastcluster_lm import ClusterProbe, FclmTrainerCallback
from fastcluster_lm.store import RunFolder
from tests.probe.attached import QUICK, Net, instances
from tests.probe.test_attached_resume import assert_same_run

accelerate = pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")

ROOT = Path(__file__).parents[2]
words, labels = instances()
SMALL = {"vocab_size": 20, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
# every other row has a token of padding at its end
tokens = torch.nn.functional.pad(words + 3, (1, 1), value=1)
tokens[::2, -1] = 0
mask = (tokens != 0).long()


class Client(NamedTuple):
    """A model, what is asked of it and where, what it learns, and its trainer: two classes, and what else they take."""

    model: torch.nn.Module
    inputs: Any
    data: Any
    layers: str | list[str]
    position: Any = -1
    kinds: tuple[type, type] = (transformers.Trainer, transformers.TrainingArguments)
    given: dict[str, Any] = {}


def rows_of(answers, **inputs):
    """Give a data set as a list of rows."""
    columns = {**inputs, "labels": answers}
    return [{name: values[at] for name, values in columns.items()} for at in range(len(answers))]


def bert():
    config = transformers.BertConfig(
        **SMALL, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_labels=3
    )
    inputs = {"input_ids": tokens, "attention_mask": mask}
    model = transformers.BertForSequenceClassification(config)
    return Client(model, inputs, rows_of(labels["output"], **inputs), "bert.encoder.layer.*", "attention_mask")


def t5():
    config = transformers.T5Config(
        **SMALL, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0
    )
    inputs = {"input_ids": words + 3, "decoder_input_ids": torch.zeros(len(words), 1, dtype=torch.int64)}
    model = transformers.T5ForConditionalGeneration(config)
    data = rows_of(labels["output"][:, None] + 3, **inputs)
    return Client(model, inputs, data, ["encoder.block.*", "decoder.block.*"])


def gpt2_with_lora():
    peft = pytest.importorskip("peft")
    config = transformers.GPT2Config(**SMALL, n_positions=4, n_embd=16, n_layer=2, n_head=2)
    model = transformers.GPT2LMHeadModel(config)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))
    inputs = {"input_ids": tokens, "attention_mask": mask}
    return Client(adapted, inputs, rows_of(tokens, **inputs), ["transformer.h.*"], "attention_mask")


def llama_of_trl():
    """Give a model that trl adapts by LoRA itself, prompts in words, and completions, which alone are learnt."""
    peft, trl, datasets = (pytest.importorskip(name) for name in ("peft", "trl", "datasets"))
    tokenizers = pytest.importorskip("tokenizers")
    known = [
        "<pad>",
        "<s>",
        "</s>",
        *(f"word{at}" for at in range(6)),
        *(f"x{at}" for at in range(8)),
        *"abc",
        "please",
    ]
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: at for at, word in enumerate(known)}, "<pad>"))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
    kinds = zip(*(labels[kind].tolist() for kind in ("distribution", "input", "output")), strict=True)
    data = [
        {"prompt": f"word{word} x{x}{' please' * (x % 2)}", "completion": f" {'abc'[output]}"}
        for word, x, output in kinds
    ]
    config = transformers.LlamaConfig(
        **SMALL | {"vocab_size": len(known)}, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=8,
    )  # fmt: skip
    lora = peft.LoraConfig(r=2, target_modules="all-linear", lora_dropout=0.1)
    inputs = tokenizer([row["prompt"] for row in data], return_tensors="pt", padding=True)
    return Client(
        transformers.LlamaForCausalLM(config), inputs, datasets.Dataset.from_list(data), "model.layers.*",
        "attention_mask", (trl.SFTTrainer, trl.SFTConfig), {"processing_class": tokenizer, "peft_config": lora},
    )  # fmt: skip


class Killed(BaseException):
    """The process is gone."""


class Kill(transformers.TrainerCallback):
    """End a job at the start of the step after `end`."""

    def __init__(self, end):
        self.end = end

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.end:
            raise Killed


def train(make, folder, *, every, end=None, resume=False):
    """Train four steps, or up to step `end`, with the probe among the callbacks; every=0 is without."""
    transformers.set_seed(0)
    client = make()
    trainer_class, arguments_class = client.kinds
    arguments = arguments_class(
        str(folder / "trained"), max_steps=4, per_device_train_batch_size=16, logging_steps=1, use_cpu=True,
        save_steps=2, report_to="none", disable_tqdm=True, learning_rate=1e-2,
    )  # fmt: skip
    told = []
    callback = FclmTrainerCallback(
        lambda model: ClusterProbe(
            model, client.inputs, labels, layers=client.layers, position=client.position, every=every,
            out=folder / "run", scores=QUICK, log=lambda metrics, step: told.append((step, metrics)),
        )
    )  # fmt: skip
    callbacks = ([callback] if every else []) + ([] if end is None else [Kill(end)])
    trainer = trainer_class(client.model, arguments, train_dataset=client.data, callbacks=callbacks, **client.given)
    trainer.train(resume_from_checkpoint=resume)
    digest = hashlib.sha256(b"".join(weight.detach().numpy().tobytes() for weight in trainer.model.parameters()))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return digest.hexdigest(), losses, told, trainer.state.log_history


@pytest.mark.parametrize(
    ("make", "layers"),
    [
        (bert, ["bert.encoder.layer.0", "bert.encoder.layer.1"]),
        (t5, ["encoder.block.0", "encoder.block.1", "decoder.block.0", "decoder.block.1"]),
        (gpt2_with_lora, ["transformer.h.0", "transformer.h.1"]),
        (llama_of_trl, ["model.layers.0", "model.layers.1"]),
    ],
)
def test_a_client_is_left_alone_told_by_plain_names_and_gone_on_with(tmp_path, make, layers):
    honest, losses, *_ = train(make, tmp_path / "none", every=0)
    probed, probed_losses, told, history = train(make, tmp_path / "whole", every=1)
    assert (probed, probed_losses) == (honest, losses) and len(losses) == 4
    run = RunFolder.open(tmp_path / "whole" / "run")
    assert run.config()["attached"]["layers"] == layers
    assert all(row["skipped"] is None for row in run.steps()) and [step for step, _ in told] == [0, 1, 2, 3, 4]
    wanted = {f"fclm/{name}/ari" for name in layers}
    assert wanted <= set(told[0][1]) and wanted <= {key for entry in history for key in entry}
    with pytest.raises(Killed):
        train(make, tmp_path / "cut", every=1, end=3)
    assert RunFolder.open(tmp_path / "cut" / "run").steps()[-1]["step"] == 3
    with pytest.warns(UserWarning, match="set aside in"):
        resumed, *_ = train(make, tmp_path / "cut", every=1, resume=True)
    assert resumed == honest
    assert_same_run(tmp_path / "whole" / "run", tmp_path / "cut" / "run")


def accelerated(folder, *, probed=True, end=None):
    """Train four epochs with Accelerate, saved after each, up to step `end`; on from the last that was saved."""
    # what trainers of this process left
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=2)
    transformers.set_seed(0)
    model = Net()
    model.noise = 0.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    data = torch.utils.data.TensorDataset(words, labels["output"])
    loader = torch.utils.data.DataLoader(data, batch_size=12, shuffle=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    epochs = sorted(folder.glob("epoch_*"))
    if epochs:
        accelerator.load_state(str(epochs[-1]))
    step, losses = 2 * len(epochs), []
    given = {"layers": ["embed", "blocks.*"], "every": 1, "out": folder / "run", "scores": QUICK}
    with ClusterProbe(model, words, labels, resume=True, **given) if probed else nullcontext() as probe:
        for epoch in range(len(epochs), 4):
            for inputs, answers in loader:
                if probed:
                    probe.step(step)
                if step == end:
                    raise Killed
                with accelerator.accumulate(model):
                    loss = torch.nn.functional.cross_entropy(model(inputs), answers)
                    accelerator.backward(loss)
                    optimizer.step()
                    optimizer.zero_grad()
                step += accelerator.sync_gradients
                losses.append(loss.item())
            accelerator.save_state(str(folder / f"epoch_{epoch}"))
        if probed:
            probe.close(step)
    digest = hashlib.sha256(b"".join(weight.detach().numpy().tobytes() for weight in model.parameters()))
    return digest.hexdigest(), losses


def test_a_model_that_accelerate_prepared_is_left_alone_and_gone_on_with(tmp_path):
    honest, losses = accelerated(tmp_path / "none", probed=False)
    assert accelerated(tmp_path / "whole") == (honest, losses) and len(losses) == 16
    run = RunFolder.open(tmp_path / "whole" / "run")
    assert run.config()["attached"]["layers"] == ["embed", "blocks.0", "blocks.1"]
    assert [row["step"] for row in run.steps()] == [*range(9)]
    with pytest.raises(Killed):
        accelerated(tmp_path / "cut", end=5)
    assert RunFolder.open(tmp_path / "cut" / "run").steps()[-1]["step"] == 5
    with pytest.warns(UserWarning, match="set aside in"):
        resumed, later = accelerated(tmp_path / "cut")
    assert resumed == honest and later == losses[8:]
    assert_same_run(tmp_path / "whole" / "run", tmp_path / "cut" / "run")


def nano_gpt(folder, worker, kill=0):
    """Run a job of tests.probe.attached_gpt in a process of its own; give how it ended, and what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.probe.attached_gpt", str(folder), worker, str(kill)],
        cwd=ROOT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode in (0, -signal.SIGKILL), done.stderr[-3000:]
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def whole_gpt(tmp_path_factory):
    """Train nanoGPT's loop in one go, without the probe and with it."""
    folder = tmp_path_factory.mktemp("gpt")
    found = json.loads(nano_gpt(folder, "none")[1])
    assert found["on"] == found["off"]
    run = RunFolder.open(folder / "on" / "run")
    assert [row["step"] for row in run.steps()] == [*range(0, 40, 3)]
    assert run.config()["attached"]["layers"] == ["transformer.wte", "transformer.h.0", "transformer.h.1"]
    # it learns, so that rows of one step are not those of another
    assert run.steps()[-1]["loss"] < run.steps()[1]["loss"] - 0.3
    return folder / "on" / "run", found["off"]


@pytest.mark.parametrize(("worker", "kill"), [("off", 13), ("on", 24)])
def test_a_killed_loop_of_nano_gpt_goes_on_as_if_it_had_not_been(tmp_path, whole_gpt, worker, kill):
    whole, weights = whole_gpt
    code, printed, _ = nano_gpt(tmp_path, worker, kill)
    assert (code, printed) == (-signal.SIGKILL, "")
    reached = RunFolder.open(tmp_path / "run").steps()[-1]["step"]
    assert 0 < reached < 39 and RunFolder.open(tmp_path / "run").status() == "stopped"
    code, printed, told = nano_gpt(tmp_path, worker)
    assert (code, json.loads(printed)) == (0, weights), f"killed about step {reached}: {told[-3000:]}"
    assert_same_run(whole, tmp_path / "run")
