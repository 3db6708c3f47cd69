"""Chooses the engine that computes the verbs, with the reason, and reports on all of them; it computes nothing."""

import importlib.metadata
import importlib.util
from typing import TypedDict

import torch

from fastcluster_lm.errors import EngineError, nearest_name
from fastcluster_lm.kernels import native
from fastcluster_lm.scores.engines import _rapids
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
    "engine_report",
]

ENGINES = ("fused", "reference", "rapids")
REFERENCE_PACKAGES = {"sklearn": "scikit-learn", "openTSNE": "openTSNE", "faiss": "faiss-cpu"}


class EngineReport(TypedDict):
    """One engine: whether it can run here, why it can or cannot, and the versions of what it uses."""

    name: str
    available: bool
    reason: str
    versions: dict[str, str]


def choose_engine(name: str, device: torch.device | str, memory_mib: int = 256) -> Engine:
    """Give the engine of that name; auto is rapids on a CUDA device where it can run, and fused everywhere else.

    Errors: EngineError for an unknown name, a missing package or the wrong device, saying what to do
    """
    kind = torch.device(device).type
    if name == "auto":
        # rapids is not built yet, so auto is fused on CUDA too
        return FusedEngine(memory_mib)
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
        raise EngineError(f"engine 'rapids' cannot run here: {_rapids.missing()}; use 'fused' or 'reference'")
    known = ("auto", *ENGINES)
    raise EngineError(f"engine is {name!r}; expected one of {', '.join(known)}{nearest_name(name, known)}")


def engine_report() -> list[EngineReport]:
    """List every engine with the reason why it is or is not available here."""
    absent = _absent_packages()
    reason = f"missing: {', '.join(absent)}" if absent else "scikit-learn, openTSNE and faiss-cpu are installed"
    names = [name for name in REFERENCE_PACKAGES.values() if name not in absent]
    return [
        EngineReport(name="fused", available=True, reason=_native(), versions=_versions(["torch"])),
        EngineReport(name="reference", available=not absent, reason=reason, versions=_versions(names)),
        EngineReport(name="rapids", available=False, reason=_rapids.missing(), versions={}),
    ]


def _native() -> str:
    compiled, by = native.status()
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
