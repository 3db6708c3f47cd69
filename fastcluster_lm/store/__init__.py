"""The run folder and the columns of its tables; numpy only, no torch, no scores computed."""

from fastcluster_lm.store.files import check_free, replace_file
from fastcluster_lm.store.folder import FIRST_VAL_ID, RunFolder, list_runs
from fastcluster_lm.store.lines import TornLineWarning
from fastcluster_lm.store.row_queue import RowQueue
from fastcluster_lm.store.rows import SCORE_COLUMNS, STEP_COLUMNS, score_row, step_row
from fastcluster_lm.store.run_path import default_run_path
from fastcluster_lm.store.tail import LineTail

__all__ = [
    "FIRST_VAL_ID",
    "SCORE_COLUMNS",
    "STEP_COLUMNS",
    "LineTail",
    "RowQueue",
    "RunFolder",
    "TornLineWarning",
    "check_free",
    "default_run_path",
    "list_runs",
    "replace_file",
    "score_row",
    "step_row",
]
