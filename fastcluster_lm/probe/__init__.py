"""When hidden states are scored, which ones, and what is kept between probes; it computes no score itself."""

from fastcluster_lm.probe.cadence import Cadence
from fastcluster_lm.probe.cluster_probe import ClusterProbe, ProbeSkippedWarning
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
