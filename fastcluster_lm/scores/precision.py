"""Runs float32 matmuls in float32 and puts every precision setting back as it was; it computes nothing."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

# torch's settings since 2.9: an operation's own one counts unless it is "none", then that of its backend, then of all
_ALL = ("generic", "all")
_OPERATIONS = {backend: [(backend, op) for op in ("matmul", "conv", "rnn")] for backend in ("cuda", "mkldnn")}
_MATMULS = [("cuda", "matmul"), ("mkldnn", "matmul")]
_Place = tuple[str, str]


@contextmanager
def full_precision() -> Iterator[None]:
    """Run float32 matmuls in float32 even where the caller allows TF32, bfloat16 or autocasts, in whichever way.

    Notes: torch has two ways to allow them, set_float32_matmul_precision and fp32_precision, and its getters raise
           where they disagree; within, both say the highest, and afterwards each says what it said before
    """
    lowered = any(_found(place) not in ("ieee", "none") for place in _MATMULS)
    with ExitStack() as stack:
        if lowered:
            stack.enter_context(precisions_kept())
            for place in _MATMULS:
                _set(place, "ieee")
            if torch.get_float32_matmul_precision() != "highest":
                torch.set_float32_matmul_precision("highest")
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextmanager
def precisions_kept() -> Iterator[None]:
    """Put back every setting of float32's precision, the older ones too, whatever the body sets."""
    own = _own_settings()
    matmul, cudnn = _older_settings(own)
    try:
        yield
    finally:
        now = _older_settings(_own_settings())
        # the older setters write the newer settings too, so they come first
        if now[0] != matmul:
            torch.set_float32_matmul_precision(matmul)
        if now[1] != cudnn:
            torch.backends.cudnn.allow_tf32 = cudnn
        _write(own)


def _found(place: _Place) -> str:
    return str(torch._C._get_fp32_precision_getter(*place))


def _set(place: _Place, precision: str) -> None:
    torch._C._set_fp32_precision_setter(*place, precision)


def _write(settings: dict[_Place, str]) -> None:
    for place, precision in settings.items():
        _set(place, precision)


def _own_settings() -> dict[_Place, str]:
    """Read what each place itself is set to: torch tells only what counts there, which may come from above it."""
    own = {_ALL: _found(_ALL)}
    for backend, operations in _OPERATIONS.items():
        whole = (backend, "all")
        own[whole] = _unless_inherited(whole, _ALL, own[_ALL])
        for place in operations:
            own[place] = _unless_inherited(place, whole, own[whole])
    return own


def _unless_inherited(place: _Place, above: _Place, own_above: str) -> str:
    """Give the setting of a place, "none" where it follows the one above: seen by moving that one, and back."""
    try:
        seen = []
        for precision in ("ieee", "tf32"):
            _set(above, precision)
            seen.append(_found(place))
    finally:
        _set(above, own_above)
    return "none" if seen == ["ieee", "tf32"] else seen[0]


def _older_settings(own: dict[_Place, str]) -> tuple[str, bool]:
    """Read set_float32_matmul_precision and cudnn.allow_tf32, whose getters raise unless the newer settings agree."""
    try:
        for place in _MATMULS:
            _set(place, "ieee")
        matmul = torch.get_float32_matmul_precision()
        for op in ("conv", "rnn"):
            _set(("cuda", op), "tf32")
        try:
            cudnn = bool(torch.backends.cudnn.allow_tf32)
        except RuntimeError:
            # it disagrees with what was just set
            cudnn = False
    finally:
        _write(own)
    return matmul, cudnn
