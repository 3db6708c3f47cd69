"""Compiles the kmeans_assign kernel for two GPUs without having one and prints what it needs as JSON; no test."""

import json
import os
import re
import subprocess
import tempfile

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastcluster_lm.kernels.kmeans_assign.kernel import kmeans_assign_kernel
from fastcluster_lm.kernels.kmeans_assign.op import block_sizes

TOOL = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin", "cuobjdump")
POINTERS = {"x_ptr": "*fp32", "c_ptr": "*fp32", "labels_ptr": "*i64", "sq_dist_ptr": "*fp32"}
NUMBERS = dict.fromkeys(("N", "K", "D", "x_batch", "x_row", "c_batch", "c_row"), "i32")

for capability in (80, 90):
    constants = {**block_sizes(100), "PRECISION": "ieee"}
    signature = {**POINTERS, **NUMBERS, **dict.fromkeys(constants, "constexpr")}
    source = ASTSource(fn=kmeans_assign_kernel, signature=signature, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        said = subprocess.run([TOOL, "--dump-resource-usage", cubin.name], capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", said)
    assert found, said
    registers, stack, _, local = map(int, found.groups())
    shared = compiled.metadata.shared
    print(json.dumps({"sm": capability, "registers": registers, "stack": stack, "local": local, "shared": shared}))
