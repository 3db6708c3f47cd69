"""The op transformer_block: a block of GPT-2 forward and backward as one call, for narrow models on a CPU."""

from fastcluster_lm.kernels.transformer_block.op import fits, transformer_block
from fastcluster_lm.kernels.transformer_block.weights import BlockWeights

__all__ = ["BlockWeights", "fits", "transformer_block"]
