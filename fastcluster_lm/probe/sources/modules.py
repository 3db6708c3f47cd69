"""Read the states of named layers of any module at some tokens of each instance; it scores nothing, keeps no hook."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fastcluster_lm.errors import ProbeError, ShapeError, UsageError
from fastcluster_lm.probe.sources.inputs import Inputs, count_instances, rows_of
from fastcluster_lm.probe.sources.layer_names import (
    is_sharded,
    matching_layers,
    named_layers,
    sharding_classes,
    unwrapped,
)
from fastcluster_lm.probe.sources.tokens import ByLayer, Position, position_of, tokens_at
from fastcluster_lm.probe.undisturbed import undisturbed

# names of modules, or a function of (model, batch) that runs the model and gives what else there is, by name
Layers = str | Sequence[str] | Callable[[nn.Module, Any], Mapping[str, Tensor]]
# gives the tensor of a shape that states are written into, if there is one
Room = Callable[[tuple[int, int, int]], Tensor | None]


class LayerReader:
    """The named layers of one model, read afresh each time.

    layers: names of modules, or a function of the model and a batch of its inputs, as its forward takes them, that runs
            it and gives states by name, the same names each time
    positions: of the tokens, whose states come side by side: all layers of the first, then those of the next
    Notes:  states are float32, whatever the model computes in; a layer called more than once gives its last output
    Errors: UsageError if no module has such a name, naming the nearest and what there is
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Layers,
        *,
        positions: Sequence[ByLayer] = (-1,),
        batch_size: int = 256,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.model = unwrapped(model)
        self.sharded = is_sharded(self.model)
        self._function = layers if callable(layers) else None
        # those of a function are known once it was called
        self.names = (
            [] if callable(layers) else matching_layers(self.model, [layers] if isinstance(layers, str) else layers)
        )
        self.batch_size = batch_size
        self._positions, self._autocast = list(positions), autocast
        for position in self._positions:
            if isinstance(position, Mapping) and self.names:
                # a pattern that matches no module is refused, and so is a layer that no pattern matches
                matching_layers(self.model, [*position], "position")
                for name in self.names:
                    position_of(position, name)

    @property
    def device(self) -> torch.device:
        """Where the model takes its inputs: the device of its first tensor."""
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            return tensor.device
        return torch.device("cpu")

    def read(
        self, inputs: Inputs, chosen: Int[Tensor, " n"] | None = None, *, room: Room | None = None
    ) -> Float[Tensor, "layers n d"]:
        """Run the model over chosen instances, all by default, and give every layer's states, held once.

        chosen: their numbers, on the host
        room:   gives the tensor that they are written into, of a shape; by default a new one where the first layer is
        Shapes: layers of unlike widths are filled up with zeros, which changes no distance
        Errors: ProbeError if a layer gave nothing; ShapeError for outputs without a state at the position
        """
        modules = {} if self._function else named_layers(self.model)
        if gone := [name for name in self.names if name not in modules and not self._function]:
            raise ProbeError(f"the model has no layer {gone[0]!r} any more; it was replaced after the probe was made")
        chosen = torch.arange(count_instances(inputs), device="cpu") if chosen is None else chosen
        n = len(chosen)
        states = torch.empty(0)
        # by layer the states (B, d) at each position
        latest: dict[int, list[Tensor]] = {}
        rows = torch.arange(0, device="cpu")

        def keep(index: int) -> Callable[..., None]:
            def hook(_module: nn.Module, _arguments: Any, output: Any) -> None:
                name, out = self.names[index], self._states_of(self.names[index], output)
                latest[index] = [
                    self._select(name, out, position_of(position, name), inputs, rows) for position in self._positions
                ]

            return hook

        handles = []
        try:
            for index, name in enumerate(self.names if modules else ()):
                handles.append(modules[name].register_forward_hook(keep(index)))
            device = self.device
            with undisturbed(self.model), self._precision(device):
                for start, rows in zip(range(0, n, self.batch_size), chosen.split(self.batch_size), strict=True):
                    latest.clear()
                    chunk = rows_of(inputs, rows, device)
                    if self._function is None:
                        call_model(self.model, chunk)
                    else:
                        for index, output in enumerate(self._given_by(self._function, chunk)):
                            keep(index)(self.model, chunk, output)
                    if silent := [name for index, name in enumerate(self.names) if index not in latest]:
                        raise ProbeError(
                            f"layer {silent[0]!r} gave nothing in a forward of the probe's inputs; "
                            "expected it to be called: choose other layers"
                        )
                    # (B, d) of each layer at the first position, then at the next
                    places = range(len(self._positions))
                    chunks = [latest[index][at] for at in places for index in range(len(self.names))]
                    if not start:
                        widths = [chunk.shape[1] for chunk in chunks]
                        shape = (len(chunks), n, max(widths))
                        given = room(shape) if room else None
                        states = chunks[0].new_empty(shape) if given is None else given
                    self._put(chunks, widths, states[:, start : start + len(rows)])
        finally:
            for handle in handles:
                handle.remove()
            for part in self.model.modules():
                if isinstance(part, sharding_classes("fsdp", "FSDPModule")):
                    # whole weights that stay would go stale with the next optimiser step
                    part.reshard()
        return states

    def halve_batch(self) -> bool:
        """Run half as many instances at a time; False where that is one, or where ranks share a forward."""
        # they cannot begin it again alone
        if self.batch_size == 1 or self.sharded:
            return False
        self.batch_size //= 2
        return True

    def _given_by(self, function: Callable[[nn.Module, Any], Mapping[str, Tensor]], chunk: Any) -> list[Any]:
        """Let the caller's function run the model, and order what it gives by name as it did the first time."""
        given = function(self.model, chunk)
        if not isinstance(given, Mapping) or not given:
            raise UsageError(
                f"layers: expected the function to give states by name, {{'mlp': (B, T, D)}} say, got {given!r:.60}"
            )
        self.names = self.names or [str(name) for name in given]
        if {str(name) for name in given} != set(self.names):
            raise ProbeError(f"layers: the function gave {', '.join(map(str, given))} after {', '.join(self.names)}")
        by_name = {str(name): states for name, states in given.items()}
        return [by_name[name] for name in self.names]

    def _put(
        self, chunks: Sequence[Float[Tensor, "B _"]], widths: Sequence[int], states: Float[Tensor, "layers B d"]
    ) -> None:
        """Write one batch's states in their places, zeros beyond a layer's own width."""
        names = self.names * len(self._positions)
        for name, chunk, width, own in zip(names, chunks, widths, states, strict=True):
            if chunk.shape[1] != width:
                raise ShapeError(
                    f"layer {name!r} gives states of width {chunk.shape[1]} after ones of width {width}; expected one "
                    "width for all instances"
                )
            own[:, :width] = chunk
            own[:, width:] = 0.0

    def _precision(self, device: torch.device) -> torch.autocast:
        """Autocast as the caller does, or as asked for, past the cache: weights cast there may be a step old."""
        enabled = self._autocast is not None or torch.is_autocast_enabled(device.type)
        dtype = self._autocast or torch.get_autocast_dtype(device.type)
        return torch.autocast(device.type, dtype=dtype if enabled else None, enabled=enabled, cache_enabled=False)

    @staticmethod
    def _states_of(name: str, output: Any) -> Tensor:
        """Take the states of a layer's output, whole where they are sharded."""
        states = _first_tensor(output)
        if states is None:
            raise ShapeError(f"layer {name!r} gives a {type(output).__name__} without a tensor; choose another layer")
        if isinstance(states, sharding_classes("tensor", "DTensor")):
            states = states.full_tensor()
        return states

    @staticmethod
    def _select(
        name: str, states: Tensor, position: Position, inputs: Inputs, rows: Int[Tensor, " B"]
    ) -> Float[Tensor, "B d"]:
        """Take the state at a position, as a float32 copy, since the model may go on to write into its own."""
        if callable(position):
            states = position(states, rows)
        elif states.ndim == 3 and states.shape[0] == len(rows):
            states = states[
                torch.arange(len(rows), device="cpu"), tokens_at(position, inputs, rows, states.shape[1], name)
            ]
        if states.ndim != 2 or states.shape[0] != len(rows):
            raise ShapeError(
                f"layer {name!r} gives shape {tuple(states.shape)} for {len(rows)} instances; expected (B, D) or "
                "(B, T, D), instances first; give position=function of (output, rows) that makes (B, D) of it"
            )
        return states.detach().to(torch.float32, copy=True)


def call_model(model: nn.Module, chunk: Any) -> None:
    """Run a model over inputs as its forward takes them: alone, by keyword or in turn."""
    if isinstance(chunk, dict):
        model(**chunk)
    elif isinstance(chunk, tuple):
        model(*chunk)
    else:
        model(chunk)


def _first_tensor(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    entries = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else ()
    return next((found for entry in entries if (found := _first_tensor(entry)) is not None), None)
