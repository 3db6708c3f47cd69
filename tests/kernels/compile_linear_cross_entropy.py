"""Compiles every configuration that linear_cross_entropy can launch, for three GPUs without having one; no test.

Prints a JSON line a kernel, configuration and GPU: registers, bytes of stack, local and shared memory. The arguments
are architectures, as in 80,90,100, and dtypes.
"""

import json
import os
import re
import subprocess
import sys
import tempfile

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastcluster_lm.kernels.linear_cross_entropy import kernel, op

TOOL = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin", "cuobjdump")
NAMES = {"float32": "*fp32", "bfloat16": "*bf16", "float16": "*fp16"}
NUMBERS = ("target_ptr", "positions_ptr")
# kept in fp32 whatever the inputs are
ACCUMULATED = ("grad_ptr", "peak_ptr", "peaks_ptr", "log_sum_ptr", "sums_ptr", "target_logit_ptr", "dx_ptr")
ACCUMULATED += ("states_ptr", "sq_norms_ptr")


def needs(fn: triton.JITFunction, sizes: dict, dtype: str, capability: int) -> dict:
    """Compile one kernel and read off what it needs; pointers, width and strides are taken to be divisible by 16."""
    options = {name: sizes[name] for name in ("num_warps", "num_stages") if name in sizes}
    constants = {name: value for name, value in sizes.items() if name in fn.arg_names}
    signature = {}
    for name in fn.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = "*i64" if name in NUMBERS else "*fp32" if name in ACCUMULATED else NAMES[dtype]
        else:
            signature[name] = "i32"
    even = [at for at, name in enumerate(fn.arg_names) if name.endswith("_ptr") or name in ("D", "x_row", "w_row")]
    attributes = {(at,): [["tt.divisibility", 16]] for at in even}
    source = ASTSource(fn=fn, signature=signature, constexprs=constants, attrs=attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        said = subprocess.run([TOOL, "--dump-resource-usage", cubin.name], capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", said)
    assert found, said
    registers, stack, _, local = map(int, found.groups())
    return {"registers": registers, "stack": stack, "local": local, "shared": compiled.metadata.shared}


if __name__ == "__main__":
    for dtype in sys.argv[2:]:
        kind = getattr(torch, dtype)
        launches = [(kernel.linear_cross_entropy_kernel, op.block_sizes(kind))]
        gradients = {tuple(op.gradient_block_sizes(width, kind).items()) for width in range(1, 4097)}
        for fn in (kernel.hidden_gradient_kernel, kernel.weight_gradient_kernel):
            launches += [(fn, dict(sizes)) for sizes in sorted(gradients, key=str)]
        for fn, sizes in launches:
            for capability in map(int, sys.argv[1].split(",")):
                row = {"kernel": fn.__name__, "dtype": dtype, "sizes": sizes, "sm": capability}
                print(json.dumps({**row, **needs(fn, sizes, dtype, capability)}), flush=True)
