"""When hidden states are scored, which ones, and what is kept between probes; it computes no score itself."""

from fastcluster_lm.probe.cadence import Cadence
from fastcluster_lm.probe.cluster_probe import ClusterProbe, ProbeSkippedWarning
from fastcluster_lm.probe.pending import ProbeResult
from fastcluster_lm.probe.probe_set import ProbeSet, choose_probe_set, choose_probe_sets
from fastcluster_lm.probe.run_probe import RunProbe
from fastcluster_lm.probe.runner import FinishedProbe, InlineRunner, ProbeRunner, SavedState, WorkerRunner
from fastcluster_lm.probe.serving import serve
from fastcluster_lm.probe.stream_runner import StreamRunner
from fastcluster_lm.probe.worker_process import Waiting, WorkerProcess, copied, started

__all__ = [
    "Cadence",
    "ClusterProbe",
    "FinishedProbe",
    "InlineRunner",
    "ProbeResult",
    "ProbeRunner",
    "ProbeSet",
    "ProbeSkippedWarning",
    "RunProbe",
    "SavedState",
    "StreamRunner",
    "Waiting",
    "WorkerProcess",
    "WorkerRunner",
    "choose_probe_set",
    "choose_probe_sets",
    "copied",
    "serve",
    "started",
]
