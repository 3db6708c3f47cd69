"""Arrays as few bytes for a page that unpacks them in the browser, with gzip, which browsers bring; lossless but for
the scores' last digits, and it knows nothing of runs."""

import gzip

import numpy as np

# bits of a float32's 23 that are kept: a score is off by at most 1 part in 16,384
KEPT_BITS = 13


def pack(array: np.ndarray, *, moving: bool = False) -> np.ndarray:
    """Write an array as gzip bytes: all first bytes of its numbers, then all second ones, and so on.

    Shapes: array of uint16, uint32 or float32, any shape -> (bytes,) uint8; with `moving` each entry along the first
            axis is written as its difference from the one before, modulo 2**16
    """
    if moving:
        array = np.diff(array, axis=0, prepend=np.zeros_like(array[:1]))
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    planes = little.reshape(-1).view(np.uint8).reshape(-1, array.dtype.itemsize).T
    # mtime: the same run gives the same page
    return np.frombuffer(gzip.compress(planes.tobytes(), 9, mtime=0), np.uint8)


def rounded(values: np.ndarray) -> np.ndarray:
    """Round float32 numbers to KEPT_BITS bits after the first, which pack to less; NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    drop = 23 - KEPT_BITS
    nearest = (bits + (1 << (drop - 1))) >> drop << drop
    return np.where(np.isnan(values), np.float32(np.nan), nearest.astype(np.uint32).view(np.float32))
