"""What a run folder holds that must not change: its rows, values and tensors by name; clocks and paths are left out."""

import hashlib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors

Row = dict[str, Any]
# a table's rows, or the values of another file by their names
Contents = dict[str, list[Row] | dict[str, Any]]

# what the clock alone decides
CLOCKS = (
    *("step_ms", "probe_ms", "probe_wait_ms", "tokens_per_s"),
    *("probe_seconds", "probe_wait_seconds", "step_seconds", "probe_share", "wall_seconds"),
)
# the machine's facts, and who writes to the folder
PASSED_OVER = ("lock", "environment.json")
# digests of files that are read here tensor by tensor, and why something was chosen, in words
NO_RESULT = re.compile(r"files\..*|sha256|.*_(reason|notes)")


def contents_of(folder: Path) -> Contents:
    """Read every file below a run folder, tables row by row, tensors as a digest each."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in PASSED_OVER)
    return {path.relative_to(folder).as_posix(): _read(path) for path in files}


def _read(path: Path) -> list[Row] | dict[str, Any]:
    data = path.read_bytes()
    if path.suffix == ".jsonl":
        return [_without_clocks(json.loads(line)) for line in data.splitlines()]
    if path.suffix == ".safetensors":
        return _tensors(path, data)
    if path.suffix in (".json", ".toml"):
        values = json.loads(data) if path.suffix == ".json" else tomllib.loads(data.decode())
        named = _without_clocks(dict(_named(values)))
        return {name: value for name, value in named.items() if not NO_RESULT.fullmatch(name)}
    return {"bytes": _digest(data)}


def _tensors(path: Path, data: bytes) -> dict[str, str]:
    """Give each tensor's dtype, shape and digest, and what is written beside them."""
    with safetensors.safe_open(path, framework="numpy") as file:
        beside = file.metadata() or {}
    tensors = {
        name: f"{tensor['dtype']}{list(tensor['shape'])} {_digest(tensor['data'])}"
        for name, tensor in safetensors.deserialize(data)
    }
    return dict(sorted(tensors.items())) | {f"metadata.{name}": beside[name] for name in sorted(beside)}


def _named(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Walk through nested values: each with the names that lead to it, as a.b.c."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _named(value, f"{before}{name}.")
        else:
            yield before + name, value


def _without_clocks(row: Row) -> Row:
    return {name: value for name, value in row.items() if name not in CLOCKS}


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
