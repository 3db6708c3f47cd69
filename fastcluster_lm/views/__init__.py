"""What a person sees: the live line, the closing table, listings; rows in, text out, no torch."""

from fastcluster_lm.views.closing import print_closing
from fastcluster_lm.views.overview import RUN_COLUMNS, run_overview
from fastcluster_lm.views.progress import Progress
from fastcluster_lm.views.sparklines import sparkline, sparkline_rows
from fastcluster_lm.views.summary import (
    LAYER_SCORES,
    Signature,
    accuracy_at,
    best_layer,
    failure_signatures,
    layer_table,
    settled_step,
)
from fastcluster_lm.views.tables import FORMATS, print_rows, print_scores

__all__ = [
    "FORMATS",
    "LAYER_SCORES",
    "RUN_COLUMNS",
    "Progress",
    "Signature",
    "accuracy_at",
    "best_layer",
    "failure_signatures",
    "layer_table",
    "print_closing",
    "print_rows",
    "print_scores",
    "run_overview",
    "settled_step",
    "sparkline",
    "sparkline_rows",
]
