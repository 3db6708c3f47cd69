"""Runs float32 matmuls in float32 and puts every precision setting back as it was; it computes nothing."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

# torch's settings since 2.9: an operation's own one counts unless it is "none", then that of its backend, then of all.
# Those of convolutions start as none of these, which cannot be set again once it was overwritten: so they are not
# touched here, but where a library changed them
_ALL = ("generic", "all")
_BACKENDS = ("cuda", "mkldnn")
_MATMULS = [("cuda", "matmul"), ("mkldnn", "matmul")]
_CONVOLUTIONS = [(backend, op) for backend in _BACKENDS for op in ("conv", "rnn")]
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
            stack.enter_context(_matmuls_kept())
            for place in _MATMULS:
                _set(place, "ieee")
            # its getter raises unless the newer settings agree with it
            if torch.get_float32_matmul_precision() != "highest":
                torch.set_float32_matmul_precision("highest")
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextmanager
def precisions_kept() -> Iterator[None]:
    """Put back every setting of float32's precision, the older ones too, whatever a library sets.

    Notes: a convolution's setting that came from above, and was overwritten, has its value again but no longer follows
    """
    before, cudnn = {place: _own(place) for place in _CONVOLUTIONS}, _cudnn()
    with _matmuls_kept():
        try:
            yield
        finally:
            if cudnn is not None and _cudnn() != cudnn:
                torch.backends.cudnn.allow_tf32 = cudnn
    for place, (own, found) in before.items():
        if _own(place) != (own, found):
            _set(place, own if own != "none" else found)


@contextmanager
def _matmuls_kept() -> Iterator[None]:
    """Put back what decides on matmuls: the older setting, the newer ones of all, of each backend and of its matmul."""
    above = {_ALL: _found(_ALL), **{(backend, "all"): _own((backend, "all"))[0] for backend in _BACKENDS}}
    own = {place: _own(place)[0] for place in _MATMULS}
    older = _older_matmul(own)
    try:
        yield
    finally:
        # the older setter writes the newer settings too, so it comes first
        if _older_matmul(own) != older:
            torch.set_float32_matmul_precision(older)
        for place, precision in (above | own).items():
            _set(place, precision)


def _found(place: _Place) -> str:
    return str(torch._C._get_fp32_precision_getter(*place))


def _set(place: _Place, precision: str) -> None:
    torch._C._set_fp32_precision_setter(*place, precision)


def _own(place: _Place) -> tuple[str, str]:
    """Read what a place itself is set to, "none" where it follows those above it, and what counts there.

    torch tells only what counts, so those above are moved, and put back
    """
    above = _ALL if place[1] == "all" else (place[0], "all")
    kept, found = _found(above) if above == _ALL else _own(above)[0], _found(place)
    try:
        seen = []
        for precision in ("ieee", "tf32"):
            _set(above, precision)
            seen.append(_found(place))
    finally:
        _set(above, kept)
    return ("none" if seen == ["ieee", "tf32"] else seen[0]), found


def _older_matmul(own: dict[_Place, str]) -> str:
    """Read set_float32_matmul_precision, whose getter raises unless the newer settings agree with it."""
    try:
        for place in _MATMULS:
            _set(place, "ieee")
        return torch.get_float32_matmul_precision()
    finally:
        for place in _MATMULS:
            _set(place, own[place])


def _cudnn() -> bool | None:
    """Read cudnn.allow_tf32; None where it and the newer settings disagree, so that it counts for nothing."""
    try:
        return bool(torch.backends.cudnn.allow_tf32)
    except RuntimeError:
        return None
