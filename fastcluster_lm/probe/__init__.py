"""When hidden states are scored, which ones, and what is kept between probes; it computes no score itself.

A probe goes through four stages, each a verb:
  capture  sources/    the points of each split where every layer puts them now: X (layers, n, d)
  launch   scorer.py   clusters, neighbours and the map are given to the device, and nothing waits
  fetch    pending.py  what was found comes to the host, each number under its name
  finish   pending.py  rows and maps are made of it, and the map goes on
run_probe.py says when and of what in a run, cluster_probe.py in anyone's loop, whose probes attached_probes.py takes to
their run folder, layerwise.py for models that exist; cadence.py says which of them are full ones, plan.py which rows
there are, positions.py scores several tokens side by side, runners/ say in which process or on which stream.
"""

from fastcluster_lm.probe.attached_probes import ProbeSkippedWarning
from fastcluster_lm.probe.cadence import Cadence
from fastcluster_lm.probe.cluster_probe import ClusterProbe
from fastcluster_lm.probe.pending import ProbeResult
from fastcluster_lm.probe.plan import ProbePlan
from fastcluster_lm.probe.run_probe import RunProbe
from fastcluster_lm.probe.runners.cuda import CudaRunner
from fastcluster_lm.probe.runners.inline import InlineRunner
from fastcluster_lm.probe.runners.process import Waiting, WorkerProcess, copied, started
from fastcluster_lm.probe.runners.runner import FinishedProbe, ProbeRunner, SavedState
from fastcluster_lm.probe.runners.serving import serve
from fastcluster_lm.probe.runners.worker import WorkerRunner
from fastcluster_lm.probe.sources.evaluator import EvaluatorSource, choose_instances, choose_sources
from fastcluster_lm.probe.sources.ring import RingSource

__all__ = [
    "Cadence",
    "ClusterProbe",
    "CudaRunner",
    "EvaluatorSource",
    "FinishedProbe",
    "InlineRunner",
    "ProbePlan",
    "ProbeResult",
    "ProbeRunner",
    "ProbeSkippedWarning",
    "RingSource",
    "RunProbe",
    "SavedState",
    "Waiting",
    "WorkerProcess",
    "WorkerRunner",
    "choose_instances",
    "choose_sources",
    "copied",
    "serve",
    "started",
]
