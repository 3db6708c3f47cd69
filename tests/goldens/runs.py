"""The runs whose results are held: small ones of everything that writes a run folder, with all chance fixed."""

import json
import math
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from click.testing import CliRunner
from torch import Tensor, nn

from fastcluster_lm import ClusterProbe, ProbePlan
from fastcluster_lm.cli import main
from fastcluster_lm.config import ScoresConfig, apply_settings, load_preset
from fastcluster_lm.engine import start_run
from fastcluster_lm.probe import ProbeSkippedWarning
from tests.goldens.contents import Contents, Row, contents_of
from tests.tiny_language_model import QUESTIONS, write_model

ROOT = Path(__file__).parents[2]
STEPS = 100
QUICK = ("scores.n_init=2", "scores.n_iter=100", "scores.n_nulls=5", "scores.threads=1")
# full probes alone from the evaluation graph; full and step probes of training's own states
CADENCES = {"fresh": ("probe.every=25",), "batch": ("probe.every=5", "probe.full_every=25")}
ATTACHED = ScoresConfig(n_init=2, n_iter=60, warm_iter=20, perplexity=5.0, n_nulls=5, key_frame_every=3, threads=1)

Run = Callable[[Path], dict[str, Contents]]


def runs() -> dict[str, Run]:
    """List what is run, by name: each takes a new folder and gives what its run folders hold."""
    own = {
        f"{preset}-{source}-{'beside' if worker == 'on' else 'within'}": partial(
            trained, preset=preset, source=source, worker=worker
        )
        for preset in ("nano", "tiny-constant")
        for source in CADENCES
        for worker in ("off", "on")
    }
    return own | {
        "nano-instruction": instruction,
        "probed-run": probed_run,
        "probed-model": probed_model,
        "attached-val": attached_with_val,
        "attached-labels": attached_with_few_labels,
        "attached-wide": attached_wide,
        "attached-reference": attached_by_reference,
        "attached-tiers": attached_in_tiers,
        "two-ranks": on_two_ranks,
    }


def trained(folder: Path, *, preset: str, source: str, worker: str) -> dict[str, Contents]:
    """Train a preset for 100 steps, probed within training or beside it."""
    settings = (f"probe.source={source}", f"probe.worker={worker}", "scores.key_frame_every=3", *CADENCES[source])
    return {"": _train(folder / "run", preset, *settings)}


def instruction(folder: Path) -> dict[str, Contents]:
    """Train with the instruction's end probed, and no map in step probes."""
    settings = ("probe.position=instruction", "probe.source=batch", "scores.step_iter=0", "training.steps=30")
    return {"": _train(folder / "run", "nano", *settings, *CADENCES["batch"])}


def _train(folder: Path, preset: str, *settings: str) -> Contents:
    fixed = (
        "device=cpu",
        "training.threads=1",
        f"training.steps={STEPS}",
        "training.checkpoint_every=50",
        "training.keep_checkpoints=0",
    )
    assert start_run(apply_settings(load_preset(preset), [*fixed, *QUICK, *settings]), folder).finished
    return contents_of(folder)


def probed_run(folder: Path) -> dict[str, Contents]:
    """Score the checkpoints of a run afterwards, whole, and print what some layers of the newest have without a map."""
    _train(folder / "run", "nano", "probe.every=0", "training.steps=60")
    _probe(folder / "run", "--step", "all", "--out", folder / "all")
    some = ("--layers", "1-2", "--space", "hidden", "--instances", 432, "-s", "scores.n_neighbors=3")
    return {"all": contents_of(folder / "all"), "some": {"printed": _probe(folder / "run", *some)}}


def probed_model(folder: Path) -> dict[str, Contents]:
    """Score a language model of transformers that is asked in words."""
    model, asked = write_model(folder / "model"), folder / "asked.toml"
    asked.write_text(QUESTIONS)
    _probe(model, "--tasks", asked, "--out", folder / "out")
    return {"": contents_of(folder / "out")}


def _probe(*arguments: object) -> list[Row]:
    settings = [part for setting in QUICK for part in ("-s", setting)]
    done = CliRunner().invoke(main, [*map(str, ("probe", *arguments, "--device", "cpu", "--json")), *settings])
    if done.exit_code:
        raise RuntimeError(f"fclm probe: expected status 0, got {done.exit_code}: {done.stderr}")
    return json.loads(done.stdout)


