"""Ways to damage a file, drawn by a seed: its bytes, its place, its keys and values, its tensors; it judges nothing."""

import hashlib
import json
import os
import random
import shutil
import struct
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tomli_w

DEEP = 3000
NUMBERS = (0, -1, 1, 2, 3, 7, 999, 1001, 2**31, 2**53 + 1, 2**63, -(2**63) - 1, 10**30, 1e308, -1e308, 0.5, True)
WORDS = ("", "../../etc/passwd", "/dev/zero", "a\x00b", "\ud7ff", "x" * 20_000, "nan", "[red]", "</script>", "0")
# the damaged bytes, and what was done to them
Damage = Callable[[bytes, random.Random], tuple[bytes, str]]


def damaged(path: Path, others: list[Path], draw: random.Random) -> str:
    """Damage a file in place, in a way that suits its format; say what was done."""
    by_format: dict[str, tuple[Damage, ...]] = {
        ".toml": (toml_tree, toml_tree, toml_tree),
        ".json": (json_tree, json_tree, json_tree),
        ".jsonl": (line_tree, line_tree, line_tree, whole_lines),
        ".safetensors": (tensors, tensors, tensors, header),
    }
    ways = [*by_format.get(path.suffix, ()), in_bytes, in_bytes, None]
    way = draw.choice(ways)
    if way is None:
        return in_place(path, others, draw)
    data = path.read_bytes()
    changed, what = way(data, draw)
    path.write_bytes(changed)
    return what


def in_place(path: Path, others: list[Path], draw: random.Random) -> str:
    """Put something else where the file was."""
    what = draw.choice(("pipe", "folder", "dangling link", "device", "loop", "endless", "swapped", "gone"))
    path.unlink()
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what == "dangling link":
        path.symlink_to("nowhere")
    elif what == "device":
        path.symlink_to(draw.choice(("/dev/zero", "/dev/full", "/dev/tty")))
    elif what == "loop":
        path.symlink_to(path.name)
    elif what == "endless":
        with path.open("wb") as file:
            file.truncate(2**36)
    elif what == "swapped":
        other = draw.choice(others)
        shutil.copy(other, path)
        what = f"swapped for {other.parent.name}/{other.name}"
    return what


def in_bytes(data: bytes, draw: random.Random) -> tuple[bytes, str]:
    """Damage bytes as disks and transfers do."""
    at = draw.randrange(max(len(data), 1))
    size = draw.choice((1, 7, 64, 512, 4096))
    ways: dict[str, Callable[[], bytes]] = {
        "empty": lambda: b"",
        "cut": lambda: data[:at],
        "beginning cut off": lambda: data[at:],
        "bit flipped": lambda: data[:at] + bytes([(data[at] if data else 0) ^ 1 << draw.randrange(8)]) + data[at + 1 :],
        "zeroed": lambda: data[:at] + bytes(min(size, len(data) - at)) + data[at + size :],
        "random bytes": lambda: data[:at] + draw.randbytes(size) + data[at + size :],
        "bytes put in": lambda: data[:at] + draw.randbytes(size) + data[at:],
        "a piece twice": lambda: data[: at + size] + data[at:],
        "no UTF-8": lambda: data[:at] + b"\xff\xfe" + data[at:],
        "brackets": lambda: data[:at] + b"[" * 50_000 + data[at:],
        "more behind": lambda: data + draw.randbytes(size),
    }
    what = draw.choice(list(ways))
    return ways[what](), f"{what} at {at}"


def toml_tree(data: bytes, draw: random.Random) -> tuple[bytes, str]:
    """Change a key or a value of TOML."""
    if draw.random() < 0.1:
        return _deep_toml(data, draw)
    tree = tomllib.loads(data.decode())
    what = changed_tree(tree, draw, nulls=False)
    try:
        return tomli_w.dumps(tree).encode(), what
    except (ValueError, TypeError, RecursionError):
        return data + f"\nadded = {'[' * DEEP}".encode(), "nested deep"


def _deep_toml(data: bytes, draw: random.Random) -> tuple[bytes, str]:
    text = draw.choice(("a." * 20_000 + "b = 1", '"a".' * 20_000 + "b = 1", f"a = {'{b=' * DEEP}", "a = " + "1" * 5000))
    return f"{text}\n".encode() + data, f"begins with {text[:12]}"


def json_tree(data: bytes, draw: random.Random) -> tuple[bytes, str]:
    """Change a key or a value of JSON; a digest at the end is made anew, as whoever means harm does."""
    tree = json.loads(data)
    sealed = tree.pop("sha256", None) if isinstance(tree, dict) and "files" in tree else None
    what = changed_tree(tree, draw, nulls=True)
    text = json.dumps(tree, indent=1).encode()
    if sealed is not None:
        text = text.removesuffix(b"\n}") + b",\n"
        text += f' "sha256": "{hashlib.sha256(text).hexdigest()}"\n}}\n'.encode()
    return text, what


def line_tree(data: bytes, draw: random.Random) -> tuple[bytes, str]:
    """Change a key or a value in one line."""
    lines = data.splitlines()
    at = draw.randrange(len(lines))
    tree = json.loads(lines[at])
    what = changed_tree(tree, draw, nulls=True)
    lines[at] = json.dumps(tree).encode()
    return b"\n".join([*lines, b""]), f"line {at + 1}: {what}"


