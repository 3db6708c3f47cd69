"""The callbacks: trainers end with the same weights, losses and logs as without them, and log the scores too."""

import hashlib
import json
import runpy
import warnings
from pathlib import Path

import pytest
import torch

from fastcluster_lm import ClusterProbe
from fastcluster_lm.probe import ProbeSkippedWarning
from fastcluster_lm.store import RunFolder
from tests.probe.attached import QUICK, Net, instances, seed_all
from tests.probe.test_attached_resume import assert_same_run
from tests.probe.test_attached_tiers import assert_same_curves

EXAMPLES = Path(__file__).parents[1] / "examples"
tokens, labels = instances()


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_hugging_face_example_runs(tmp_path):
    pytest.importorskip("accelerate")
    trainer = runpy.run_path(str(EXAMPLES / "attach_hugging_face.py"))["trainer"]
    check_example(tmp_path / "run", ["transformer.wte", "transformer.h.0", "transformer.h.1"])
    # and its scores are where the Trainer keeps its own
    logged = [entry for entry in trainer.state.log_history if "fclm/transformer.h.1/knn_share" in entry]
    assert [entry["step"] for entry in logged] == [0, 20, 40]
    assert logged[1]["fclm/transformer.h.1/knn_share"] > logged[0]["fclm/transformer.h.1/knn_share"]


def test_the_lightning_example_runs(tmp_path):
    pytest.importorskip("lightning")
    trainer = runpy.run_path(str(EXAMPLES / "attach_lightning.py"))["trainer"]
    check_example(tmp_path / "run", ["blocks.0", "blocks.1"])
    lines = Path(trainer.logger.log_dir, "metrics.csv").read_text().splitlines()
    assert "fclm/blocks.1/ari" in lines[0] and len(lines) >= 3


def check_example(path, layers):
    folder = RunFolder.open(path)
    assert folder.status() == "finished"
    assert folder.config()["attached"]["layers"] == layers
    assert [row["step"] for row in folder.steps()] == [0, 20, 40]
    assert all(row["skipped"] is None for row in folder.steps())
    assert {row["step"] for row in folder.scores()} == {0, 20, 40}


class Killed(BaseException):
    """The process is gone."""


def scores_in(logs):
    """Pick a probe's scores from what a trainer logs at a step."""
    return {key: value for key, value in logs.items() if key.startswith("fclm/")}


