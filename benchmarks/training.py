"""`fclm bench train`: tokens a second of our training step against transformers' GPT2LMHeadModel."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from fastcluster_lm.benchmarks.harness import Line, judged, time_side_by_side
from fastcluster_lm.config import RunConfig, apply_settings, load_preset
from fastcluster_lm.data import BatchSampler
from fastcluster_lm.engine import Rooms
from fastcluster_lm.model.gpt2 import hugging_face_state
from fastcluster_lm.tasks import taskset_of

# times our step must be faster than transformers' eager and compiled ones, by width: (eager, compiled)
TARGETS = {32: (2.0, 1.2), 768: (1.0, 1.0)}


def bench_train(preset: str, steps: int) -> Iterator[Line]:
    """Time steps of both on the same weights, batch and loss, in turns.

    Units:  seconds a step; tokens a second count all tokens of a batch
    """
    config = apply_settings(load_preset(preset), ["probe.every=0"])
    ours = {"eager": "off", "compiled": "on"}
    calls: dict[str, Callable[[], Any]] = {}
    tokens = 0
    for name, compiled in ours.items():
        run = Rooms(apply_settings(config, [f"training.compile={compiled}"]), taskset_of(config.tasks, config.seed))
        tokens = config.training.batch_size * run.trainer.train.tokens.shape[1]
        calls[f"ours {name}"] = run.trainer.advance
        calls[f"transformers {name}"] = transformers_step(run, config, compiled == "on")
    found = time_side_by_side(calls, steps, warm_up=True)
    for name, target in zip(("eager", "compiled"), TARGETS.get(config.model.d_model, (1.0, 1.0)), strict=True):
        line = {
            "bench": "train",
            "kind": f"against transformers, {name}",
            "preset": preset,
            "d": config.model.d_model,
            "batch": config.training.batch_size,
            "tokens_per_s": {key: tokens / timing.median for key, timing in found.items()},
            "step_s": {key: timing.as_dict() for key, timing in found.items()},
        }
        yield judged(line, target, found[f"transformers {name}"].median / found[f"ours {name}"].median, at_least=True)


def transformers_step(run: Any, config: RunConfig, compiled: bool) -> Callable[[], float]:
    """Build the same step around transformers' model: same weights, batches, loss, AdamW and clipping."""
    from transformers import GPT2Config, GPT2LMHeadModel

    train, model, training = run.trainer.train, config.model, config.training
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(run.vocabulary),
            n_positions=train.tokens.shape[1],
            n_embd=model.d_model,
            n_layer=model.n_layers,
            n_head=model.n_heads,
            n_inner=model.d_mlp or None,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            use_cache=False,
        )
    )
    theirs.load_state_dict(hugging_face_state(run.trainer.model))
    theirs.train()
    optimizer = torch.optim.AdamW(
        theirs.parameters(), lr=training.learning_rate, betas=(training.beta1, training.beta2), fused=True
    )
    sampler = BatchSampler(len(train), training.batch_size, config.seed)
    forward = torch.compile(theirs) if compiled else theirs

    def step() -> float:
        batch = sampler.draw()
        tokens, output_position, _ = train.inputs(batch)
        logits = forward(tokens).logits
        loss = cross_entropy(logits[torch.arange(len(batch)), output_position], train.targets[batch])
        value = loss.item()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), training.grad_clip).item()
        optimizer.step()
        return value

    return step
