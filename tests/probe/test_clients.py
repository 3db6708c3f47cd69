"""Models as people have them, made from configs: BERT with padding, T5, GPT-2 and Llama with LoRA, and trainers."""

import hashlib
from typing import Any, NamedTuple

import pytest
import torch

from fastcluster_lm import ClusterProbe, FclmTrainerCallback
from fastcluster_lm.store import RunFolder
from tests.probe.attached import QUICK, instances
from tests.probe.test_attached_resume import assert_same_run

pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")

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
