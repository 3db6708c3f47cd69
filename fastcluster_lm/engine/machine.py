"""What a run's bits depend on besides its configuration: the facts of a machine, as found and as stored."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

from fastcluster_lm.errors import EngineError, UsageError
from fastcluster_lm.kernels import native
from fastcluster_lm.kernels.compilation import levels
from fastcluster_lm.scores.engines import choose_engine, decide_engine

# keys of run.toml's [resolved]; that of the GPU is there on one only
FACTS = {
    "device": "device",
    "threads": "CPU threads",
    "engine": "scoring engine",
    "cpu_capability": "torch's level of instructions",
    "kernels": "compiled kernels",
    "gpu": "GPU",
    "torch": "torch",
}
# may give other bits, or the same: said and written down, but no ground to refuse
SAID_ONLY = ("torch",)


def machine_facts(device: torch.device, threads: int, engine: str) -> dict[str, Any]:
    """Give the facts of a run that computes here, on this device, with these threads and this engine."""
    facts: dict[str, Any] = {
        "device": str(device),
        "threads": threads,
        "engine": engine,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "kernels": _kernels(),
        "torch": torch.__version__,
    }
    return facts if device.type == "cpu" else {**facts, "gpu": torch.cuda.get_device_name(device)}


def nearest_facts(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Give the facts of a run taken up here: those that are stored, where they can be had."""
    can_cuda = torch.cuda.is_available()
    device = torch.device(stored["device"] if can_cuda else "cpu")
    if device.index is not None and device.index >= torch.cuda.device_count():
        device = torch.device("cuda")
    try:
        engine = choose_engine(stored["engine"], device).name
    except EngineError:
        engine = decide_engine("auto", device)[0]
    return machine_facts(device, stored["threads"], engine)


def moved_facts(stored: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, Any]:
    """Give those facts of here that are stored as others."""
    return {key: here.get(key, "none") for key in FACTS if key in stored and stored[key] != here.get(key, "none")}


def unknown_facts(stored: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, Any]:
    """Give those facts of here that a run of an earlier version did not store."""
    return {key: here[key] for key in FACTS if key in here and key not in stored}


def describe_moved(stored: Mapping[str, Any], moved: Mapping[str, Any]) -> str:
    """Say what differs: stored -> here."""
    return ", ".join(f"{FACTS[key]} {stored[key]} -> {value}" for key, value in moved.items())


def check_unmoved(path: str, stored: Mapping[str, Any], moved: Mapping[str, Any]) -> None:
    """Refuse to go on where a fact differs.

    Errors: UsageError naming each, stored and here, and the option to go on all the same
    """
    if moved := {key: value for key, value in moved.items() if key not in SAID_ONLY}:
        raise UsageError(
            f"--resume: {describe_moved(stored, moved)} would give this run other bits than one that never stopped; "
            f"put that back, or go on all the same: fclm train --resume {path} --on-this-machine"
        )


def _kernels() -> str:
    if not native.compiled():
        return "none"
    level = native.level()
    if level != levels.NATIVE:
        return level
    # what the compiler makes of native depends on what the processor can do
    return f"{level} ({hashlib.sha256(levels.processor().encode()).hexdigest()[:8]})"
