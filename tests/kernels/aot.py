"""Compiles kernels for GPUs without having one and prints what they need, a JSON line each; it judges nothing.

Usage: python aot.py ARCHITECTURES CASE... with "80,90,100" and names of files in cases/
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tests.kernels.cases import Kernel, all_cases, describe

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
OPTIONS = ("num_warps", "num_stages")


def compile_one(kernel: Kernel, tile: dict, capability: int) -> dict:
    """Compile for one tile and architecture; read registers and local memory from the binary itself."""
    constants = {name: value for name, value in tile.items() if name not in OPTIONS}
    signature = kernel.signature(constants)
    # as a launch finds them: torch's memory is aligned to 16 bytes
    aligned = {
        (position,): [["tt.divisibility", 16]] for position, type_ in enumerate(signature.values()) if "*" in type_
    }
    source = ASTSource(fn=kernel.function, signature=signature, constexprs=constants, attrs=aligned)
    started = time.perf_counter()
    options = {name: tile[name] for name in OPTIONS if name in tile}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    seconds = time.perf_counter() - started
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        said = _ask("cuobjdump", "--dump-resource-usage", cubin.name)
        instructions = _ask("nvdisasm", "-c", cubin.name)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", said)
    assert found and "EXIT" in instructions, said
    registers, stack, local = map(int, found.groups())
    return {
        "kernel": kernel.name,
        "tile": describe(tile),
        "sm": capability,
        "registers": registers,
        "stack": stack,
        "local": local,
        # loads from and stores to a thread's local memory: spilled registers
        "spills": len(re.findall(r"\b(?:LDL|STL)\b", instructions)),
        "shared": compiled.metadata.shared,
        "seconds": round(seconds, 1),
    }


def _ask(tool: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True, check=True).stdout


def compile_nth(case: str, number: int, capability: int) -> dict:
    """Compile one of a case's launches, named by numbers, since kernels do not go from process to process."""
    launches = [(kernel, tile) for kernel in all_cases()[case].kernels() for tile in kernel.tiles]
    return compile_one(*launches[number], capability)


if __name__ == "__main__":
    wanted = [
        (name, number, capability)
        for name in sys.argv[2:]
        for number in range(sum(len(kernel.tiles) for kernel in all_cases()[name].kernels()))
        for capability in map(int, sys.argv[1].split(","))
    ]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), get_context("spawn")) as pool:
        for row in pool.map(compile_nth, *zip(*wanted, strict=True)):
            print(json.dumps(row), flush=True)
