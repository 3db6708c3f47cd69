"""The only place that asks about hardware: device, dtype and threads, each with its reason; it moves no data."""

import os
import platform
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np
import torch

from fastcluster_lm.errors import UsageError

# probes from which on a process of their own pays
FEWEST_PROBES = 10
# MiB of a step's fp32 logits from which on head and loss are computed together; on a GPU its memory alone decided
FUSED_HEAD_MIB = {"cpu": 32, "cuda": 1024}
# what a run's figures may depend on
PACKAGES = (
    "fastcluster-lm", "torch", "triton", "numpy", "scipy", "scikit-learn", "openTSNE", "faiss-cpu",
    "cuml-cu13", "cupy-cuda13x", "faiss-gpu",
)  # fmt: skip


@dataclass(frozen=True)
class Device:
    """Where a run computes, and why."""

    torch_device: torch.device
    dtype: torch.dtype
    threads: int
    reason: str


def choose_device(name: str = "auto") -> Device:
    """Choose the device once, before anything is built.

    Errors: UsageError if CUDA is asked for and there is none
    """
    cuda = torch.cuda.is_available()
    if name == "cuda" and not cuda:
        raise UsageError("device: expected a CUDA GPU, found none; leave device at 'auto' or set device=cpu")
    if name == "cuda" or (name == "auto" and cuda):
        reason = "asked for" if name == "cuda" else f"{torch.cuda.get_device_name()} is present"
        return Device(torch.device("cuda"), torch.float32, torch.get_num_threads(), reason)
    reason = "asked for" if name == "cpu" else "no CUDA GPU is present"
    return Device(torch.device("cpu"), torch.float32, torch.get_num_threads(), reason)


def compile_policy(wanted: str, device: Device) -> tuple[bool, str]:
    """Decide whether the training step is compiled, and say why; the probe's settings are not looked at.

    Source: measured on 2 CPU cores: the first compilation of a 6-layer step took 86 s and won at most a tenth
    of a step's time, so on a CPU it must be asked for
    """
    if wanted == "on":
        return True, "asked for"
    if wanted == "off":
        return False, "turned off"
    if device.torch_device.type == "cuda":
        return True, "on a GPU compilation pays within a few hundred steps"
    return False, "on a CPU compilation costs more than a short run can win back; training.compile=on overrides"


def graph_policy(wanted: str, device: Device, dropout: float) -> tuple[bool, str]:
    """Decide whether a training step is captured as a CUDA graph, and say why."""
    if device.torch_device.type != "cuda":
        return False, "there are CUDA graphs on a GPU only"
    if wanted == "off":
        return False, "turned off"
    if dropout > 0:
        return False, "dropout draws from a generator that each step seeds anew"
    return True, "one launch a step in place of hundreds"


def precision_policy(wanted: str, device: Device) -> tuple[torch.dtype, str]:
    """Choose the precision of a forward's matmuls, and say why; hidden states stay float32."""
    if wanted != "auto":
        return getattr(torch, wanted), "asked for"
    if device.torch_device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16, "the GPU has it"
    return torch.float32, "the device has nothing faster that was measured"


def head_policy(wanted: str, device: Device, logits_mib: float) -> tuple[bool, str]:
    """Decide whether output head and training loss are one op that keeps no logits, and say why.

    Source: forward and backward on one CPU core beside plain torch, in turns, 256 rows, peak memory over that before:
            32,768 tokens of width 32: 0.44 to 0.48 of its time, 9 MiB instead of 97; of width 768: 1.07 to 1.23, 104
            MiB instead of 134, 96 of them the weight's gradient. 131,072 tokens of width 32: 0.46, 21 MiB instead of
            385; of width 768: 1.00 to 1.34, 392 MiB instead of 517. No GPU was at hand: there the bound is a guess
    """
    size = f"the logits of a step take {logits_mib:.3g} MiB"
    if wanted == "fused":
        return True, "asked for"
    if wanted == "plain":
        return False, "asked for"
    most = FUSED_HEAD_MIB[device.torch_device.type]
    if logits_mib >= most:
        return True, f"{size}, {most} or more"
    return False, f"{size}, less than {most}"


def cpu_cores() -> int:
    """Count the CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_policy(wanted: str, device: Device, n_probes: int) -> tuple[bool, str]:
    """Decide whether probes run in a process beside training, and say why; no weight and no score depends on it.

    Source: measured on 2 CPU cores: the process takes 3 to 4 s to start, and a full probe of `tiny-constant` 0.3 s
    Errors: UsageError if it is asked for where it cannot be
    """
    possible = device.torch_device.type == "cpu" and os.name == "posix" and bool(sys.executable)
    if wanted == "on" and not possible:
        raise UsageError("probe.worker: expected auto or off on a GPU and on Windows, got on; leave it at auto")
    if wanted == "on":
        return True, "asked for"
    if wanted == "off":
        return False, "turned off"
    if device.torch_device.type == "cuda":
        return False, "on a GPU probes have a stream of their own"
    if not possible:
        return False, "a process beside training is for POSIX systems and CPUs"
    if n_probes < FEWEST_PROBES:
        return False, f"{n_probes} probes are done before a process has started"
    cores = cpu_cores()
    if cores > device.threads:
        return True, f"training takes {device.threads} of {cores} cores"
    return False, f"training takes all of {cores} cores; training.threads below that leaves one to the probe"


def generator(seed: int, device: torch.device) -> torch.Generator:
    """Make a generator of its own on a device; no global seed is touched."""
    return torch.Generator(device=device).manual_seed(seed)


@contextmanager
def generators_kept() -> Iterator[None]:
    """Put every global generator back as it was before the body.

    Notes:  torch on the CPU and on CUDA, NumPy and Python; CUDA is not started where it was not
    """
    ours, numpys, pythons = torch.get_rng_state(), np.random.get_state(), random.getstate()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        torch.set_rng_state(ours)
        np.random.set_state(numpys)
        random.setstate(pythons)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


def package_versions(names: tuple[str, ...]) -> dict[str, str]:
    """Give the installed version of each package, without importing any; absent ones are left out."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def describe_gpus() -> dict[str, str]:
    """Say which NVIDIA driver, CUDA and GPUs are here, each a line of text; what is absent says so."""
    found = {"driver": _driver() or "none found", "cuda": torch.version.cuda or "torch is built without CUDA"}
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        found[f"gpu {index}"] = f"{gpu.name}, sm_{gpu.major}{gpu.minor}, {gpu.total_memory / 2**30:.0f} GiB"
    if "gpu 0" not in found:
        found["gpu"] = "none that torch can use"
    return found


def _driver() -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    lines = done.stdout.split() if done.returncode == 0 else []
    return lines[0] if lines else None


def describe_environment() -> dict[str, Any]:
    """Describe software and hardware for `environment.json`: names and versions, no paths and no host name."""
    packages = package_versions(PACKAGES)
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu_cores": os.cpu_count(),
        "cpu_threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "cxx_compiler": shutil.which("c++") is not None,
        "packages": packages,
    }
