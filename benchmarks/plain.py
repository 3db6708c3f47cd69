"""Build the plain C++ loop and lay both repulsions out alike; it times nothing."""

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from fastcluster_lm.errors import EngineError
from fastcluster_lm.kernels.edges import Edges
from fastcluster_lm.kernels.native import address, level, thread_count
from fastcluster_lm.kernels.tsne_forces.op import NativeDescent, Repulsion, start_descent

# -ffast-math lets the compiler use vectors for the sums; compiled and linked apart, so that denormals stay as they are
FLAGS = ("-O3", "-ffast-math", "-fopenmp", "-fPIC", "-c")


def plain_repulsion(points: Tensor) -> Callable[[], Tensor]:
    """Give a call that computes the repulsion of points (layers, 2, n) by the plain loop, at the kernels' level.

    Errors: EngineError without a C++ compiler
    """
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise EngineError("the plain loop needs a C++ compiler; install g++")
    with tempfile.TemporaryDirectory() as folder:
        source, built, linked = Path(__file__).with_name("plain.cpp"), Path(folder) / "p.o", Path(folder) / "p.so"
        subprocess.run([compiler, *FLAGS, f"-march={level()}", str(source), "-o", str(built)], check=True)
        subprocess.run([compiler, "-shared", "-fopenmp", str(built), "-o", str(linked)], check=True)
        library = ctypes.CDLL(str(linked))
    points = points.contiguous()
    n_layers, _, n = points.shape
    forces, sums = torch.empty_like(points), torch.empty(n_layers, n, dtype=torch.float64)

    def call() -> Tensor:
        sizes = (ctypes.c_int64(n_layers), ctypes.c_int64(n))
        threads = ctypes.c_int32(thread_count())
        library.plain_repulsion(
            address(points, torch.float32),
            *sizes,
            address(forces, torch.float32),
            address(sums, torch.float64),
            threads,
        )
        return forces

    return call


def repulsion(points: Tensor, way: Repulsion = "pairs") -> Callable[[], Tensor]:
    """Give a call that computes the same by the compiled kernel, or near it by a tree or a grid.

    Errors: EngineError where it cannot be compiled
    """
    n_layers, _, n = points.shape
    none = Edges(torch.zeros(n_layers * n + 1, dtype=torch.int64), torch.zeros(1, dtype=torch.int32), torch.zeros(1))
    descent = start_descent(points, none, repulsion=way)
    if not isinstance(descent, NativeDescent):
        raise EngineError("the compiled kernel cannot be built here; `fclm doctor` says why")
    return descent.repulsion