def train_hugging_face(path, every, bf16=False, steps=6, *, save=0, end=None, resume=False, told=None, **given):
    """Train, with checkpoints every `save` steps, up to the forward after step `end`, or on from the last one.

    told: gets what is reported of the probe, with its step
    """
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from fastcluster_lm import FclmTrainerCallback

    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Net()

        def forward(self, tokens, labels=None):
            if self.training and end is not None and trainer.state.global_step == end:
                raise Killed
            logits = self.net(tokens)
            loss = None if labels is None else torch.nn.functional.cross_entropy(logits, labels)
            return {"loss": loss, "logits": logits}

    seed_all()
    model = Wrapped()
    # a probe within a step, and one before the first that follows a checkpoint, draw other numbers
    model.net.noise = 0.0 if save else model.net.noise
    arguments = TrainingArguments(
        "trained", max_steps=steps, per_device_train_batch_size=16, logging_steps=1, use_cpu=True, report_to="none",
        disable_tqdm=True, save_strategy="steps" if save else "no", save_steps=save or 500,
        gradient_accumulation_steps=2, bf16=bf16,
    )  # fmt: skip
    rows = [{"tokens": row, "labels": y} for row, y in zip(tokens, labels["output"], strict=True)]
    trainer = Trainer(model, arguments, train_dataset=rows)

    class Reporter(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            told.append((state.global_step, scores_in(logs)))

    if told is not None:
        trainer.add_callback(Reporter())
    if every:
        inputs = {"tokens": tokens}
        trainer.add_callback(
            FclmTrainerCallback(
                lambda model: ClusterProbe(
                    model, inputs, labels, layers="net.blocks.*", every=every, out=path, scores=QUICK, **given
                ),
                trainer,
            )
        )
    trainer.train(resume_from_checkpoint=resume)
    if told is not None:
        told += [(entry["step"], scores_in(entry)) for entry in trainer.state.log_history]
    return model, [(entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("bf16", [False, True])
def test_a_hugging_face_trainer_is_left_alone(tmp_path, bf16):
    pytest.importorskip("accelerate")
    honest, losses = train_hugging_face(tmp_path / "none", 0, bf16)
    probed, probed_losses = train_hugging_face(tmp_path / "run", 2, bf16)
    assert [step for step, _ in losses] == [1, 2, 3, 4, 5, 6]
    # every loss is logged, at the probed steps too
    assert probed_losses == losses
    assert weights(probed) == weights(honest)
    steps = RunFolder.open(tmp_path / "run").steps()
    assert [row["step"] for row in steps] == [0, 2, 4, 6]
    # the loss beside a probe is the newest that was logged
    assert [row["loss"] for row in steps[1:3]] == [losses[0][1], losses[2][1]]


@pytest.mark.parametrize("end", [3, 4, 5])
@pytest.mark.filterwarnings("ignore:.* set aside in")
def test_a_hugging_face_trainer_that_goes_on_takes_the_probe_along(tmp_path, end, monkeypatch):
    pytest.importorskip("accelerate")
    # each job has its checkpoints where it runs
    for place in ("whole", "cut"):
        (tmp_path / place).mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    whole, losses = train_hugging_face(tmp_path / "whole" / "run", 1, save=2)
    monkeypatch.chdir(tmp_path / "cut")
    with pytest.raises(Killed):
        train_hugging_face(tmp_path / "cut" / "run", 1, save=2, end=end)
    assert RunFolder.open(tmp_path / "cut" / "run").steps()[-1]["step"] == end
    resumed, later = train_hugging_face(tmp_path / "cut" / "run", 1, save=2, resume=True)
    assert weights(resumed) == weights(whole) and later == losses
    assert_same_run(tmp_path / "whole" / "run", tmp_path / "cut" / "run")


def train_lightning(
    path, every, precision="32-true", poison=None, steps=6, *, save=0, end=None, resume=None, told=None, **given
):
    """Train, with checkpoints every `save` steps, up to the forward after step `end`, or on from a checkpoint.

    told: gets what is logged, with its step
    """
    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.loggers.logger import DummyLogger
    from torch.utils.data import DataLoader, TensorDataset

    from fastcluster_lm import FclmLightningCallback

    class Wrapped(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Net()
            self.losses = []

        def forward(self, tokens):
            return self.net(tokens)

        def training_step(self, batch):
            if end is not None and self.global_step == end:
                raise Killed
            if save:
                # Lightning keeps no generator in a checkpoint
                torch.manual_seed(self.global_step)
            loss = torch.nn.functional.cross_entropy(self(batch[0]).float(), batch[1])
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    class Reporter(DummyLogger):
        def log_metrics(self, metrics, step):
            told.append((step, scores_in(metrics)))

    seed_all()
    model = Wrapped()
    model.net.noise = 0.0 if save else model.net.noise
    saves = [ModelCheckpoint(path.parent / "saved", every_n_train_steps=save, save_top_k=-1)] if save else []
    callback = FclmLightningCallback(
        lambda model: ClusterProbe(
            model, tokens, labels, layers="net.blocks.*", every=every, out=path, scores=QUICK, position=poison or -1,
            **given,
        )
    )  # fmt: skip
    trainer = lightning.Trainer(
        max_steps=steps, accelerator="cpu", precision=precision, callbacks=[*saves, callback] if every else saves,
        logger=Reporter() if told is not None else False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=bool(save),
        accumulate_grad_batches=2,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="lightning")
        data = DataLoader(TensorDataset(tokens, labels["output"]), batch_size=16, shuffle=not save)
        trainer.fit(model, data, ckpt_path=resume)
    return model, model.losses


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_lightning_trainer_is_left_alone(tmp_path, precision):
    pytest.importorskip("lightning")
    honest, losses = train_lightning(tmp_path / "none", 0, precision)
    probed, probed_losses = train_lightning(tmp_path / "run", 2, precision)
    assert probed_losses == losses and len(losses) == 9
    assert weights(probed) == weights(honest)
    assert [row["step"] for row in RunFolder.open(tmp_path / "run").steps()] == [0, 2, 4, 6]


@pytest.mark.parametrize("end", [2, 3, 5])
@pytest.mark.filterwarnings("ignore:.* set aside in")
def test_a_lightning_trainer_that_goes_on_takes_the_probe_along(tmp_path, end):
    pytest.importorskip("lightning")
    whole, losses = train_lightning(tmp_path / "whole" / "run", 1, save=2)
    with pytest.raises(Killed):
        train_lightning(tmp_path / "cut" / "run", 1, save=2, end=end)
    assert RunFolder.open(tmp_path / "cut" / "run").steps()[-1]["step"] == end
    (last,) = (tmp_path / "cut" / "saved").glob(f"*step={end // 2 * 2}.ckpt")
    resumed, later = train_lightning(tmp_path / "cut" / "run", 1, save=2, resume=last)
    assert weights(resumed) == weights(whole) and later == losses[-len(later) :]
    assert_same_run(tmp_path / "whole" / "run", tmp_path / "cut" / "run")


@pytest.mark.parametrize("trainer", ["hugging_face", "lightning"])
@pytest.mark.filterwarnings("ignore:.* set aside in")
def test_a_trainer_has_step_probes_and_takes_them_along(tmp_path, trainer, monkeypatch):
    pytest.importorskip("accelerate" if trainer == "hugging_face" else "lightning")
    train = train_hugging_face if trainer == "hugging_face" else train_lightning
    told = {"whole": [], "cut": []}
    for place, seen in told.items():
        (tmp_path / place).mkdir()
        monkeypatch.chdir(tmp_path / place)
        given = {"save": 2, "full_every": 4, "log": lambda metrics, step, seen=seen: seen.append((step, metrics))}
        if place == "cut":
            with pytest.raises(Killed):
                train(tmp_path / place / "run", 1, end=3, **given)
            given["resume"] = True if trainer == "hugging_face" else next(Path("saved").glob("*step=2.ckpt"))
        train(tmp_path / place / "run", 1, **given)
    assert_same_curves(tmp_path / "whole" / "run", tmp_path / "cut" / "run")
    # steps 1, 2, 3 and 5 have step probes, and 6, the last, has one of each tier
    names = [(step, "fclm/step/net.blocks.1/ari" in own, "fclm/net.blocks.1/ari" in own) for step, own in told["whole"]]
    full = {0, 4}
    expected = [(step, step not in full, step in full) for step in range(7)]
    assert names == [*expected, (6, False, True)]
    # what was scored again is told again
    assert dict(told["cut"]) == dict(told["whole"])


def test_a_probe_that_fails_ends_no_training(tmp_path):
    pytest.importorskip("lightning")
    calls = []

    def short_of_memory_later(output, rows):
        calls.append(len(rows))
        # the trial and the first probe of two layers pass
        if len(calls) > 4:
            raise torch.OutOfMemoryError("no memory")
        return output[:, -1]

    honest, losses = train_lightning(tmp_path / "none", 0)
    with pytest.warns(ProbeSkippedWarning, match="no memory"):
        probed, probed_losses = train_lightning(tmp_path / "run", 2, poison=short_of_memory_later)
    assert probed_losses == losses and weights(probed) == weights(honest)
    skipped = [row["skipped"] for row in RunFolder.open(tmp_path / "run").steps()]
    assert skipped == [None, *["OutOfMemoryError: no memory"] * 3]


@pytest.mark.parametrize("train", [train_hugging_face, train_lightning])
def test_scores_that_come_later_from_a_worker_are_logged_at_their_own_steps(tmp_path, train):
    pytest.importorskip("accelerate"), pytest.importorskip("lightning")
    told = {"off": [], "on": []}
    for worker, own in told.items():
        train(tmp_path / worker, 2, worker=worker, told=own)
        own[:] = [entry for entry in own if entry[1]]
    assert [step for step, _ in told["off"]][:4] == [0, 2, 4, 6]
    assert told["on"] == told["off"]


def test_a_checkpoint_of_hugging_face_comes_after_all_probes_before_it(tmp_path):
    pytest.importorskip("accelerate")
    train_hugging_face(tmp_path / "run", 1, save=3, worker="on")
    saved = json.loads((tmp_path / "trained" / "checkpoint-3" / "trainer_state.json").read_text())
    # a kill from here on costs none of them
    assert [entry["step"] for entry in saved["log_history"] if scores_in(entry)] == [0, 1, 2, 3]


def weights(model):
    """Hash weights and buffers; checks of shapes draw from Python's generator here, so none is looked at."""
    return {name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for name, tensor in model.state_dict().items()}
