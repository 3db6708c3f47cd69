"""The levels of instructions that kernels are compiled for, and which this processor offers; it compiles nothing."""

import platform
from pathlib import Path

VARIABLE = "FCLM_MARCH"
NATIVE = "native"
# what a level asks of a processor beyond the level before it, by the names that Linux has for it
# Source: the x86-64 psABI's table of microarchitecture levels; pni is SSE3, abm LZCNT, xsave stands for OSXSAVE
_FLAGS = {
    "x86-64-v2": "cx16 lahf_lm popcnt pni ssse3 sse4_1 sse4_2",
    "x86-64-v3": "avx avx2 bmi1 bmi2 f16c fma abm movbe xsave",
    "x86-64-v4": "avx512f avx512bw avx512cd avx512dq avx512vl",
}
NAMED = tuple(_FLAGS)
# what helps where a compiler is older than the names of levels
COMPILERS = f"set {VARIABLE}={NATIVE}, or use GCC 11 / clang 12 or newer"


def choose(asked: str) -> str:
    """Give the level asked for; the highest named one that this processor offers where none is, else its own.

    Errors: ValueError for a level that is unknown, or that this processor does not offer
    """
    offered = named_here()
    if not asked:
        return offered[-1] if offered else NATIVE
    if asked in offered or asked == NATIVE:
        return asked
    if asked in NAMED and _is_x86() and not processor().startswith("flags"):
        untold = f"this system does not tell what its processor offers, so that {NATIVE} is what can be had"
        raise ValueError(f"{VARIABLE}: expected {NATIVE}, got {asked!r}: {untold}")
    known = " beyond this processor's" if asked in NAMED else ""
    raise ValueError(f"{VARIABLE}: expected one of {', '.join([*offered, NATIVE])}, got {asked!r}{known}")


def named_here() -> tuple[str, ...]:
    """Give the named levels that this processor offers, lowest first; none where it is no x86-64, or does not say."""
    flags = set(processor().split())
    offered: list[str] = []
    for name, wanted in _FLAGS.items():
        if not _is_x86() or not flags.issuperset(wanted.split()):
            break
        offered.append(name)
    return tuple(offered)


def _is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")


def processor() -> str:
    """Give what this processor can do, as its system says it: code made for one may not run on another."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())