def whole_lines(data: bytes, draw: random.Random) -> tuple[bytes, str]:
    """Lose, repeat or mix lines."""
    lines = data.splitlines(keepends=True)
    at = draw.randrange(len(lines))
    what = draw.choice(("lost", "twice", "mixed", "blank"))
    if what == "lost":
        del lines[at]
    elif what == "twice":
        lines.insert(at, lines[at])
    elif what == "blank":
        lines.insert(at, b"\n")
    else:
        draw.shuffle(lines)
    return b"".join(lines), f"line {at + 1} {what}"


def changed_tree(tree: Any, draw: random.Random, *, nulls: bool) -> str:
    """Change one place of nested values, and say how."""
    holder, key, path = _place(tree, draw)
    if holder is None:
        return "nothing: no values"
    what = draw.choice(("gone", "renamed", "number", "number", "word", "kind", "nan", "deep", "many"))
    if what == "gone":
        del holder[key]
    elif what == "renamed" and isinstance(holder, dict):
        name = draw.choice((f"{key}s", "", "../x", "a\x00b"))
        holder[name] = holder.pop(key)
        what = f"renamed {name!r}"
    elif what in ("number", "renamed"):
        holder[key] = draw.choice(NUMBERS)
        what = f"= {holder[key]}"
    elif what == "word":
        holder[key] = draw.choice(WORDS)
        what = f"= {holder[key][:20]!r}"
    elif what == "kind":
        holder[key] = draw.choice([[], {}, [1], {"a": 1}, "a", 1, *([None] if nulls else [])])
        what = f"= {holder[key]!r}"
    elif what == "nan":
        holder[key] = draw.choice((float("nan"), float("inf")))
    elif what == "many":
        holder[key] = [holder[key]] * 2000
    else:
        value: Any = holder[key]
        for _ in range(draw.choice((3, 400))):
            value = [value]
        holder[key] = value
    return f"{path} {what}"


def _place(tree: Any, draw: random.Random) -> tuple[Any, Any, str]:
    """Draw a place in nested values, of any depth: what holds it, its key, and its path."""
    holder, key, path = None, None, "$"
    while isinstance(tree, dict | list) and tree:
        holder, key = tree, draw.choice(list(tree) if isinstance(tree, dict) else range(len(tree)))
        path += f".{key}"
        tree = holder[key]
        if draw.random() < 0.25:
            break
    return holder, key, path


def tensors(data: bytes, draw: random.Random) -> tuple[bytes, str]:
    """Write the tensors anew, one of them otherwise."""
    import numpy as np
    from safetensors.numpy import load, save

    arrays = load(data)
    if not arrays:
        return data[:-1], "cut"
    name = draw.choice(sorted(arrays))
    array = arrays.pop(name)
    ways: dict[str, Callable[[], Any]] = {
        "gone": lambda: None,
        "float64": lambda: array.astype(np.float64),
        "int8": lambda: array.astype(np.int8),
        "uint8": lambda: array.astype(np.uint8),
        "float16": lambda: array.astype(np.float16),
        "nan": lambda: np.full(array.shape, np.nan, np.float32),
        "infinite": lambda: np.full(array.shape, np.inf, np.float32),
        "largest": lambda: np.full(array.shape, _extreme(array.dtype, low=False), array.dtype),
        "least": lambda: np.full(array.shape, _extreme(array.dtype, low=True), array.dtype),
        "flat": lambda: array.ravel(),
        "one longer": lambda: np.concatenate([np.atleast_1d(array), np.atleast_1d(array)[:1]]),
        "one shorter": lambda: np.atleast_1d(array)[:-1],
        "none": lambda: np.atleast_1d(array)[:0],
        "turned": lambda: np.ascontiguousarray(array.T),
        "scalar": lambda: np.array(1, array.dtype),
        "wide": lambda: np.repeat(np.atleast_1d(array)[..., None], 2, -1),
    }
    what = draw.choice(list(ways))
    with np.errstate(all="ignore"):
        changed = ways[what]()
    if changed is not None:
        arrays[draw.choice((name, name, name, "../x", f"{name}s"))] = np.ascontiguousarray(changed)
    text = draw.choice(({"warm": "false"}, {"format": "99"}, {"format": "x"}, {"warm": "x" * 9}, {"format": "1"}))
    return save(arrays, metadata=text), f"{name} {what}, text {text}"


def _extreme(dtype: Any, *, low: bool) -> Any:
    import numpy as np

    if dtype.kind == "b":
        return not low
    limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    return limits.min if low else limits.max


def header(data: bytes, draw: random.Random) -> tuple[bytes, str]:
    """Change what a safetensors file says of itself."""
    (size,) = struct.unpack("<Q", data[:8])
    if draw.random() < 0.3:
        length = draw.choice((0, 1, 2**63, 2**64 - 1, size + 1, size - 1, len(data), 10**8))
        return struct.pack("<Q", length) + data[8:], f"header of {length} bytes"
    tree = json.loads(data[8 : 8 + size])
    what = changed_tree(tree, draw, nulls=True)
    text = json.dumps(tree).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :], f"header: {what}"


def resealed(checkpoint: Path) -> None:
    """Make the digests of a checkpoint's files anew, so that what was damaged passes for what was written."""
    state = checkpoint / "state.json"
    record = json.loads(state.read_bytes())
    record.pop("sha256", None)
    for name, entry in record["files"].items():
        path = checkpoint / name
        if path.is_file() and path.stat().st_size < 2**30:
            data = path.read_bytes()
            entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    text = json.dumps(record, indent=1).encode().removesuffix(b"\n}") + b",\n"
    state.write_bytes(text + f' "sha256": "{hashlib.sha256(text).hexdigest()}"\n}}\n'.encode())
