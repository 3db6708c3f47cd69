"""Collects the states of one position a sequence: plain torch on a CPU, one Triton launch a layer on CUDA."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.library import custom_op


class StateCapture:
    """Take the state at one position of each sequence from layer after layer, detached, as fp32.

    Shapes: positions (B,) -> states (B, n_layers, D)
    Notes:  on CUDA their squared norms come from the same pass; a position outside the sequence gives NaN there, an
            error on a CPU
    """

    # on CUDA each layer goes at once into its slice of one buffer: no activations are kept for a last torch.cat,
    # which in evaluation would hold them all, and a list of layers would need a table of addresses that a CUDA graph
    # cannot renew; the op writes into its arguments and has no gradient, so it gets detached tensors only.
    # on a CPU the plain operators stay visible to torch.compile, which fuses them

    def __init__(self, like: Float[Tensor, "B T D"], positions: Int[Tensor, " B"], n_layers: int) -> None:
        batch, _, width = like.shape
        self._positions = positions
        self._slices: list[Tensor] = []
        self._on_cuda = like.is_cuda
        if self._on_cuda:
            self._states = like.new_empty((batch, n_layers, width), dtype=torch.float32)
            self._sq_norms = like.new_empty((batch, n_layers), dtype=torch.float32)
            self._next = 0

    def add(self, x: Float[Tensor, "B T D"]) -> None:
        """Take the next layer's state at the positions."""
        if self._on_cuda:
            self._write(x.detach(), self._positions)
        else:
            self._slices.append(
                x.detach().gather(1, self._positions[:, None, None].expand(-1, -1, x.shape[-1])).float()
            )

    def add_rows(self, rows: Float[Tensor, "B 1 D"]) -> None:
        """Take the next layer's state where it is computed at the positions alone."""
        if self._on_cuda:
            self._write(rows.detach(), torch.zeros_like(self._positions))
        else:
            self._slices.append(rows.detach().float())

    def states(self) -> Float[Tensor, "B layers D"]:
        """Give all that was taken."""
        return self._states if self._on_cuda else torch.cat(self._slices, 1)

    def sq_norms(self) -> Float[Tensor, "B layers"] | None:
        """Give each state's squared norm, finite only where the state is; None on a CPU, where it needs a pass."""
        return self._sq_norms if self._on_cuda else None

    def _write(self, x: Tensor, positions: Tensor) -> None:
        _capture_on_cuda(x, positions, self._states, self._sq_norms, self._next)
        self._next += 1


# opaque to the compiler: an op made of its kernel would load Triton on every CPU that imports this
@custom_op("fclm::capture_states", mutates_args=("states", "sq_norms"))
def _capture_on_cuda(x: Tensor, positions: Tensor, states: Tensor, sq_norms: Tensor, layer: int) -> None:
    launch(x, positions, states, sq_norms, layer)


@_capture_on_cuda.register_fake
def _describe(x: Tensor, positions: Tensor, states: Tensor, sq_norms: Tensor, layer: int) -> None:
    """Only writes."""


def block_sizes(width: int) -> dict[str, int]:
    """Choose the tile: 1,024 cells, so that narrow states share a program and wide ones take a few turns."""
    block_d = next((size for size in (32, 256) if width <= size), 1024)
    return {"BLOCK_B": 1024 // block_d, "BLOCK_D": block_d}


def launch(
    x: Float[Tensor, "B T D"],
    positions: Int[Tensor, " B"],
    states: Float[Tensor, "B layers D"],
    sq_norms: Float[Tensor, "B layers"],
    layer: int,
) -> None:
    """Run the Triton kernel for one layer: on CUDA tensors, or on any in Triton's interpreter.

    Shapes: states (B, layers, D), sq_norms (B, layers) contiguous, written in place at `layer`
    """
    from fastcluster_lm.kernels.capture_states.kernel import capture_states_kernel

    x, positions = x if x.stride(-1) == 1 else x.contiguous(), positions.contiguous()
    batch, n_tokens, width = x.shape
    if batch == 0:
        return
    sizes = block_sizes(width)
    capture_states_kernel[(-(-batch // sizes["BLOCK_B"]),)](
        x,
        positions,
        states,
        sq_norms,
        batch,
        n_tokens,
        width,
        x.stride(0),
        x.stride(1),
        states.shape[1],
        layer,
        **sizes,
    )
