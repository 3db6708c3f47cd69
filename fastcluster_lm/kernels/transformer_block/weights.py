"""The weights of one block, by name; it computes nothing."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class BlockWeights(NamedTuple):
    """Weights as nn.LayerNorm and nn.Linear keep them: a linear layer's with a row an output.

    Shapes: qkv (3 D, D), out (D, D), fc (M, D), proj (D, M), biases a number an output; norms (D,)
    """

    ln_1: Float[Tensor, " d"]
    ln_1_bias: Float[Tensor, " d"]
    qkv: Float[Tensor, "three_d d"]
    qkv_bias: Float[Tensor, " three_d"]
    out: Float[Tensor, "d d"]
    out_bias: Float[Tensor, " d"]
    ln_2: Float[Tensor, " d"]
    ln_2_bias: Float[Tensor, " d"]
    fc: Float[Tensor, "m d"]
    fc_bias: Float[Tensor, " m"]
    proj: Float[Tensor, "d m"]
    proj_bias: Float[Tensor, " d"]
