"""Train on two ranks, replicated and sharded, with and without the attached probe, and print what each rank found."""

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

import torch
from torch import distributed
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from fastcluster_lm.probe.sources.modules import LayerReader
from tests.probe.attached import Net, instances, seed_all
from tests.probe.attached_loops import attach

tokens, labels = instances()


def train(kind, path, *, every, steps=4, **options):
    """Train with half of the instances on each rank."""
    seed_all()
    net = Net()
    net.noise = 0.0
    if kind == "sharded":
        for block in net.blocks:
            fully_shard(block)
    model = fully_shard(net) if kind == "sharded" else DistributedDataParallel(net)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    half = slice(distributed.get_rank(), None, 2)
    losses, rows = [], []
    # the same dropout on each rank and run, whatever came before
    torch.manual_seed(distributed.get_rank())
    probe = attach(model, path, every=every, **options) if every else None
    for step in range(1, steps + 1):
        loss = torch.nn.functional.cross_entropy(model(tokens[half]), labels["output"][half])
        optimizer.zero_grad()
        loss.backward()
        if probe and step == 2:
            # in the worst of places: weights that are gathered here are a step old after it
            probe.step(step)
        optimizer.step()
        losses.append(loss.item())
        if probe:
            rows += probe.step(step)
    if probe:
        rows += probe.close(steps)
    plain = Net()
    plain.noise = 0.0
    state = model.module.state_dict() if kind == "replicated" else model.state_dict()
    plain.load_state_dict(
        {name: getattr(part, "full_tensor", lambda part=part: part)() for name, part in state.items()}
    )
    read, expected = (LayerReader(own, "blocks.*").read(tokens) for own in (model, plain))
    digest = hashlib.sha256(b"".join(weight.detach().numpy().tobytes() for weight in plain.parameters()))
    return {
        "losses": losses,
        "weights": digest.hexdigest(),
        "n_rows": len(rows),
        "has_folder": probe is not None and probe.folder is not None,
        "states_error": float((read - expected).abs().max()),
    }


def main(folder):
    """Train all four, and let rank 0 print."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    found = {
        f"{kind}, {'on' if every else 'off'}": train(kind, folder / kind, every=every)
        for kind in ("replicated", "sharded")
        for every in (0, 2)
    }
    for kind in ("replicated", "sharded"):
        if distributed.get_rank() == 0:
            # a job that begins once more has all of it written already
            shutil.copytree(folder / kind, folder / f"{kind} again")
        found[f"{kind}, again"] = train(kind, folder / f"{kind} again", every=2, resume=True)
    ranks = [None, None]
    distributed.all_gather_object(ranks, found)
    if distributed.get_rank() == 0:
        json.dump(ranks, sys.stdout)
    distributed.barrier()
    distributed.destroy_process_group()
    sys.stdout.flush()
    # threads of a group may outlive it, and then abort the interpreter's own end
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
