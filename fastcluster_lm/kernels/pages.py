"""Room for what compiled code writes on a CPU, in huge pages where the system gives them; it fills nothing."""

import math

import numpy as np
import torch
from torch import Tensor

# from so many bytes on numpy asks for huge pages
HUGE = 4 * 2**20


def room(*shape: int, dtype: torch.dtype) -> Tensor:
    """Give an empty CPU tensor, whose first writing takes a third of the time where it is large.

    Source: numpy asks Linux for huge pages from 4 MiB on; torch does so only where THP_MEM_ALLOC_ENABLE=1 is set.
            80 MB took 7.6 ms to write for the first time, torch's own 20.8, on two cores of an EPYC
    """
    if math.prod(shape) * dtype.itemsize < HUGE:
        return torch.empty(shape, dtype=dtype)
    return torch.from_numpy(np.empty(shape, torch.empty(0, dtype=dtype).numpy().dtype))
