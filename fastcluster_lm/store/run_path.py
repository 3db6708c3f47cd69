"""Names run folders that nobody named; it makes none."""

import os
import time
from pathlib import Path

from fastcluster_lm.errors import RunFolderError


def default_run_path(name: str, now: time.struct_time | None = None) -> Path:
    """Name a dated folder under `runs/` that does not exist yet."""
    stem = f"{name}-{time.strftime('%Y%m%d-%H%M%S', now or time.localtime())}"
    for suffix in ("", *(f"-{i}" for i in range(2, 100))):
        path = Path("runs") / f"{stem}{suffix}"
        if not os.path.lexists(path):
            return path
    raise RunFolderError(f"runs/{stem}: expected a name that is free, found a hundred of them taken")
