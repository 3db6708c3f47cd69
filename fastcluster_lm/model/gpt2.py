"""A GPT-2-style decoder that hands out the hidden states of chosen tokens of a sequence; it computes no loss."""

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from fastcluster_lm.config import ModelConfig
from fastcluster_lm.kernels import StateCapture
from fastcluster_lm.kernels.transformer_block import BlockWeights, transformer_block


class ModelOutput(NamedTuple):
    """What one forward pass gives."""

    logits: Float[Tensor, "..."]  # (B, V) at the output position, or (B, T, V) if all tokens were asked for
    # detached; 0 is the embedding; of several probed positions all layers of the first, then all of the next
    states: Float[Tensor, "B layers D"]
    sq_norms: Float[Tensor, "B layers"] | None = None  # of the states, where a kernel gave them on the way


class HiddenOutput(NamedTuple):
    """What one forward pass gives before the output head."""

    hidden: Float[Tensor, "..."]  # (B, D) at the output position, or (B, T, D); after the final norm
    states: Float[Tensor, "B layers D"]  # as in ModelOutput
    sq_norms: Float[Tensor, "B layers"] | None = None


class TrainableModel(nn.Module):
    """What training and evaluation ask of a model: its config, and a forward with GPT2's arguments and output."""

    config: ModelConfig


class GPT2(TrainableModel):
    """GPT-2's architecture: pre-norm blocks, tanh-GELU, learned positions, tied output head.

    Shapes: tokens (B, T) -> logits (B, V) or (B, T, V), states (B, P * (n_layers + 1), D)
    Source: Radford et al. 2019; weights correspond one to one to transformers' GPT2LMHeadModel
    """

    def __init__(self, config: ModelConfig, vocab_size: int, n_positions: int, generator: torch.Generator) -> None:
        super().__init__()
        d_model = config.d_model
        self.config = config
        self.n_positions = n_positions
        with generator.device:
            self.wte = Embedding(vocab_size, d_model)
            self.wpe = Embedding(n_positions, d_model)
            self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
            self.ln_f = nn.LayerNorm(d_model)
            self.drop = nn.Dropout(config.dropout)
        self._draw_weights(generator)

    def forward(
        self,
        tokens: Int[Tensor, "B T"],
        output_position: Int[Tensor, " B"],
        probe_positions: Int[Tensor, "B P"] | None = None,
        all_tokens: bool = False,
    ) -> ModelOutput:
        """Predict the token after each output position, and hand out every layer's state at the probed positions.

        Shapes: tokens (B, T), output_position (B,), probe_positions (B, P), by default the output position alone
        Notes:  states are detached, so no gradient ever flows through them
        """
        output = self.hidden(tokens, output_position, probe_positions, all_tokens)
        return ModelOutput(F.linear(output.hidden, self.wte.weight), output.states, output.sq_norms)

    def hidden(
        self,
        tokens: Int[Tensor, "B T"],
        output_position: Int[Tensor, " B"],
        probe_positions: Int[Tensor, "B P"] | None = None,
        all_tokens: bool = False,
    ) -> HiddenOutput:
        """Give what the output head takes, for a loss that wants no logits; `wte.weight` is the head.

        Shapes: as forward, with hidden (B, D) or (B, T, D) in place of logits
        """
        needed = output_position[:, None]  # (B, 1), or (B, 1 + P) where others than the output's are probed
        if probe_positions is not None:
            needed = torch.cat((needed, probe_positions), 1)
        probed = (needed if probe_positions is None else probe_positions).unbind(1)  # P of (B,)
        x = self.drop(self.wte(tokens) + self.wpe.weight[: tokens.shape[1]])
        captures = [StateCapture(x, position, len(self.blocks) + 1) for position in probed]
        for capture in captures:
            capture.add(x)
        for block in self.blocks[:-1]:
            x = block(x)
            for capture in captures:
                capture.add(x)
        if all_tokens:
            x = self.blocks[-1](x)
            for capture in captures:
                capture.add(x)
        else:
            # nothing after the last block looks at other positions, so it is computed for these alone
            x = cast(Block, self.blocks[-1]).at(x, needed)  # (B, 1 or 1 + P, D)
            first = x.shape[1] - len(captures)
            for at, capture in enumerate(captures, start=first):
                capture.add_rows(x[:, at : at + 1])
            x = x[:, 0]
        return HiddenOutput(self.ln_f(x), *_side_by_side(captures))

    def fuse_blocks(self, fused: bool) -> None:
        """Let each block run as one op forward and one backward, or operation by operation; it rounds otherwise."""
        for block in self.blocks:
            cast(Block, block).fused = fused

    def _draw_weights(self, generator: torch.Generator) -> None:
        # GPT-2: normal weights, residual projections scaled down by the number of residual additions
        std = self.config.init_std
        for name, weight in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(weight)
            elif "ln_" in name:
                nn.init.ones_(weight)
            else:
                scale = 1 / math.sqrt(2 * self.config.n_layers) if "c_proj" in name else 1.0
                nn.init.normal_(weight, std=std * scale, generator=generator)


class Embedding(nn.Embedding):
    """torch's, without default weights: they would be drawn from the global generator, and GPT2 draws its own.

    (On the meta device, where there are none to draw, torch loads its compiler to say so: 1.9 s)
    """

    def reset_parameters(self) -> None:
        """Draw nothing."""


