"""Train small loops with and without the attached probe, honest and disturbed, and print a fingerprint of each."""

import json
import random
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch

from fastcluster_lm import ClusterProbe
from fastcluster_lm.probe import attached_probes
from fastcluster_lm.probe.sources import modules
from tests.probe.attached import QUICK, Net, NoisyNet, fingerprint, instances, seed_all

KINDS = ("plain", "autocast", "compiled", "compiled in place")
# what a probe may leave behind
FAULTS = (
    "torch's generator",
    "NumPy's generator",
    "Python's generator",
    "evaluation mode",
    "one mode for all parts",
    "written buffers",
)

tokens, labels = instances()


def attach(model, path, **options):
    given = {"layers": "blocks.*", "every": 2, "scores": QUICK, "out": path, **options}
    return ClusterProbe(model, given.pop("inputs", tokens), given.pop("labels", labels), **given)


def train_a_loop(path, kind, *, steps=4, every=2):
    """Train with the probe called in the worst of places, inside the autocast of the forward; every=0 is without."""
    torch._dynamo.reset()
    seed_all()
    model = Net() if kind.startswith("compiled") else NoisyNet()
    model.blocks[0][1].eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    compilations = []

    def backend(graph, _inputs):
        compilations.append(graph)
        return graph.forward

    forward = model
    if kind == "compiled":
        forward = torch.compile(model, backend=backend)
    elif kind == "compiled in place":
        model.compile(backend=backend)
    losses, rows = [], []
    probe = attach(forward, path, every=every) if every else None
    for step in range(steps):
        with torch.autocast("cpu", torch.bfloat16) if kind == "autocast" else nullcontext():
            if probe:
                rows += probe.step(step)
            loss = torch.nn.functional.cross_entropy(forward(tokens).float(), labels["output"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    if probe:
        probe.close(steps)
        rows += probe.scores
    return {
        "print": fingerprint(model, losses),
        "steps": sorted({row["step"] for row in rows}),
        "compilations": len(compilations),
    }


@contextmanager
def all_generators_but(fault):
    """Put back all generators but one."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    yield
    for name, put_back, state in zip(
        ("Python", "NumPy", "torch"), (random.setstate, np.random.set_state, torch.set_rng_state), states, strict=True
    ):
        if not fault.startswith(name):
            put_back(state)


@contextmanager
def all_of_the_model_but(fault, model):
    """Put back buffers and modes but for one."""
    modes = [(part, part.training) for part in model.modules()]
    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.eval()
    with torch.no_grad():
        yield
        for name, buffer in model.named_buffers():
            if fault != "written buffers":
                buffer.copy_(kept[name])
    if fault == "one mode for all parts":
        model.train()
    elif fault != "evaluation mode":
        for part, mode in modes:
            part.training = mode


def train_disturbed(path, fault):
    """Train with a probe that leaves one thing behind."""
    kept, left_alone = attached_probes.generators_kept, modules.undisturbed
    try:
        if fault.endswith("generator"):
            attached_probes.generators_kept = lambda: all_generators_but(fault)
        else:
            modules.undisturbed = lambda model: all_of_the_model_but(fault, model)
        return train_a_loop(path, "plain")
    finally:
        attached_probes.generators_kept, modules.undisturbed = kept, left_alone


def main(folder):
    """Train every loop."""
    torch.set_num_threads(1)
    found = {f"{kind}, off": train_a_loop(folder / "none", kind, every=0) for kind in KINDS}
    found |= {f"{kind}, on": train_a_loop(folder / kind, kind) for kind in KINDS}
    found |= {fault: train_disturbed(folder / fault, fault) for fault in FAULTS}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
