"""Named numpy arrays to and from safetensors files, whose headers are checked first; nothing is unpickled."""

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fastcluster_lm.errors import DataError
from fastcluster_lm.store.files import decode_object
from fastcluster_lm.store.schemas import TensorEntry, check
from fastcluster_lm.untrusted import MIB, opened_regular, read_piece

# the format itself allows a header of 100 MB; one of a model of a thousand layers has 1 MB
MOST_HEADER = 16 * MIB

Arrays = dict[str, np.ndarray]


def encode_arrays(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> bytes:
    """Write arrays of any shape, and text beside them, as one safetensors file.

    Errors: DataError if a name or text is no text, or a dtype has no place in the format: objects, text, dates
    """
    for name, array in arrays.items():
        if not isinstance(name, str) or not isinstance(array, np.ndarray):
            raise DataError(f"array {name!r} is a {type(array).__name__}; expected a numpy array under a text name")
        # dtype kinds: truth values, integers, floats, complex; all else would need a pickle
        if array.dtype.kind not in "biufc":
            raise DataError(f"array {name!r} has dtype {array.dtype}; expected numbers or truth values")
    for key, text in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(text, str):
            raise DataError(f"metadata {key!r} is a {type(text).__name__}; expected text for text")
    # safetensors 0.8 writes a strided view's memory as it lies, which gives other numbers without a word
    native = {name: np.asarray(array, array.dtype.newbyteorder("="), order="C") for name, array in arrays.items()}
    try:
        # safetensors 0.8 writes a broken header for no arrays with empty metadata
        return _with_sorted_text(save(native, metadata=dict(metadata) if metadata else None))
    except (SafetensorError, KeyError) as error:
        raise DataError(f"these arrays do not fit a safetensors file: {error}") from error


def _with_sorted_text(data: bytes) -> bytes:
    """Put the text in the header in the order of its keys: safetensors 0.8 draws another order in each process."""
    (header_size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + header_size])
    if len(header.get("__metadata__", ())) < 2:
        return data
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data[8 + header_size :]


def read_arrays(path: Path) -> tuple[Arrays, dict[str, str]]:
    """Read the arrays and the text of a safetensors file, whose header is checked before the rest is read.

    Errors: as for decode_arrays; OSError as for opened_regular
    """
    with opened_regular(path) as descriptor:
        size = os.fstat(descriptor).st_size
        first = read_piece(descriptor, 0, 8)
        _read_header(read_piece(descriptor, 0, 8 + _header_length(first, size)), size)
        data = read_piece(descriptor, 0, size)
    return decode_arrays(data)


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Read the shape of every tensor from the header of a safetensors file, and nothing else of it.

    Errors: as for read_arrays
    """
    with opened_regular(path) as descriptor:
        size = os.fstat(descriptor).st_size
        length = _header_length(read_piece(descriptor, 0, 8), size)
        return decode_shapes(read_piece(descriptor, 0, 8 + length), size)


def decode_shapes(data: bytes, size: int | None = None) -> dict[str, tuple[int, ...]]:
    """Read the shape of every tensor from the first bytes of a safetensors file of a size, or from all its bytes.

    Errors: DataError if the bytes are not such a file's
    """
    entries, _ = _read_header(data, len(data) if size is None else size)
    return {name: tuple(entry["shape"]) for name, entry in entries.items()}


def decode_arrays(data: bytes) -> tuple[Arrays, dict[str, str]]:
    """Read the arrays and the text of a safetensors file from its bytes.

    Errors: DataError if the bytes are not such a file, or hold a dtype that numpy lacks
    """
    _, metadata = _read_header(data, len(data))
    try:
        return load(data), metadata
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise DataError(f"expected a safetensors file, found {error}") from error


def _read_header(data: bytes, size: int) -> tuple[dict[str, Any], dict[str, str]]:
    """Read what the first bytes of a file say of each tensor, and the text; both agree with the size of the file.

    Errors: DataError if they do not, or are no such header
    """
    length = _header_length(data[:8], size)
    try:
        entries = decode_object(data[8 : 8 + length])
        metadata: Any = entries.pop("__metadata__", {})
        check(metadata, dict[str, str])
        check(entries, dict[str, TensorEntry])
    except (ValueError, RecursionError) as error:
        raise DataError(f"expected a safetensors file, found a header with {error}") from error
    end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)  # type: ignore[index]
    if 8 + length + end != size:
        raise DataError(f"expected a safetensors file of {8 + length + end} bytes, as its header says, found {size}")
    return entries, metadata


def _header_length(first: bytes, size: int) -> int:
    length = int.from_bytes(first, "little")
    if len(first) < 8 or not 2 <= length <= min(size - 8, MOST_HEADER):
        raise DataError(f"expected a safetensors file, found a header of {length} bytes in a file of {size}")
    return length
