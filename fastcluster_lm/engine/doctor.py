"""What a machine offers a run: driver, packages, engines, compiler, threads, each with a reason; it starts no run."""

import os
import platform
from collections.abc import Callable

import torch

from fastcluster_lm.device import PACKAGES, cpu_cores, describe_gpus, package_versions
from fastcluster_lm.errors import FclmError
from fastcluster_lm.kernels import native
from fastcluster_lm.kernels.compilation import levels
from fastcluster_lm.scores.engines import engine_report

COLUMNS = ("part", "name", "value", "note")


def examine() -> list[dict[str, str]]:
    """List what was found, a row each, with COLUMNS; note says why, or what to do."""
    rows = [("system", "python", platform.python_version(), "")]
    rows.append(("system", "platform", f"{platform.system()} {platform.machine()}", ""))
    rows += [("gpu", name, value, "") for name, value in describe_gpus().items()]
    installed = package_versions(PACKAGES)
    rows += [("package", name, installed.get(name, "not installed"), "") for name in PACKAGES]
    for engine in engine_report():
        used = ", ".join(f"{name} {version}" for name, version in engine["versions"].items())
        note = f"{engine['reason']} ({used})" if used else engine["reason"]
        rows.append(("engine", engine["name"], "usable" if engine["available"] else "not usable", note))
    compiled, by, origin = native.outlook()
    note = _shortened(origin) if compiled else f"slower torch code runs in their place: {_shortened(by)}"
    rows.append(("cpu", "kernels", f"compiled by {by}" if compiled else "not compiled", note))
    rows.append(("cpu", "kernels' level", native.level(), "FCLM_MARCH names another; scores depend on it"))
    rows.append(("cpu", "cores", str(cpu_cores()), ""))
    rows.append(("cpu", "torch threads", str(torch.get_num_threads()), "training.threads sets them"))
    rows.append(("cpu", "kernel threads", str(native.thread_count()), "scores.threads sets them"))
    policy = os.environ.get("OMP_WAIT_POLICY", "not set")
    slow = "" if policy.upper() == "PASSIVE" else "threads that spin stall on a shared machine; set it to PASSIVE"
    rows.append(("cpu", "OMP_WAIT_POLICY", policy, slow))
    return [dict(zip(COLUMNS, row, strict=True)) for row in rows]


def compile_kernels(say: Callable[[str], None]) -> None:
    """Compile what this machine lacks of kernels for the level in use, and for native where FCLM_MARCH names none.

    Errors: UsageError for a level that is not offered here; FclmError where they cannot be compiled or kept
    """
    in_use = native.level()
    try:
        for level in (in_use,) if os.environ.get(levels.VARIABLE) else dict.fromkeys((in_use, levels.NATIVE)):
            came, kept = native.compile_missing(level, say)
            say(f"{level}: {came} kernels came with the installation, {kept} are in {native.cache_dir() / level}")
    except native.NativeError as error:
        raise FclmError(f"kernels could not be compiled: {error}") from error


def _shortened(text: str) -> str:
    """Write the home folder as ~, so that what is sent on names no one."""
    home = os.path.expanduser("~")
    return text.replace(home + os.sep, "~" + os.sep) if home != os.sep else text
