"""Tensors that say they lie on a GPU and compute on the CPU; what would wait for a GPU raises."""

import ctypes
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.cpp_extension import include_paths

aten = torch.ops.aten
# what a GPU cannot give without being waited for
WAITS = {
    aten._local_scalar_dense.default: "reads a number",
    aten.is_nonzero.default: "reads a number",
    aten.equal.default: "reads a number",
    aten.nonzero.default: "has as many rows as there are values",
    aten.masked_select.default: "has as many values as the mask",
    aten._unique2.default: "has as many values as there are distinct ones",
    aten.unique_dim.default: "has as many values as there are distinct ones",
    aten.unique_consecutive.default: "has as many values as there are runs",
    aten.bincount.default: "reads the largest value",
    aten._coalesce.default: "has as many values as there are distinct places",
    aten._linalg_eigh.default: "learns whether it converged",
    aten._linalg_svd.default: "learns whether it converged",
    aten._linalg_check_errors.default: "reads whether the device failed",
}


class HostWaitError(AssertionError):
    """The host would have waited for the device."""


class PretendTensor(torch.Tensor):
    """A tensor that says "cuda" and holds its values in another one, on the CPU."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "PretendTensor":
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device="cuda",
        )

    def __init__(self, held: torch.Tensor) -> None:
        self.held = held

    def record_stream(self, stream: Any) -> None:
        """Nothing is ever freed too early here."""

    def tolist(self) -> Any:
        # torch has none for subclasses
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {}, strict=False)


class PretendCuda(TorchDispatchMode):
    """Let "cuda" mean PretendTensor; where strict, refuse what would wait, and copies but by way of pinned memory."""

    def __init__(self, *, strict: bool = False) -> None:
        super().__init__()
        self.strict = strict

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {}, strict=self.strict)


@contextmanager
def pretend_cuda() -> Iterator[PretendCuda]:
    """Make torch say that there is a GPU, with streams and events that have nothing to wait for."""
    _install_guard()
    mode = PretendCuda()

    def synchronize(*ignored: Any) -> None:
        if mode.strict:
            raise HostWaitError("an event or a stream was waited for")

    event = mock.Mock(
        **{"query.return_value": True, "synchronize.side_effect": synchronize, "elapsed_time.return_value": 1.0}
    )
    stream = mock.MagicMock(**{"synchronize.side_effect": synchronize})
    with (
        mock.patch.object(torch.cuda, "_lazy_init", lambda: None),
        # else a module moved here would keep its own tensors, with nothing held
        mock.patch.object(torch.__future__, "get_overwrite_module_params_on_conversion", lambda: True),
        mock.patch.object(torch.cuda, "is_available", lambda: True),
        mock.patch.object(torch.cuda, "get_device_name", lambda *ignored: "a pretended GPU"),
        mock.patch.object(torch.cuda, "Event", lambda **ignored: event),
        mock.patch.object(torch.cuda, "Stream", lambda *ignored, **also: stream),
        mock.patch.object(torch.cuda, "current_stream", lambda *ignored: stream),
        mock.patch.object(torch.cuda, "stream", lambda *ignored: mock.MagicMock()),
        mock.patch.object(torch.cuda, "synchronize", synchronize),
        mode,
    ):
        yield mode


def _compute(func: Any, args: Any, kwargs: dict[str, Any], *, strict: bool) -> Any:
    leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    away = [leaf for leaf in leaves if isinstance(leaf, PretendTensor)]
    device = kwargs.get("device")
    asked = None if device is None else torch.device(device).type
    on_device = bool(away) if asked is None else asked == "cuda"
    if func is aten.is_pinned.default:
        return getattr(args[0], "pinned", False)
    if func is aten._fused_sdp_choice.default and away:
        # the plain form, made of operations that every device has
        return 0
    if strict:
        _refuse(func, args, kwargs, leaves, away, asked)
    pins = func is aten._pin_memory.default or kwargs.get("pin_memory")
    held = {id(leaf.held): leaf for leaf in away}
    args, kwargs = tree_map(lambda leaf: leaf.held if isinstance(leaf, PretendTensor) else leaf, (args, kwargs))
    kwargs = {key: value for key, value in kwargs.items() if key != "pin_memory"}
    if on_device and asked is not None:
        kwargs["device"] = torch.device("cpu")
    if func is aten._pin_memory.default:
        func, kwargs = aten.clone.default, {}
    moved = asked is not None and asked != ("cuda" if away else "cpu") and func is aten._to_copy.default
    out = func(*args, **kwargs)
    if func is aten.copy_.default and not isinstance(leaves[0], PretendTensor):
        return leaves[0]

    def dressed(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if pins:
            value.pinned = True
        if not on_device:
            return value
        # what was computed in place is the tensor that it was
        known = held.get(id(value))
        return PretendTensor(value.clone() if moved else value) if known is None else known

    return tree_map(dressed, out)


def _refuse(
    func: Any, args: Any, kwargs: Any, leaves: list[torch.Tensor], away: list[PretendTensor], asked: str | None
) -> None:
    if away and func in WAITS:
        raise HostWaitError(f"{func} {WAITS[func]}")
    if away and func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None:
        raise HostWaitError(f"{func} has as many rows as the counts add up to")
    if away and func is aten.segment_reduce.default and not kwargs.get("unsafe"):
        raise HostWaitError(f"{func} checks its lengths")
    if away and func in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default):
        masks = [leaf for leaf in tree_leaves(args[1]) if isinstance(leaf, torch.Tensor) and leaf.dtype == torch.bool]
        if masks:
            raise HostWaitError(f"{func} by a mask has as many rows as the mask")
    home = [leaf for leaf in leaves if not isinstance(leaf, PretendTensor)]
    if func is aten._to_copy.default and asked == "cpu" and away:
        raise HostWaitError(f"{func} copies to the host")
    if func is aten._to_copy.default and asked == "cuda" and home:
        if not (getattr(home[0], "pinned", False) and kwargs.get("non_blocking")):
            raise HostWaitError(f"{func} copies from memory that is not pinned")
        return
    if func is aten.copy_.default and away and home:
        pinned = all(getattr(leaf, "pinned", False) for leaf in home)
        if not (pinned and (kwargs.get("non_blocking") or (len(args) > 2 and args[2]))):
            raise HostWaitError(f"{func} copies between host and device, and waits")
        return
    if away and any(leaf.ndim for leaf in home):
        raise HostWaitError(f"{func} takes tensors of the host and of the device")


@cache
def _install_guard() -> None:
    """Compile and install a device guard: torch without CUDA has none, and indexing needs one."""
    if torch.version.cuda is not None:
        return
    source = Path(__file__).with_name("guard.cpp")
    target = Path(tempfile.mkdtemp()) / "guard.so"
    libraries = Path(torch.__file__).parent / "lib"
    flags = ["-std=c++20", "-fPIC", "-shared", *(f"-I{path}" for path in include_paths())]
    command = ["c++", *flags, str(source), "-o", str(target), f"-L{libraries}", "-lc10"]
    subprocess.run(command, check=True, capture_output=True)
    ctypes.CDLL(str(target)).install_guard()
