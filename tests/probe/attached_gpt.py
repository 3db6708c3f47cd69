"""Train a tiny GPT as nanoGPT does, on from its own checkpoint where there is one, and be killed where asked to."""

import hashlib
import json
import math
import os
import random
import signal
import sys
import threading
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from fastcluster_lm import ClusterProbe
from tests.probe.attached import QUICK, instances

VOCAB, WIDTH, HEADS, LENGTH = 17, 16, 2, 3
STEPS, EVERY, SAVE_EVERY, MICRO_STEPS = 40, 3, 10, 2

prompts, labels = instances()
# a word, an input, and the answer, a token of its own
data = torch.cat([prompts, labels["output"][:, None] + 14], 1)


class Block(nn.Module):
    """Attention, then a network, each behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.c_attn, self.c_proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH), nn.Dropout(0.1))

    def forward(self, x):
        n, length, _ = x.shape
        q, k, v = self.c_attn(self.ln_1(x)).view(n, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(
            q, k, v, dropout_p=0.1 if self.training else 0.0, is_causal=True
        )
        x = x + self.c_proj(mixed.transpose(1, 2).reshape(n, length, WIDTH))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """The parts under nanoGPT's names; the head shares its weight with the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(VOCAB, WIDTH),
                "wpe": nn.Embedding(LENGTH, WIDTH),
                "drop": nn.Dropout(0.1),
                "h": nn.ModuleList(Block() for _ in range(2)),
                "ln_f": nn.LayerNorm(WIDTH),
            }
        )
        self.lm_head = nn.Linear(WIDTH, VOCAB, bias=False)
        self.transformer.wte.weight = self.lm_head.weight

    def forward(self, idx, targets=None):
        parts = self.transformer
        x = parts.drop(parts.wte(idx) + parts.wpe(torch.arange(idx.shape[1])))
        for block in parts.h:
            x = block(x)
        x = parts.ln_f(x)
        if targets is None:
            return self.lm_head(x[:, [-1]]), None
        logits = self.lm_head(x)
        return logits, functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def train(folder, *, probed, worker="off", kill=None):
    """Train to the end, or be killed at some moment after step `kill`; give a hash of weights and of the generator."""
    torch.manual_seed(1337)
    model = GPT()
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.1)
    saved, iter_num, loss = folder / "ckpt.pt", 0, None
    if saved.exists():
        checkpoint = torch.load(saved)
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        iter_num = checkpoint["iter_num"]
        torch.set_rng_state(checkpoint["rng"])
    if probed:
        layers = ["transformer.wte", "transformer.h.*"]
        out = folder / "run"
        probe = ClusterProbe(
            model, prompts, labels, layers=layers, every=EVERY, out=out, resume=True, scores=QUICK, worker=worker
        )
    while True:
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 + math.cos(math.pi * iter_num / STEPS)) / 2
        if probed:
            probe.step(iter_num, loss=None if loss is None else loss.item())
        if iter_num % SAVE_EVERY == 0:
            if probed:
                probe.wait()
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "iter_num": iter_num}
            torch.save({**state, "rng": torch.get_rng_state()}, folder / "ckpt.new")
            os.replace(folder / "ckpt.new", saved)
        if iter_num == STEPS:
            break
        if iter_num == kill:
            # wherever the loop, its probe or the probe's process are by then
            threading.Timer(random.uniform(0.0, 0.03), os.kill, (os.getpid(), signal.SIGKILL)).start()
        for _ in range(MICRO_STEPS):
            X = data[torch.randint(len(data), (16,))]
            _, loss = model(X[:, :-1], X[:, 1:])
            (loss / MICRO_STEPS).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        iter_num += 1
    if probed:
        probe.close()
    digest = hashlib.sha256(torch.get_rng_state().numpy().tobytes())
    for weight in model.state_dict().values():
        digest.update(weight.numpy().tobytes())
    return digest.hexdigest()


def main(folder, worker, kill):
    """Train one job, or with the worker "none" two that are never stopped, without and with the probe."""
    torch.set_num_threads(1)
    if worker == "none":
        for name in ("off", "on"):
            (folder / name).mkdir()
        found = {name: train(folder / name, probed=name == "on") for name in ("off", "on")}
    else:
        found = train(folder, probed=True, worker=worker, kill=kill or None)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
