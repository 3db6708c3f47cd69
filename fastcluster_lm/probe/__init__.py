"""When hidden states are scored, which ones, and what is kept between probes; it computes no score itself."""

from fastcluster_lm.probe.cadence import Cadence
from fastcluster_lm.probe.cluster_probe import ClusterProbe, ProbeSkippedWarning
from fastcluster_lm.probe.pending import ProbeResult
from fastcluster_lm.probe.run_probe import RunProbe
from fastcluster_lm.probe.runner import FinishedProbe, InlineRunner, ProbeRunner, SavedState, WorkerRunner
from fastcluster_lm.probe.serving import serve
from fastcluster_lm.probe.sources.evaluator import EvaluatorSource, choose_instances, choose_sources
from fastcluster_lm.probe.sources.ring import RingSource
from fastcluster_lm.probe.stream_runner import StreamRunner
from fastcluster_lm.probe.worker_process import Waiting, WorkerProcess, copied, started

__all__ = [
    "Cadence",
    "ClusterProbe",
    "EvaluatorSource",
    "FinishedProbe",
    "InlineRunner",
    "ProbeResult",
    "ProbeRunner",
    "ProbeSkippedWarning",
    "RingSource",
    "RunProbe",
    "SavedState",
    "StreamRunner",
    "Waiting",
    "WorkerProcess",
    "WorkerRunner",
    "choose_instances",
    "choose_sources",
    "copied",
    "serve",
    "started",
]
