"""Runs one case's shapes in Triton's interpreter, in a process of its own; a failed check ends it with the reason.

Usage: TRITON_INTERPRET=1 python interpret.py CASE SHAPES|SLOW
"""

import sys
import time

import numpy as np
import torch
import triton.language as tl
from triton import knobs
from triton.runtime import interpreter

from tests.kernels.cases import all_cases

_reduce, _splatted = interpreter.ReduceOps.apply_impl, interpreter.InterpreterBuilder.create_splat


def _apply(self: interpreter.ReduceOps, operands: tuple[tl.tensor, ...]) -> tl.tensor | tuple[tl.tensor, ...]:
    # tl.sort is built on sums by xor, which the interpreter takes element by element: minutes where NumPy takes none
    if self.combine_fn == tl.standard._xor_combine:
        data = np.bitwise_xor.reduce(operands[0].handle.data, axis=self.axis, keepdims=self.keep_dims)
        return self.to_tensor(data, operands[0].dtype)
    return _reduce(self, operands)


def _splat(
    self: interpreter.InterpreterBuilder, shaped: tl.block_type, scalar: interpreter.TensorHandle
) -> interpreter.TensorHandle:
    # a comparison's truth becomes a number in a block, which masks of 3.9 refuse; the compiler does not
    found = _splatted(self, shaped, scalar)
    return interpreter.TensorHandle(found.data.astype(bool), tl.int1) if scalar.data.dtype == bool else found


if __name__ == "__main__":
    assert knobs.runtime.interpret, "set TRITON_INTERPRET=1"
    torch.set_num_threads(1)
    interpreter.ReduceOps.apply_impl, interpreter.InterpreterBuilder.create_splat = _apply, _splat
    case = all_cases()[sys.argv[1]]
    for shape in getattr(case, sys.argv[2]):
        started = time.perf_counter()
        try:
            case.check(shape, torch.device("cpu"))
        except Exception as error:
            error.add_note(f"shape {shape}")
            raise
        print(f"{shape} {time.perf_counter() - started:.1f} s", flush=True)