class Linear(nn.Linear):
    """torch's, without default weights, as Embedding."""

    def reset_parameters(self) -> None:
        """Draw nothing."""


class Block(nn.Module):
    """Attention, then an MLP, each on a normalised input and added to it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d_model = config.d_model
        d_mlp = config.d_mlp or 4 * d_model
        self.n_heads = config.n_heads
        self.dropout = config.dropout
        self.fused = False
        self.ln_1 = nn.LayerNorm(d_model)
        self.c_attn = Linear(d_model, 3 * d_model)
        self.attn_c_proj = Linear(d_model, d_model)
        self.ln_2 = nn.LayerNorm(d_model)
        self.c_fc = Linear(d_model, d_mlp)
        self.mlp_c_proj = Linear(d_mlp, d_model)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        if self.fused:
            return transformer_block(x, None, self._weights(), self.n_heads)
        q, k, v = (self._heads(part) for part in self.c_attn(self.ln_1(x)).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=self._attention_dropout(), is_causal=True)
        return self._finish(x, mixed)

    def at(self, x: Float[Tensor, "B T D"], positions: Int[Tensor, "B P"]) -> Float[Tensor, "B P D"]:
        """Compute the block for a few positions only; keys and values still come from all that precede them."""
        if self.fused:
            return transformer_block(x, positions, self._weights(), self.n_heads)
        d_model = x.shape[-1]
        normed = self.ln_1(x)
        weight, bias = self.c_attn.weight, self.c_attn.bias
        q = self._heads(F.linear(_gather(normed, positions), weight[:d_model], bias[:d_model]))  # (B, H, P, D/H)
        k, v = (self._heads(part) for part in F.linear(normed, weight[d_model:], bias[d_model:]).chunk(2, -1))
        visible: Bool[Tensor, "B 1 P T"] = torch.arange(x.shape[1], device=x.device) <= positions[:, None, :, None]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, dropout_p=self._attention_dropout())
        return self._finish(_gather(x, positions), mixed)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)  # (B, H, T, D/H)

    def _finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        x = x + self.drop(self.attn_c_proj(mixed.transpose(1, 2).flatten(2)))
        hidden = F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh")
        return x + self.drop(self.mlp_c_proj(hidden))

    def _weights(self) -> BlockWeights:
        ln_1, qkv, out = self.ln_1, self.c_attn, self.attn_c_proj
        ln_2, fc, proj = self.ln_2, self.c_fc, self.mlp_c_proj
        attention = (ln_1.weight, ln_1.bias, qkv.weight, qkv.bias, out.weight, out.bias)
        return BlockWeights(*attention, ln_2.weight, ln_2.bias, fc.weight, fc.bias, proj.weight, proj.bias)

    def _attention_dropout(self) -> float:
        return self.dropout if self.training else 0.0


def weight_shapes(config: ModelConfig, vocab_size: int, n_positions: int) -> dict[str, tuple[int, ...]]:
    """Give the shape of every weight by its name in a state, without building a model."""
    d, mlp = config.d_model, config.d_mlp or 4 * config.d_model
    block: dict[str, tuple[int, ...]] = {"ln_1.weight": (d,), "ln_1.bias": (d,), "ln_2.weight": (d,), "ln_2.bias": (d,)}
    for name, rows, columns in (
        ("c_attn", 3 * d, d),
        ("attn_c_proj", d, d),
        ("c_fc", mlp, d),
        ("mlp_c_proj", d, mlp),
    ):
        block |= {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (vocab_size, d), "wpe.weight": (n_positions, d)}
    for index in range(config.n_layers):
        shapes |= {f"blocks.{index}.{name}": shape for name, shape in block.items()}
    return {**shapes, "ln_f.weight": (d,), "ln_f.bias": (d,)}


def hugging_face_state(model: GPT2) -> dict[str, Tensor]:
    """Name and lay out the weights as transformers' GPT2LMHeadModel does.

    Source: transformers' GPT-2 stores linear layers as Conv1D, that is transposed
    """
    names = {"c_attn": "attn.c_attn", "attn_c_proj": "attn.c_proj", "c_fc": "mlp.c_fc", "mlp_c_proj": "mlp.c_proj"}
    state = {}
    for name, weight in model.state_dict().items():
        if not name.startswith("blocks."):
            state[f"transformer.{name}"] = weight
            continue
        _, index, part, kind = name.split(".")
        is_linear = part in names
        key = f"transformer.h.{index}.{names.get(part, part)}.{kind}"
        state[key] = weight.T.contiguous() if is_linear and kind == "weight" else weight
    state["lm_head.weight"] = model.wte.weight.detach()
    return state


def _side_by_side(captures: Sequence[StateCapture]) -> tuple[Tensor, Tensor | None]:
    """Join what was captured at P positions: states (B, P * layers, D) and their squared norms (B, P * layers)."""
    states, sq_norms = [one.states() for one in captures], [one.sq_norms() for one in captures]
    if len(captures) == 1:
        return states[0], sq_norms[0]
    known = [one for one in sq_norms if one is not None]
    return torch.cat(states, 1), torch.cat(known, 1) if known else None


def _gather(x: Float[Tensor, "B T D"], positions: Int[Tensor, "B P"]) -> Float[Tensor, "B P D"]:
    return x.gather(1, positions[:, :, None].expand(-1, -1, x.shape[-1]))
