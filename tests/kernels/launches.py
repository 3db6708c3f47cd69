"""Records what each kernel's launches would have compiled, a JSON line each, without a GPU; it compiles nothing."""

import contextlib
import json
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime.jit import JITFunction

from tests.kernels.cases import all_cases


class NoGpu(DriverBase):
    """Tells Triton of a GPU that is not there."""

    def __init__(self) -> None:
        pass

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return "int"

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_benchmarker(self) -> None:
        return None


def record(
    self: JITFunction, key: Any, signature: dict, device: int, constants: dict, options: Any, attributes: dict, *_: Any
) -> None:
    """Take the place of the compiler; without a compiled kernel a launch ends here."""
    hinted = {path[0] for path, hints in attributes.items() if ["tt.divisibility", 16] in hints}
    row = {
        "function": self.__name__,
        "signature": signature,
        "constants": {self.arg_names[path[0]]: value for path, value in constants.items()},
        "options": {"num_warps": options.num_warps, "num_stages": options.num_stages},
        "unaligned": [
            name
            for position, (name, type_) in enumerate(signature.items())
            if type_.startswith("*") and position not in hinted
        ],
    }
    print(json.dumps(row))


if __name__ == "__main__":
    triton.runtime.driver.set_active(NoGpu())
    JITFunction._do_compile = record
    for case in all_cases().values():
        for shape in case.SHAPES:
            # nothing is computed, so that the checks after the launch fail
            with contextlib.suppress(AssertionError):
                case.check(shape, torch.device("cpu"))
