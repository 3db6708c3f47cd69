"""fastcluster_lm: train a causal language model and watch its hidden states gather into task clusters.

The flow of a run, each room importing only what stands below it:
    tasks     what the model is asked
    data      instances as tensors, split and sampled
    model     the language model, which hands out its hidden states
    training  one optimiser step at a time
    probe     when the states are scored, and which
    scores    t-SNE, KMeans, neighbours, agreement, over all layers at once
    store     the run folder
    views     what a person sees
    align     a task's states moved to another's in any model, and back
    engine    wires them for one run; cli calls it
"""

import importlib
import os
from typing import Any

# spinning OpenMP threads stall 5 to 30 times on a shared machine, and those that sleep at once take longer to wake than
# a small kernel takes: GNU's wait some 0.3 ms, then sleep. A runtime reads it when it is loaded: torch's, if that comes
# later, that of our kernels, and those of processes beside this one
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

__version__ = "0.1.0"

_SCORES = ("nearest_neighbors", "kmeans", "tsne", "score_clusters")
# where the other public names are found
_HOMES = {
    "ClusterProbe": "fastcluster_lm.probe",
    "FclmError": "fastcluster_lm.errors",
    "FclmLightningCallback": "fastcluster_lm.probe.adapters.lightning",
    "FclmTrainerCallback": "fastcluster_lm.probe.adapters.hugging_face",
    "ProbePlan": "fastcluster_lm.probe",
    "ScoresConfig": "fastcluster_lm.config",
    **dict.fromkeys(_SCORES, "fastcluster_lm.scores"),
}
__all__ = ["__version__", "align", *_HOMES]


def __getattr__(name: str) -> Any:
    # public functions load torch, so they are fetched at their first use
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name == "align":
        return importlib.import_module("fastcluster_lm.align")
    raise AttributeError(f"module 'fastcluster_lm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
