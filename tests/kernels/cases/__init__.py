"""One file a kernel op: what to compile, on which shapes to run it, how to judge a run; a new kernel adds its file.

A case module has
    kernels()             the Triton functions of the op, with every tile that its block-size function can return
    SHAPES, SLOW          shapes to run always, and those to run where minutes are to be had
    check(shape, device)  runs the op on poisoned memory and raises AssertionError; interpreted and on a GPU alike
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Kernel:
    """A Triton function for pointers of given types, and all its launch configurations.

    name: that of its budgets; pointers: by argument, as Triton writes them ("*fp32"); tiles: its constants by name, and
    num_warps, num_stages where the op sets them; all other arguments have the types that their annotations say
    """

    name: str
    function: Any
    pointers: dict[str, str]
    tiles: list[dict[str, Any]]

    def signature(self, tile: dict[str, Any]) -> dict[str, str]:
        """Give each argument's type, "constexpr" for a constant."""
        return {
            param.name: "constexpr" if param.name in tile else self.pointers.get(param.name) or param.annotation_type
            for param in self.function.params
        }


def tiles_of(block_sizes: Callable[..., dict[str, int]], arguments: Iterable[tuple], **constants: Any) -> list[dict]:
    """Give every different answer of an op's block-size function, with the constants that the launch adds."""
    tiles: list[dict] = []
    for values in arguments:
        tile = {**block_sizes(*values), **constants}
        if tile not in tiles:
            tiles.append(tile)
    return tiles


def describe(tile: dict[str, Any]) -> str:
    """Name a tile in the budgets."""
    return " ".join(f"{name}={value}" for name, value in tile.items())


def all_cases() -> dict[str, ModuleType]:
    """Find every case beside this file."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return {name: importlib.import_module(f"{__name__}.{name}") for name in names}
