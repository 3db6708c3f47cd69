"""The run folder and the columns of its tables; numpy only, no torch, no scores computed."""

from fastcluster_lm.store.folder import RunFolder, list_runs
from fastcluster_lm.store.lines import TornLineWarning
from fastcluster_lm.store.row_queue import RowQueue
from fastcluster_lm.store.rows import SCORE_COLUMNS, STEP_COLUMNS, score_row, step_row

__all__ = [
    "SCORE_COLUMNS",
    "STEP_COLUMNS",
    "RowQueue",
    "RunFolder",
    "TornLineWarning",
    "list_runs",
    "score_row",
    "step_row",
]
