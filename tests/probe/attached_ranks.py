"""Train on two ranks, replicated and sharded, with and without the attached probe, and print what each rank found.

Its first life is killed in the middle of two loops, which the second one goes on with.
"""

import copy
import hashlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import peft
import torch
from torch import distributed
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from fastcluster_lm.probe.sources.modules import LayerReader
from tests.probe.attached import Net, instances, seed_all
from tests.probe.attached_loops import attach

KINDS = ("replicated", "sharded")
LAYERS = ["embed", "blocks.*"]
# of the loops that are killed
STEPS, EVERY, SAVE_EVERY, KILLED_AT = 8, 2, 3, 5

tokens, labels = instances()


def quiet_net():
    """Give the same network each time, without noise."""
    seed_all()
    net = Net()
    net.noise = 0.0
    return net


def spread(kind, net):
    """Replicate a network, or shard it and each of its blocks."""
    if kind == "replicated":
        return DistributedDataParallel(net)
    for name, part in net.named_modules():
        if name.endswith(("blocks.0", "blocks.1")):
            fully_shard(part)
    return fully_shard(net)


def whole_state(kind, model):
    """Give all weights and buffers as one rank would have them."""
    state = model.module.state_dict() if kind == "replicated" else model.state_dict()
    return {name: getattr(part, "full_tensor", lambda part=part: part)() for name, part in state.items()}


def hash_of(model):
    digest = hashlib.sha256(b"".join(weight.detach().numpy().tobytes() for weight in model.parameters()))
    return digest.hexdigest()


def train(kind, path, *, every, steps=4, **options):
    """Train with half of the instances on each rank."""
    model = spread(kind, quiet_net())
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
    plain = quiet_net()
    plain.load_state_dict(whole_state(kind, model))
    read, expected = (LayerReader(own, "blocks.*").read(tokens) for own in (model, plain))
    return {
        "losses": losses,
        "weights": hash_of(plain),
        "n_rows": len(rows),
        "has_folder": probe is not None and probe.folder is not None,
        "states_error": float((read - expected).abs().max()),
    }


class Saved:
    """What a loop was when it saved itself last: by rank 0 where ranks have the same, by all where they share it."""

    def __init__(self, kind, folder, model, optimizer):
        self.kind, self.folder, self.model, self.optimizer = kind, folder, model, optimizer
        self.newest = folder / "newest"

    def load(self):
        """Put the newest back, and give the number of its steps; 0 without one."""
        if not self.newest.exists():
            return 0
        taken = int(self.newest.read_text())
        if self.kind == "replicated":
            state = torch.load(self.folder / f"{taken}.pt")
            self.model.module.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        else:
            weights, moments = get_state_dict(self.model, self.optimizer)
            state = {"model": weights, "optimizer": moments}
            checkpoint.load(state, checkpoint_id=self.folder / f"{taken}")
            set_state_dict(
                self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
            )
        return taken

    def save(self, taken):
        """Write the loop as it is, and then say that this is the newest."""
        if self.kind == "sharded":
            weights, moments = get_state_dict(self.model, self.optimizer)
            checkpoint.save({"model": weights, "optimizer": moments}, checkpoint_id=self.folder / f"{taken}")
        if distributed.get_rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.kind == "replicated":
                state = {"model": self.model.module.state_dict(), "optimizer": self.optimizer.state_dict()}
                torch.save(state, self.folder / f"{taken}.pt")
            (self.folder / "new").write_text(str(taken))
            os.replace(self.folder / "new", self.newest)


def go_on(kind, folder, *, probed=True):
    """Train from what was saved last on, and say before each step how many were taken; at the end a hash of weights."""
    model = spread(kind, quiet_net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    saved = Saved(kind, folder / "saved", model, optimizer)
    taken, rank = saved.load(), distributed.get_rank()
    # a path that is there on rank 0 alone
    probe = attach(model, folder / "run", every=EVERY, layers=LAYERS, resume=True) if probed else None
    while taken < STEPS:
        if probe:
            probe.step(taken)
        if taken % SAVE_EVERY == 0:
            saved.save(taken)
        yield taken
        torch.manual_seed(2 * taken + rank)
        loss = torch.nn.functional.cross_entropy(model(tokens[rank::2]), labels["output"][rank::2])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        taken += 1
    if probe:
        probe.close(taken)
    plain = quiet_net()
    plain.load_state_dict(whole_state(kind, model))
    yield hash_of(plain)


def names_and_states(kind, wrapper):
    """Name the layers of a model that is adapted or compiled too, and say how far its states are from its own."""
    net = quiet_net()
    if wrapper == "LoRA":
        net = peft.get_peft_model(net, peft.LoraConfig(r=2, target_modules=r"blocks\.\d\.0", init_lora_weights=False))
    plain = copy.deepcopy(net)
    model = spread(kind, net)
    if wrapper == "compiled":
        model = torch.compile(model, backend="eager")
    reader = LayerReader(model, LAYERS)
    error = (reader.read(tokens) - LayerReader(plain, LAYERS).read(tokens)).abs().max()
    return {"names": reader.names, "states_error": float(error)}


def main(folder):
    """Be killed, then train all, and let rank 0 print."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    # side by side, so that one kill ends both
    first_life = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    began = None
    for reached in zip(*(go_on(kind, folder / f"{kind} killed") for kind in KINDS), strict=True):
        began = reached if began is None else began
        if first_life and distributed.get_rank() == 0 and reached == (KILLED_AT, KILLED_AT):
            os.kill(os.getpid(), signal.SIGKILL)
    found = {f"{kind}, killed": own for kind, own in zip(KINDS, zip(began, reached, strict=True), strict=True)}
    for kind in KINDS:
        *_, found[f"{kind}, whole"] = go_on(kind, folder / f"{kind} whole")
        *_, found[f"{kind}, without"] = go_on(kind, folder / f"{kind} without", probed=False)
    found |= {
        f"{kind}, {wrapper}": names_and_states(kind, wrapper) for kind in KINDS for wrapper in ("LoRA", "compiled")
    }
    found |= {
        f"{kind}, {'on' if every else 'off'}": train(kind, folder / kind, every=every)
        for kind in KINDS
        for every in (0, 2)
    }
    for kind in KINDS:
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
