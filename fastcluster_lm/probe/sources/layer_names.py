"""Names the layers of a model as if nothing compiled, replicated, sharded or adapted it; it runs none of them."""

import difflib
import re
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from fastcluster_lm.errors import UsageError

# what wrappers add to a module's name, and those of adapters (LoRA and its like)
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_OF_PEFT = {"base_model", "model"}
# names that an error lists
_SHOWN = 12


def unwrapped(model: nn.Module) -> nn.Module:
    """Take off what compiles or replicates a model; what shards it stays, since only that can gather its weights."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod  # type: ignore[assignment]
        elif isinstance(model, DistributedDataParallel | DataParallel):
            model = model.module
        else:
            return model


def is_sharded(model: nn.Module) -> bool:
    """Say whether every rank must take part in a forward."""
    wrappers = sharding_classes("fsdp", "FSDPModule", "FullyShardedDataParallel")
    parts = (isinstance(part, wrappers) for part in model.modules())
    return any(parts) or any(isinstance(weight, sharding_classes("tensor", "DTensor")) for weight in model.parameters())


def matching_layers(model: nn.Module, patterns: Sequence[str], what: str = "layers") -> list[str]:
    """List the modules that match any pattern, in the module's own order; `*` stands for one part between dots.

    Errors: UsageError if a pattern matches none, naming the nearest and what there is
    """
    names = [name for name in named_layers(model) if name]
    # a name as the wrapped model spells it is the same layer's
    patterns = [
        _plain(pattern) if not any(matches(name, pattern) for name in names) else pattern for pattern in patterns
    ]
    for pattern in patterns:
        if not any(matches(name, pattern) for name in names):
            known = list(dict.fromkeys(re.sub(r"(?<![^.])\d+(?![^.])", "*", name) for name in names))
            near = difflib.get_close_matches(pattern, [*known, *names], n=1, cutoff=0.5)
            shown = ", ".join(known[:_SHOWN]) + (f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else "")
            raise UsageError(
                f"{what}: expected names of the model's modules, but none matches {pattern!r}"
                f"{f'; did you mean {near[0]!r}?' if near else ''}; there are: {shown or 'none'}"
            )
    return [name for name in names if any(matches(name, pattern) for pattern in patterns)]


def sharding_classes(module: str, *names: str) -> tuple[Any, ...]:
    """Give the classes of torch.distributed that say a model is sharded, none where nothing has loaded them.

    Loading them takes 1.4 s, and without them nothing can be sharded
    """
    loaded = sys.modules.get(f"torch.distributed.{module}")
    return tuple(getattr(loaded, name) for name in names) if loaded is not None else ()


def matches(name: str, pattern: str) -> bool:
    """Say whether a pattern stands for a layer; `*` stands for one part between dots, or some of it."""
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def named_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Name all modules as if nothing wrapped the model or a part of it.

    The innermost of the modules with one name is the layer itself
    """
    found, plain, parts = {}, {"": ""}, dict(model.named_modules())
    for name, part in parts.items():
        above, _, own = name.rpartition(".")
        if name:
            plain[name] = plain[above] if _wraps(parts[above], own) else f"{plain[above]}.{own}".removeprefix(".")
        found[plain[name]] = part
    return found


def _wraps(part: nn.Module, child: str) -> bool:
    """Say whether a module is there for the one below it alone."""
    if isinstance(part, DistributedDataParallel | DataParallel):
        return child == "module"
    of_peft = child in _OF_PEFT and any(kind.__module__.partition(".")[0] == "peft" for kind in type(part).__mro__)
    return child in _WRAPPERS or of_peft


def _plain(pattern: str) -> str:
    kept = ".".join(segment for segment in pattern.split(".") if segment not in _WRAPPERS)
    return kept.removeprefix("module.").removeprefix("base_model.model.")
