"""Compiles every configuration that capture_states can launch, for three GPUs without having one; no test."""

import json

from fastcluster_lm.kernels.capture_states import op
from fastcluster_lm.kernels.capture_states.kernel import capture_states_kernel
from tests.kernels.compile_linear_cross_entropy import needs

sizes = {tuple(op.block_sizes(width).items()) for width in range(1, 4097)}
for dtype in ("float32", "bfloat16"):
    for chosen in sorted(sizes):
        for capability in (80, 90, 100):
            row = {"dtype": dtype, "sizes": dict(chosen), "sm": capability}
            print(json.dumps({**row, **needs(capture_states_kernel, dict(chosen), dtype, capability)}), flush=True)
