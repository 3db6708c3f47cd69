"""One of two ranks that train a replicated and a sharded model with the probe attached; it reads nothing back."""

import os
import sys
from pathlib import Path

import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from fastcluster_lm import ClusterProbe
from tests.goldens.runs import ATTACHED, Net, instances


def train(kind: str, path: Path, *, steps: int = 8) -> None:
    """Train with half of the instances on each rank."""
    torch.manual_seed(0)
    net = Net()
    for block in net.blocks:
        if kind == "sharded":
            fully_shard(block)
    model = fully_shard(net) if kind == "sharded" else DistributedDataParallel(net)
    tokens, _, labels = instances(range(18))
    half = slice(distributed.get_rank(), None, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(distributed.get_rank())
    probe = ClusterProbe(
        model, tokens, labels, layers="blocks.*", position=1, every=4, map_points=60, out=path, scores=ATTACHED
    )
    for step in range(steps):
        probe.step(step)
        loss = nn.functional.cross_entropy(model(tokens[half]), labels["output"][half])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    probe.close(steps)


if __name__ == "__main__":
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    for name in ("replicated", "sharded"):
        train(name, Path(sys.argv[1]) / name)
    distributed.barrier()
    distributed.destroy_process_group()
    # threads of a group may outlive it, and then abort the interpreter's own end
    os._exit(0)