def instances(words: range, n_words: int = 24) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Give tokens (n, 3), a word, an input and padding, their marks, and labels: three tasks, thrice expressed."""
    word, x = (part.flatten() for part in torch.meshgrid(torch.tensor(words), torch.arange(6), indexing="ij"))
    task, padding = word % 3, torch.full_like(word, n_words + 6)
    labels = {"task": task, "distribution": word % 9, "input": x, "output": (x * (task + 1) + task) % 4}
    marks = torch.tensor([1, 1, 0]).expand(len(word), 3)
    return torch.stack([word, x + n_words, padding], 1), marks, labels


class Net(nn.Module):
    """A few blocks of attention with dropout, and beside them a layer that nothing depends on."""

    def __init__(self, n_words: int = 24, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(n_words + 7, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 2, 2 * width, 0.1, batch_first=True) for _ in range(2)
        )
        self.beside = nn.Linear(width, width).requires_grad_(False)
        self.head = nn.Linear(width, 4)

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Answer at the token of the input."""
        h = self.embed(tokens)
        for block in self.blocks:
            h = block(h)
        self.beside(h)
        return self.head(h[:, 1])


def attached_with_val(folder: Path) -> dict[str, Contents]:
    """Attach to a loop with validation instances and all labels, at the last marked token; a layer breaks once."""
    (tokens, marks, labels), (val_tokens, val_marks, val_labels) = instances(range(18)), instances(range(18, 24))
    _loop(
        folder / "run",
        Net,
        {"tokens": tokens, "attention_mask": marks},
        labels | {"instruction": tokens[:, 0]},
        val=({"tokens": val_tokens, "attention_mask": val_marks}, val_labels | {"instruction": val_tokens[:, 0]}),
        position="attention_mask",
        layers=["embed", "blocks.*", "beside"],
        # by itself task_input is left out here: a task meets an input twice among the validation instances
        plan=ProbePlan(("task", "distribution", "input", "output", "task_input")),
    )
    return {"": contents_of(folder / "run")}


def attached_with_few_labels(folder: Path) -> dict[str, Contents]:
    """Attach to a loop with the tasks alone, and with distributions too, at a token by its index."""
    tokens, _, labels = instances(range(18))
    for name, known in (("task", ("task",)), ("distribution", ("task", "distribution"))):
        _loop(folder / name, Net, tokens, {kind: labels[kind] for kind in known}, position=1, layers="blocks.*")
    return {name: contents_of(folder / name) for name in ("task", "distribution")}


def attached_in_tiers(folder: Path) -> dict[str, Contents]:
    """Attach to a loop with step probes between full ones, of two tokens, at once and beside training."""
    tokens, _, labels = instances(range(18))
    options = {"every": 5, "full_every": 15, "positions": {"word": 0, "input": 1}, "layers": "blocks.*"}
    for worker in ("off", "on"):
        _loop(folder / worker, Net, tokens, labels, worker=worker, **options)
    return {worker: contents_of(folder / worker) for worker in ("off", "on")}


def attached_by_reference(folder: Path) -> dict[str, Contents]:
    """Attach to a loop and score by scikit-learn, openTSNE and faiss."""
    tokens, _, labels = instances(range(18))
    scores = replace(ATTACHED, engine="reference")
    _loop(folder / "run", Net, tokens, labels, position=1, layers="blocks.*", scores=scores, steps=10)
    return {"": contents_of(folder / "run")}


def attached_wide(folder: Path) -> dict[str, Contents]:
    """Attach to a loop with so many instances of so wide states that neighbours are searched in codes."""
    tokens, _, labels = instances(range(200), n_words=200)
    _loop(
        folder / "run", partial(Net, 200, 256), tokens, labels, position=1, layers="blocks.*", map_points=300, steps=10
    )
    return {"": contents_of(folder / "run")}


def _loop(
    folder: Path,
    build: Callable[[], Net],
    inputs: object,
    labels: dict[str, Tensor],
    *,
    steps: int = 40,
    **options: Any,
) -> None:
    torch.manual_seed(0)
    model, (tokens, _, own) = build(), instances(range(18))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    options = {"every": 10, "map_points": 60, "scores": ATTACHED} | options
    probe = ClusterProbe(model, inputs, labels, out=folder, **options)
    whole = model.beside.weight.detach().clone()
    for step in range(steps):
        model.beside.weight.copy_(whole * (math.nan if step == 20 else 1))
        with warnings.catch_warnings(action="ignore", category=ProbeSkippedWarning):
            probe.step(step)
        loss = nn.functional.cross_entropy(model(tokens), own["output"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    probe.close(steps)


def on_two_ranks(folder: Path) -> dict[str, Contents]:
    """Train a replicated and a sharded model on two ranks, with the probe attached."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tests.goldens.ranks"]
    done = subprocess.run([sys.executable, *launch, str(folder)], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"two ranks: expected status 0, got {done.returncode}: {done.stderr[-3000:]}")
    return {name: contents_of(folder / name) for name in ("replicated", "sharded")}
