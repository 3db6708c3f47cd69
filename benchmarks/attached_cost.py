"""What a probe of many instances takes of an attached loop: processor seconds and memory of training's process.

    python benchmarks/attached_cost.py --worker on

The model gives its layers' states as they are looked up, so that what its forward takes is little and is told apart.
"""

import argparse
import json
import resource
import tempfile
import threading
import time
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from fastcluster_lm import ClusterProbe


class Layers(nn.Module):
    """A forward that costs a matmul a layer."""

    def __init__(self, n_layers: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(4096, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(n_layers))

    def forward(self, tokens: Tensor) -> Tensor:
        """Pass one token's state through all layers."""
        h = self.embed(tokens)
        for block in self.blocks:
            h = torch.relu(block(h)) + h
        return h


def used() -> float:
    """Give the processor seconds of this process, all its threads together."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def resident(pid: str = "self") -> dict[str, float]:
    """Give MiB that a process holds now and held at most."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {name: int(fields[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM")}


def main() -> None:
    """Probe once, wait, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--instances", type=int, default=20_000)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--worker", default="on", choices=("on", "off"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokens, task = torch.randint(4096, (asked.instances,)), torch.arange(asked.instances) % 12
    model = Layers(asked.layers, asked.width)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as place:
        probe = ClusterProbe(
            model, tokens, task, layers="blocks.*", every=1, out=Path(place) / "run", worker=asked.worker
        )
        with torch.no_grad():
            began = used()
            for rows in tokens.split(256):
                model(rows)
            forward = used() - began
        before, began, clock = resident()["VmRSS"], used(), time.perf_counter()
        probe.step(0)
        step = {"processor_s": used() - began, "wall_s": time.perf_counter() - clock}
        worker: dict[str, float] = {}
        if asked.worker == "on":
            pid, done = str(probe._probes.runner._process.pid), threading.Event()

            def watch() -> None:
                while not done.wait(0.2):
                    try:
                        worker.update(resident(pid))
                    except (OSError, KeyError):
                        return

            thread = threading.Thread(target=watch)
            thread.start()
        probe.wait()
        if asked.worker == "on":
            done.set()
            thread.join()
        after = resident()["VmHWM"]
        row = probe.folder.steps()[0]
        probe.close()
    mib = 4 * asked.instances * asked.layers * asked.width / 2**20
    print(
        json.dumps(
            vars(asked)
            | {
                "states_mib": round(mib, 1),
                "forward_processor_s": round(forward, 2),
                "step_processor_s": round(step["processor_s"], 2),
                "step_wall_s": round(step["wall_s"], 2),
                "beyond_forward_s": round(step["processor_s"] - forward, 2),
                "process_and_answer_s": round(used() - began - step["processor_s"], 2),
                "peak_over_states": round((after - before) / mib, 2),
                "probe_s": round(row["probe_ms"] / 1e3, 1),
                "worker_peak_mib": round(worker.get("VmHWM", 0.0)),
            }
        )
    )


if __name__ == "__main__":
    main()
