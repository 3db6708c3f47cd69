"""One of two ranks whose sharded model is probed in two tiers, and goes on; it looks at nothing."""

import os
import sys
from pathlib import Path

import torch
from torch import distributed
from torch.distributed.fsdp import fully_shard

from tests.probe.attached import Net, instances, seed_all
from tests.probe.attached_loops import attach

tokens, labels = instances()


def main(folder):
    """Train to step 3, and on from there: rank 0 alone knows that a full probe was."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    seed_all()
    net = Net()
    net.noise = 0.0
    for block in net.blocks:
        # gathered anew in each forward
        fully_shard(block)
    model = fully_shard(net)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for first, last in ((1, 3), (4, 8)):
        # three forwards of a full probe, one of a step probe
        options = {"batch_size": 16, "map_points": 16, "full_every": 6, "resume": first > 1}
        probe = attach(model, folder / "run", every=2, **options)
        for step in range(first, last + 1):
            torch.nn.functional.cross_entropy(model(tokens), labels["output"]).backward()
            optimizer.step()
            optimizer.zero_grad()
            probe.step(step)
        probe.close(9) if last == 8 else probe.abandon()
        distributed.barrier()
    distributed.destroy_process_group()
    sys.stdout.flush()
    # threads of a group may outlive it, and then abort the interpreter's own end
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
