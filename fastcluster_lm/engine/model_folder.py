"""What a model's folder holds, judged from its files alone before any library reads them; it loads nothing.

Files may be links, as in the hub's cache, where they lead to `blobs` of the same model; no link may lead elsewhere.
"""

import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Required, TypedDict

from fastcluster_lm.errors import FclmError, UsageError
from fastcluster_lm.store.arrays import read_shapes
from fastcluster_lm.store.files import explaining, read_json
from fastcluster_lm.untrusted import MIB, check_regular

INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"
# tokenizers of large vocabularies have 30
MOST_FILE = 512 * MIB
# what a library takes from these at its own discretion
READ_BY_OTHERS = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "additional_chat_templates/*")
# keys of config.json that count parts of a model: no more than there are tensors, or rows of the largest
LAYERS = re.compile(r"(num|n)_(\w+_)?layers?|n_layer|\w+_layers")
COUNTS = re.compile(r"(num|n)_\w+")
# widths and lengths; beyond them no number names a size
LARGEST = 2**31


class Index(TypedDict, total=False):
    """The index of weights in several files."""

    weight_map: Required[dict[str, str]]


def check_model_folder(folder: Path) -> dict[str, tuple[int, ...]]:
    """Refuse a folder that leads out of itself, names a pickle, or describes what its weights cannot be.

    Names:  the shape of every tensor, by name
    Errors: UsageError naming the file, what was expected and what came
    """
    try:
        roots = _roots(folder)
        for path in _read_by_others(folder):
            _check_file(path, roots, MOST_FILE)
        config = read_json(folder / "config.json")
        _check_names(folder / "config.json", config)
        if (folder / "tokenizer_config.json").exists():
            _check_names(folder / "tokenizer_config.json", read_json(folder / "tokenizer_config.json"))
        if os.path.lexists(folder / "adapter_config.json"):
            raise ValueError("an adapter (adapter_config.json) loads another model; merge it into its model first")
        shapes = _shapes(folder, roots)
        _check_counts(config, shapes)
    except ValueError as error:
        raise UsageError(f"{folder}: {error}") from error
    except UsageError:
        raise
    except FclmError as error:
        raise UsageError(str(error)) from error
    return shapes


def _roots(folder: Path) -> list[Path]:
    """List the folders that files may lie in: the model's own, and in the hub's cache that of its blobs."""
    real = folder.resolve()
    if real.parent.name == "snapshots" and real.parents[1].name.startswith("models--"):
        return [real, real.parents[1] / "blobs"]
    return [real]


def _read_by_others(folder: Path) -> Iterator[Path]:
    for pattern in READ_BY_OTHERS:
        yield from sorted(folder.glob(pattern))


def _check_file(path: Path, roots: list[Path], most_bytes: int | None = None) -> None:
    with explaining("read", path):
        real = Path(os.path.realpath(path, strict=True))
        found = real.stat()
        check_regular(found.st_mode, path)
    if not any(real.is_relative_to(root) for root in roots):
        raise ValueError(f"{path.name} is a link out of the folder, to {real}; copy the file into it")
    if most_bytes is not None and found.st_size > most_bytes:
        raise ValueError(f"{path.name}: expected at most {most_bytes // MIB} MiB, found {found.st_size // MIB}")


def _check_names(path: Path, values: Mapping[str, Any]) -> None:
    """Refuse a name of a file that leads out of the folder, or is a pickle's."""
    for key, value in values.items():
        if key not in ("transformers_weights", "gguf_file") and not key.endswith(("_file", "_files")):
            continue
        for name in value if isinstance(value, list) else [value]:
            if name is None:
                continue
            # tokenizers of older versions name where they were made; transformers passes over it
            if not isinstance(name, str) or (_leads_out(name) and key != "tokenizer_file"):
                raise ValueError(f"{path.name}: {key}: expected a name in this folder, found {name!r}")
            if key == "transformers_weights" and not name.endswith((".safetensors", ".safetensors.index.json")):
                raise ValueError(f"{path.name}: {key}: expected safetensors, found {name!r}; pickles are not read")


def _leads_out(name: str) -> bool:
    return "/" in name or "\\" in name or name in ("", ".", "..") or "\0" in name


def _shapes(folder: Path, roots: list[Path]) -> dict[str, tuple[int, ...]]:
    """Read what the weights' headers say."""
    single, index = folder / WEIGHTS, folder / INDEX
    if os.path.lexists(single):
        weight_map: dict[str, str] = {}
        files = {WEIGHTS}
    elif index.exists():
        weight_map = read_json(index, Index)["weight_map"]
        files = set(weight_map.values())
    else:
        names = ", ".join(path.name for path in sorted(folder.glob("*.safetensors"))) or "none"
        raise ValueError(f"expected {WEIGHTS}, or {INDEX} that names several files, found {names}")
    # all that transformers could take, if it chose otherwise
    files |= {path.name for path in folder.glob("model*.safetensors")}
    shapes: dict[str, tuple[int, ...]] = {}
    for name in sorted(files):
        if _leads_out(name) or not name.endswith(".safetensors"):
            raise ValueError(f"{INDEX}: expected names of *.safetensors in this folder, found {name!r}")
        _check_file(folder / name, roots)
        with explaining("read", folder / name):
            try:
                shapes |= read_shapes(folder / name)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
    if absent := sorted(name for name in weight_map if name not in shapes):
        raise ValueError(f"{INDEX} names a tensor {absent[0]!r} that is in none of its files")
    if not shapes:
        raise ValueError(f"{', '.join(sorted(files))}: expected weights, found no tensor")
    return shapes


def _check_counts(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], where: str = "config.json") -> None:
    """Refuse numbers that no model of these weights can have, before anything is built by them."""
    widest = max((size for shape in shapes.values() for size in shape), default=0)
    for key, value in config.items():
        name = f"{where}: {key}"
        if isinstance(value, Mapping):
            _check_counts(value, shapes, name)
        if type(value) is not int:
            continue
        most = len(shapes) if LAYERS.fullmatch(key) else max(widest, len(shapes)) if COUNTS.fullmatch(key) else LARGEST
        if key in ("n_positions", "n_ctx"):
            most = LARGEST
        if abs(value) > most:
            raise ValueError(f"{name}: expected at most {most} by the sizes of the weights, found {value}")


def n_values(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Count the values of all tensors."""
    return sum(math.prod(shape) for shape in shapes.values())
