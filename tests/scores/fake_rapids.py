"""Stand-ins for cuML, cupy and FAISS on a CPU: they take only what the real ones' signatures take, and misbehave alike.

They compute by numpy, scikit-learn and our own descent, reseed every generator they can reach, square distances where
they lie and order ties the wrong way round, so that an adapter which passes with them has guarded against all that.
"""

import inspect
import json
import random
import sys
import warnings
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fastcluster_lm.kernels.tsne_affinities import tsne_affinities
from fastcluster_lm.kernels.tsne_forces import StepRule, start_descent
from fastcluster_lm.scores.engines import _rapids_packages

RECORD = json.loads(Path(__file__).with_name("cuml_signatures.json").read_text())
VERSIONS = {"cuml-cu13": "26.10.0", "cupy-cuda13x": "14.2.0", "faiss-gpu": "1.15.1"}


@cache
def signature_of(text: str) -> inspect.Signature:
    """Make a signature that calls can be bound to from its text."""
    scope: dict[str, Any] = {"faiss": SimpleNamespace(METRIC_L2=1)}
    exec(f"def function{text}: pass", scope)
    return inspect.signature(scope["function"])


class Fakes:
    """The stand-ins, all calls made to them, and what can be told to go wrong."""

    def __init__(self, signatures: dict[str, str]) -> None:
        self.signatures = signatures
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.n_gpus = 1
        self.fails_in: str | None = None
        self.disturbs = True

    def take(self, name: str, *args: Any, **options: Any) -> dict[str, Any]:
        """Bind a call to the real signature, or raise the TypeError that the real one would."""
        bound = signature_of(self.signatures[name]).bind(*args, **options)
        self.calls.append((name, args, options))
        bound.apply_defaults()
        if self.disturbs:
            self._disturb()
        if self.fails_in == name:
            raise RuntimeError(f"{name} fails")
        return bound.arguments

    def named(self, name: str) -> list[dict[str, Any]]:
        """Give the arguments of all calls of one name."""
        return [options for called, _, options in self.calls if called == name]

    def modules(self) -> dict[str, ModuleType]:
        """Make the modules."""
        fakes = self

        class RandomState:
            def __init__(self, seed: int | None = None, method: Any = None) -> None:
                self.seeded = seed

        state = SimpleNamespace(current=RandomState(123))

        def seed(value: int) -> None:
            state.current.seeded = value

        def set_random_state(rs: RandomState) -> None:
            state.current = rs

        self.cupy_state = state

        class KMeans(_KMeans):
            owner = fakes

        class TSNE(_TSNE):
            owner = fakes

        class Resources:
            def __init__(self) -> None:
                fakes.take("faiss.StandardGpuResources")

            def setTempMemory(self, *args: Any, **options: Any) -> None:  # noqa: N802, FAISS's name
                self.memory = fakes.take("faiss.StandardGpuResources.setTempMemory", *args, **options)["size"]

        def from_dlpack(*args: Any, **options: Any) -> np.ndarray:
            array = fakes.take("cupy.from_dlpack", *args, **options)["array"]
            assert isinstance(array, torch.Tensor) and not array.requires_grad
            return np.from_dlpack(array)

        modules = {
            "cuml": {"__version__": "26.10.00"},
            "cuml.cluster": {"KMeans": KMeans},
            "cuml.manifold": {"TSNE": TSNE},
            "cupy": {"from_dlpack": from_dlpack},
            "cupy.random": {
                "RandomState": RandomState,
                "seed": seed,
                "get_random_state": lambda: state.current,
                "set_random_state": set_random_state,
            },
            "faiss": {
                "__version__": "1.15.1",
                "StandardGpuResources": Resources,
                "get_num_gpus": lambda: fakes.n_gpus,
                "knn_gpu": self._knn_gpu,
            },
            "faiss.contrib": {},
            "faiss.contrib.torch_utils": {},
        }
        made = {}
        for name, members in modules.items():
            module = ModuleType(name)
            module.__spec__ = ModuleSpec(name, None, is_package=True)
            module.__path__ = []
            vars(module).update(members)
            made[name] = module
            parent, _, own = name.rpartition(".")
            if parent:
                setattr(made[parent], own, module)
        return made

    def _knn_gpu(self, *args: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
        given = self.take("faiss.knn_gpu", *args, **options)
        queries, bank, k = given["xq"], given["xb"], given["k"]
        for part in (queries, bank):
            assert part.ndim == 2 and part.is_contiguous() and part.dtype == torch.float32
        assert 0 < k <= 2048 and given["res"].memory > 0
        # float32, and squared without centring, as FAISS's matmul is; of ties the higher index first
        sq_dist = queries.square().sum(1)[:, None] - 2 * queries @ bank.T + bank.square().sum(1)
        found = sq_dist.flip(1).sort(dim=1, stable=True)
        short = k - min(k, len(bank))
        distances = torch.nn.functional.pad(found.values[:, :k], (0, short), value=torch.finfo(torch.float32).max)
        return distances, torch.nn.functional.pad(len(bank) - 1 - found.indices[:, :k], (0, short), value=-1)

    def _disturb(self) -> None:
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.deterministic = True
        torch.set_float32_matmul_precision("medium")
        if "cupy" in sys.modules:
            sys.modules["cupy"].random.seed(1)


class _Estimator:
    """What both estimators share: strict construction, and arrays that must be cupy's."""

    owner: Fakes
    call: str

    def __init__(self, *args: Any, **options: Any) -> None:
        self.given = self.owner.take(self.call, *args, **options)
        assert self.given["output_type"] == "cupy" and 0 <= self.given["random_state"] < 2**32
        # cuML once took 0 for "no seed"
        assert self.given["random_state"] > 0

    def _points(self, X: Any, least_width: int) -> np.ndarray:
        assert isinstance(X, np.ndarray) and X.dtype == np.float32 and X.ndim == 2 and X.shape[1] >= least_width
        return X


class _KMeans(_Estimator):
    call = "cuml.cluster.KMeans"

    def fit(self, *args: Any, **options: Any) -> "_KMeans":
        import sklearn.cluster
        import sklearn.exceptions

        points = self._points(self.owner.take("cuml.cluster.KMeans.fit", *args, **options)["X"], 1)
        given = self.given
        assert given["tol"] > 0
        init = given["init"]
        assert isinstance(init, str) or (isinstance(init, np.ndarray) and given["n_init"] == 1)
        fit = sklearn.cluster.KMeans(
            given["n_clusters"],
            init=init,
            n_init=given["n_init"],
            max_iter=given["max_iter"],
            # scikit-learn's is a share of the mean variance, cuML's is absolute
            tol=given["tol"] / max(points.var(0).mean(), 1e-30),
            random_state=np.random.RandomState(given["random_state"]),
        ).fit
        with warnings.catch_warnings():
            # fewer distinct points than clusters is a defined case here
            warnings.simplefilter("ignore", sklearn.exceptions.ConvergenceWarning)
            model = fit(points)
        self.labels_ = model.labels_.astype(np.int32)
        self.cluster_centers_ = model.cluster_centers_.astype(np.float32)
        self.n_iter_ = model.n_iter_ + (model.n_iter_ == given["max_iter"])
        return self


class _TSNE(_Estimator):
    call = "cuml.manifold.TSNE"

    def fit_transform(self, *args: Any, **options: Any) -> np.ndarray:
        points = self._points(self.owner.take("cuml.manifold.TSNE.fit_transform", *args, **options)["X"], 2)
        given, n = self.given, len(points)
        assert given["method"] == "fft" and given["init"] == "random" and given["learning_rate_method"] is None
        assert given["early_exaggeration"] >= 1 and given["max_iter"] > 0 and given["min_grad_norm"] == 0
        assert 0 < given["pre_momentum"] < 1 and 0 < given["post_momentum"] < 1
        indices, distances = given["precomputed_knn"]
        assert indices.dtype == np.int64 and distances.dtype == np.float32 and indices.shape == distances.shape
        assert indices.shape == (n, given["n_neighbors"]) and given["n_neighbors"] <= 1023
        assert (indices[:, 0] == np.arange(n)).all() and (distances[:, 0] == 0).all()
        near = torch.from_numpy(distances[:, 1:].copy())[None], torch.from_numpy(indices[:, 1:].copy())[None]
        np.square(distances, out=distances)
        edges = tsne_affinities(*near, given["perplexity"])
        start = np.random.RandomState(given["random_state"]).uniform(-1e-4, 1e-4, (1, 2, n)).astype(np.float32)
        descent, active = start_descent(torch.from_numpy(start), edges), torch.ones(1, dtype=torch.bool)
        early, rate = min(given["exaggeration_iter"], given["max_iter"]), given["learning_rate"]
        far = 1e30
        descent.advance(early, StepRule(given["early_exaggeration"], given["pre_momentum"], rate, far), active)
        late = StepRule(given["late_exaggeration"], given["post_momentum"], 2 * rate, far)
        descent.advance(given["max_iter"] - early, late, active)
        return np.asfortranarray(descent.points()[0].T.numpy())


def libraries() -> _rapids_packages.Libraries:
    """Give the stand-ins as load gives the libraries."""
    return _rapids_packages.Libraries(*(sys.modules[name] for name in _rapids_packages.PACKAGES))


def install(monkeypatch: pytest.MonkeyPatch, signatures: dict[str, str] | None = None) -> Fakes:
    """Put the stand-ins where the real ones would be imported from, beside a CUDA device that is said to exist."""
    fakes = Fakes(signatures or RECORD["signatures"])
    for name in [name for name in sys.modules if name.split(".")[0] in ("cuml", "cupy", "faiss")]:
        monkeypatch.delitem(sys.modules, name)
    for name, module in fakes.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(_rapids_packages, "version_of", VERSIONS.get)
    return fakes
