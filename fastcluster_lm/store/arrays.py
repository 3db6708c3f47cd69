"""Named numpy arrays to and from the bytes of a safetensors file; nothing is unpickled, and no file is opened here."""

import json
import struct
from collections.abc import Mapping

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fastcluster_lm.errors import DataError

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


def decode_arrays(data: bytes) -> tuple[Arrays, dict[str, str]]:
    """Read the arrays and the text of a safetensors file.

    Errors: DataError if the bytes are not such a file, or hold a dtype that numpy lacks
    """
    try:
        arrays = load(data)
        # load has checked the header; it only keeps the text in it to itself
        (header_size,) = struct.unpack("<Q", data[:8])
        metadata = json.loads(data[8 : 8 + header_size]).get("__metadata__", {})
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise DataError(f"expected a safetensors file, found {error}") from error
    return arrays, metadata
