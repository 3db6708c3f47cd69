"""transformer_block in plain torch, as GPT-2 has it; never optimised."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from fastcluster_lm.kernels.transformer_block.weights import BlockWeights


def transformer_block(
    x: Float[Tensor, "B T D"], positions: Int[Tensor, "B P"] | None, weights: BlockWeights, n_heads: int
) -> Float[Tensor, "B P D"]:
    """Attention, then an MLP, each on a normalised input and added to it, at the positions or at all tokens.

    Shapes: x (B, T, D), positions (B, P) -> (B, P, D), P = T without positions
    Source: Radford et al. 2019: pre-norm, causal attention, GELU by tanh
    """
    width = x.shape[-1]
    normed = F.layer_norm(x, (width,), weights.ln_1, weights.ln_1_bias)
    asked, residual = (normed, x) if positions is None else (_rows(normed, positions), _rows(x, positions))
    q = F.linear(asked, weights.qkv[:width], weights.qkv_bias[:width])
    k, v = F.linear(normed, weights.qkv[width:], weights.qkv_bias[width:]).chunk(2, -1)
    q, k, v = (part.unflatten(-1, (n_heads, -1)).transpose(1, 2) for part in (q, k, v))  # (B, H, T, D/H)
    mask = None
    if positions is not None:
        mask = (positions.new_tensor(range(x.shape[1])) <= positions[:, :, None])[:, None]  # (B, 1, P, T)
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
    residual = residual + F.linear(mixed.transpose(1, 2).flatten(2), weights.out, weights.out_bias)
    normed = F.layer_norm(residual, (width,), weights.ln_2, weights.ln_2_bias)
    hidden = F.gelu(F.linear(normed, weights.fc, weights.fc_bias), approximate="tanh")
    return residual + F.linear(hidden, weights.proj, weights.proj_bias)


def _rows(x: Float[Tensor, "B T D"], positions: Int[Tensor, "B P"]) -> Float[Tensor, "B P D"]:
    return x.gather(1, positions[:, :, None].expand(-1, -1, x.shape[-1]))
