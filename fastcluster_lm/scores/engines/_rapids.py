"""The adapter to cuML and FAISS on a GPU: not built yet; it says what is missing and computes nothing."""

import importlib.metadata
import importlib.util
from typing import NoReturn

import torch
from jaxtyping import Float
from torch import Tensor

from fastcluster_lm.errors import EngineError
from fastcluster_lm.scores.engines.params import Clustering, KMeansParams, Map, Neighbors, NeighborsParams, TsneParams

# import name and distributions that provide it
PACKAGES = {"cuml": ("cuml-cu13",), "cupy": ("cupy-cuda13x",), "faiss": ("faiss-gpu",)}


def missing() -> str:
    """Say why the rapids engine cannot run here: that it is not built yet, and what this machine lacks beside."""
    reasons = ["not built yet"]
    if not torch.cuda.is_available():
        reasons.append("no CUDA device")
    for module, distributions in PACKAGES.items():
        if importlib.util.find_spec(module) is None:
            reasons.append(f"{distributions[0]} not installed")
        elif not any(_installed(name) for name in distributions):
            reasons.append(f"{module} is installed without GPU support, {distributions[0]} is needed")
    return "; ".join(reasons)


class RapidsEngine:
    """Stands where cuML's t-SNE and KMeans and FAISS's neighbours will be; every verb refuses with the reason."""

    name = "rapids"

    def neighbors(
        self, queries: Float[Tensor, "layers nq d"], bank: Float[Tensor, "layers nb d"], params: NeighborsParams
    ) -> Neighbors:
        self._refuse()

    def kmeans(self, X: Float[Tensor, "layers n d"], params: KMeansParams) -> Clustering:
        self._refuse()

    def tsne(self, X: Float[Tensor, "layers n d"], params: TsneParams) -> Map:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise EngineError(f"engine 'rapids' cannot run here: {missing()}; use engine='fused' or 'reference'")


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
