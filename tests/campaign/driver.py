"""`fclm` in a new process that sends itself signals once it comes to import torch; `fclm` does the rest.

python tests/campaign/driver.py SIGNAL,SIGNAL PACKAGED ARGUMENT...; without a signal nothing is sent; PACKAGED, unless
it is empty, is the folder that stands for the kernels that came with the installation
"""

import os
import signal
import sys
import time
from importlib.machinery import ModuleSpec
from pathlib import Path

# apart by more than what counts as one
APART_S = 0.25


class AtTorch:
    """Finds nothing, but notices who is looked for."""

    def __init__(self, signals: list[str]) -> None:
        self._signals = signals

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Send the signals where torch is looked for, once."""
        if name == "torch" and self in sys.meta_path:
            sys.meta_path.remove(self)
            send(self._signals)
        return None


def send(signals: list[str]) -> None:
    """Send them to this process, one after the other."""
    for number, name in enumerate(signals):
        if number:
            time.sleep(APART_S)
        os.kill(os.getpid(), signal.Signals[name])


if __name__ == "__main__":
    sys.path[0] = os.getcwd()
    names, packaged, *arguments = sys.argv[1:]
    if names:
        sys.meta_path.insert(0, AtTorch(names.split(",")))
    if packaged:
        from fastcluster_lm.kernels import native

        native.PACKAGED = Path(packaged)
    from fastcluster_lm.cli import main

    main(arguments, prog_name="fclm")
