"""Which GPU libraries are installed, how new they are and whether they can run here; it calls none of their verbs."""

import importlib
import importlib.metadata
import importlib.util
from typing import Any, NamedTuple

import torch

from fastcluster_lm.errors import EngineError
from fastcluster_lm.scores.engines._isolation import left_alone

# import name, and distributions that provide it for a GPU, the one to install first
PACKAGES = {
    "cuml": ("cuml-cu13", "cuml-cu12", "cuml"),
    "cupy": ("cupy-cuda13x", "cupy-cuda12x", "cupy"),
    "faiss": ("faiss-gpu", "faiss-gpu-cuvs", "faiss-gpu-cu12", "faiss"),
}
# cuML's maps repeat themselves for a seed from here on
OLDEST_CUML = (26, 8)


class Libraries(NamedTuple):
    """The three modules, imported."""

    cuml: Any
    cupy: Any
    faiss: Any


def missing() -> str:
    """Say what keeps the rapids engine from running here; empty if nothing does."""
    reasons = [] if torch.cuda.is_available() else ["no CUDA device"]
    for module, distributions in PACKAGES.items():
        if importlib.util.find_spec(module) is None:
            reasons.append(f"{distributions[0]} not installed")
        elif not any(version_of(name) for name in distributions):
            reasons.append(f"{module} is installed without GPU support, {distributions[0]} is needed")
    old = too_old()
    if old:
        reasons.append(old)
    return "; ".join(reasons) if reasons else _broken()


def too_old() -> str:
    """Say that the installed cuML is too old, and why that matters; empty if it is not, or there is none."""
    version = next((found for name in PACKAGES["cuml"] if (found := version_of(name))), None)
    if version is None or _numbers(version) >= OLDEST_CUML:
        return ""
    oldest = ".".join(f"{part:02}" for part in OLDEST_CUML)
    return f"cuML is {version}, expected {oldest} or newer: before that its maps differ from run to run, seed or not"


def load() -> Libraries:
    """Import the libraries, FAISS with its reading of torch tensors.

    Errors: EngineError if one is missing, too old or cannot run here
    """
    reason = missing()
    if reason:
        raise EngineError(f"engine 'rapids' cannot run here: {reason}; use 'fused' or 'reference'")
    return _import()


def versions() -> dict[str, str]:
    """Give the installed versions by distribution; absent ones are left out."""
    return {name: found for names in PACKAGES.values() for name in names if (found := version_of(name))}


def version_of(distribution: str) -> str | None:
    """Give the installed version of a distribution, None if there is none."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _broken() -> str:
    """Say why libraries that are installed cannot be used: an import that fails, a FAISS that sees no GPU."""
    try:
        faiss = _import().faiss
    except (ImportError, OSError) as error:
        return f"a library fails to import: {error}"
    # FAISS ends the process if it is used without a driver, so it is asked first
    if not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() < 1:
        return f"FAISS {getattr(faiss, '__version__', '')} sees no GPU; {PACKAGES['faiss'][0]} is needed"
    return ""


def _import() -> Libraries:
    with left_alone(torch.device("cpu")):
        cuml, cupy, faiss = (importlib.import_module(name) for name in PACKAGES)
        for name in ("cuml.cluster", "cuml.manifold", "faiss.contrib.torch_utils"):
            importlib.import_module(name)
    return Libraries(cuml, cupy, faiss)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
