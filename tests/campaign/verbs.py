"""Calls of the four verbs with all sorts of arguments; how calls are drawn and answers judged, other files say."""

import copy
import inspect
import random
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastcluster_lm.kernels import native
from tests.campaign.outcome import Outcome
from tests.campaign.verb_answers import fault_of
from tests.campaign.verb_calls import VERBS, Call, draw_call

PROMISE = (
    "Whatever the four verbs are called with, they answer in full and rightly, or name the argument that is wrong."
)
TIMES = (400, 12_000)
# processor time of a call of 60 points or fewer, whose kernels are compiled, or in torch code: 500 iterations of a map
SLOW_S, SLOW_IN_TORCH_S = 2.0, 30.0


def run(times: int, seed: int, folder: Path) -> Outcome:
    """Make as many calls, each from its own number."""
    import fastcluster_lm

    verbs = {name: getattr(fastcluster_lm, name) for name in VERBS}
    _warm(verbs)
    broken, answered, in_torch = [], 0, 0
    for number in range(times):
        with warnings.catch_warnings():
            # some odd kinds of tensors are prototypes
            warnings.simplefilter("ignore")
            call = draw_call(seed, number)
        fault, was_answered = try_call(call, verbs[call.verb])
        answered += was_answered
        in_torch += was_answered and not (call.native and native.compiled())
        if fault:
            broken.append(f"seed {seed}, number {number}: {call.told()}: {fault}")
    figure = (
        f"{answered:,} answered and judged in float64 ({in_torch:,} by torch code), "
        f"{times - answered - len(broken):,} refused by name"
    )
    return Outcome("calls of the four verbs", times, times - len(broken), figure, broken)


def try_call(call: Call, verb: Any) -> tuple[str, bool]:
    """Make a call; say what is wrong with what came, or nothing, and whether it was answered rightly."""
    from fastcluster_lm import FclmError

    before, given = _generators(), {name: _copied(value) for name, value in call.args.items()}
    started = time.process_time()
    try:
        with _kernels_as_in(call), warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            answer = verb(**call.args)
    except FclmError as error:
        fault = _fault_of_refusal(call, verb, error)
        answer = None
    # whatever else is raised is what is looked for
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:300], False
    else:
        fault = fault_of(call, answer)
        odd = [str(one.message)[:120] for one in said if not str(one.message).startswith("perplexity ")]
        fault = fault or (f"warned: {odd[0]}" if odd else "")
    seconds = time.process_time() - started
    if not fault and seconds > (SLOW_S if call.native and native.compiled() else SLOW_IN_TORCH_S):
        fault = f"took {seconds:.1f} s"
    if not fault and _generators() != before:
        fault = "a generator of the caller has moved"
    if not fault:
        fault = next((f"{name} was changed" for name, old in given.items() if not _same(old, call.args[name])), "")
    return fault, answer is not None and not fault


@contextmanager
def _kernels_as_in(call: Call) -> Iterator[None]:
    """Turn compiled kernels off for a call in torch code, and back on, though they are loaded already."""
    native.prepare()
    loaded = native._kernels
    if not call.native:
        native.turn_off("this call is in torch code")
    # where they are off for all there is nothing to turn off
    assert native.compiled() is (call.native and bool(loaded and loaded.libraries))
    try:
        yield
    finally:
        native._kernels = loaded


def _fault_of_refusal(call: Call, verb: Any, error: Exception) -> str:
    told = f"{type(error).__name__}: {error}"[:300]
    if not any(re.search(rf"\b{name}\b", str(error)) for name in inspect.signature(verb).parameters):
        return f"no argument is named: {told}"
    if not call.sound:
        return ""
    # what the reference cannot do, it says
    if call.args.get("engine") == "reference" and "engine 'reference'" in str(error):
        return ""
    return f"refused, and nothing is wrong with it: {told}"


def _generators() -> tuple[Any, ...]:
    name, keys, *rest = np.random.get_state()
    return random.getstate(), name, keys.tobytes(), tuple(rest), torch.get_rng_state().numpy().tobytes()


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        plain = value.layout == torch.strided and not value.is_meta and not value.is_nested
        return value.detach().clone() if plain and type(value) is torch.Tensor else None
    return copy.deepcopy(value) if isinstance(value, (np.ndarray, list)) else None


def _same(old: Any, new: Any) -> bool:
    """Whether an argument is bit by bit what it was; those of which no copy was taken pass."""
    if isinstance(old, torch.Tensor):
        return old.is_quantized or _bits(old) == _bits(new.detach())
    if isinstance(old, np.ndarray):
        return old.dtype == new.dtype and old.tobytes() == new.tobytes()
    return repr(old) == repr(new) if old is not None else True


def _bits(X: torch.Tensor) -> bytes:
    return X.resolve_neg().reshape(-1).clone(memory_format=torch.contiguous_format).view(torch.uint8).numpy().tobytes()


def _warm(verbs: dict[str, Any]) -> None:
    """Compile and import what calls need, so that none is slow for it."""
    X = np.random.default_rng(0).normal(size=(20, 70)).astype(np.float32)
    for engine in ("fused", "reference"):
        for width in (3, 70):
            verbs["nearest_neighbors"](X[:, :width], X[:, :width], 3, engine=engine)
            verbs["score_clusters"](X[:, :width], np.arange(20) % 2, n_init=1, perplexity=3.0, engine=engine)
