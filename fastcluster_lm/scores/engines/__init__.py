"""Chooses the engine that computes the verbs, with the reason, and reports on all of them; it computes nothing."""

import importlib.metadata
import importlib.util
from typing import TypedDict

import torch

from fastcluster_lm.config import ENGINES
from fastcluster_lm.errors import EngineError, nearest_name
from fastcluster_lm.kernels import native
from fastcluster_lm.scores.engines import _rapids_packages
from fastcluster_lm.scores.engines._fused import FusedEngine
from fastcluster_lm.scores.engines.params import (
    Clustering,
    Engine,
    KMeansParams,
    Map,
    Neighbors,
    NeighborsParams,
    TsneParams,
)

__all__ = [
    "ENGINES",
    "Clustering",
    "Engine",
    "EngineReport",
    "KMeansParams",
    "Map",
    "Neighbors",
    "NeighborsParams",
    "TsneParams",
    "choose_engine",
    "decide_engine",
    "engine_report",
]

REFERENCE_PACKAGES = {"sklearn": "scikit-learn", "openTSNE": "openTSNE", "faiss": "faiss-cpu"}


class EngineReport(TypedDict):
    """One engine: whether it can run here, why it can or cannot, and the versions of what it uses."""

    name: str
    available: bool
    reason: str
    versions: dict[str, str]


def decide_engine(name: str, device: torch.device | str) -> tuple[str, str]:
    """Turn auto into the name of an engine, and say why; any other name stays, asked for.

    auto is rapids on a CUDA device where cuML, cupy and FAISS can run, and fused everywhere else
    """
    if name != "auto":
        return name, "asked for by name"
    kind = torch.device(device).type
    if kind != "cuda":
        return "fused", f"auto on {kind}: fused is the engine for it"
    lacking = _rapids_packages.missing()
    if lacking:
        return "fused", f"auto on cuda, where rapids cannot run: {lacking}"
    found = ", ".join(f"{package} {version}" for package, version in _rapids_packages.versions().items())
    return "rapids", f"auto on cuda, with {found}"


def choose_engine(name: str, device: torch.device | str, memory_mib: int = 256) -> Engine:
    """Give the engine of that name, or the one that auto stands for as decide_engine says.

    Errors: EngineError for an unknown name, a missing package or the wrong device, saying what to do
    """
    kind = torch.device(device).type
    known = ("auto", *ENGINES)
    if not isinstance(name, str):
        raise EngineError(f"engine is {name!r:.60}; expected one of {', '.join(known)}")
    name, _ = decide_engine(name, device)
    if name == "fused":
        return FusedEngine(memory_mib)
    if name == "reference":
        absent = _absent_packages()
        if absent:
            raise EngineError(
                f"engine 'reference' needs {', '.join(absent)}; pip install 'fastcluster-lm[reference]', or use 'fused'"
            )
        if kind != "cpu":
            raise EngineError(f"engine 'reference' runs on the CPU, the points are on {kind!r}; use 'fused'")
        from fastcluster_lm.scores.engines._reference import ReferenceEngine

        return ReferenceEngine()
    if name == "rapids":
        if kind != "cuda":
            reason = _rapids_packages.missing() or f"it runs on CUDA, the points are on {kind!r}"
            raise EngineError(f"engine 'rapids' cannot run here: {reason}; use 'fused' or 'reference'")
        from fastcluster_lm.scores.engines._rapids import RapidsEngine

        return RapidsEngine(memory_mib)
    raise EngineError(f"engine is {name!r}; expected one of {', '.join(known)}{nearest_name(name, known)}")


def engine_report() -> list[EngineReport]:
    """List every engine with the reason why it is or is not available here."""
    absent = _absent_packages()
    reason = f"missing: {', '.join(absent)}" if absent else "scikit-learn, openTSNE and faiss-cpu are installed"
    names = [name for name in REFERENCE_PACKAGES.values() if name not in absent]
    lacking, can = _rapids_packages.missing(), "cuML, cupy and FAISS can run on the GPU; auto takes it there"
    return [
        EngineReport(name="fused", available=True, reason=_native(), versions=_versions(["torch"])),
        EngineReport(name="reference", available=not absent, reason=reason, versions=_versions(names)),
        EngineReport(name="rapids", available=not lacking, reason=lacking or can, versions=_rapids_packages.versions()),
    ]


def _native() -> str:
    compiled, by, _ = native.outlook()
    return f"needs torch alone; CPU kernels compiled by {by}" if compiled else f"eager, so slower on a CPU: {by}"


def _absent_packages() -> list[str]:
    return [package for module, package in REFERENCE_PACKAGES.items() if importlib.util.find_spec(module) is None]


def _versions(packages: list[str]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "unknown"
    return found
