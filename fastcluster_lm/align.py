"""Make a model treat one label's inputs as another's through its states, by an edit of one weight or a gate; untrained.

What the model computes is taken from labelled states of one layer: the centroid of each label, or of each label in each
context (an input token, say). The move is from the source's centroid to the target's.
  states, keys   read a layer's states, and what a linear map takes, of any model with named layers
  fit            centroids and moves: an Alignment
  Alignment      edit changes one weight so that source keys give the move; gate moves states on their way
  Applied        what was done to the model, to be undone
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from fastcluster_lm.errors import DataError, ProbeError, ShapeError, UsageError
from fastcluster_lm.probe.sources.inputs import as_inputs
from fastcluster_lm.probe.sources.layer_names import is_sharded, matching_layers, named_layers, unwrapped
from fastcluster_lm.probe.sources.modules import LayerReader, call_model
from fastcluster_lm.probe.sources.tokens import Position, tokens_at

# (n,) integers or text, as an array, a tensor or a list
Labels = np.ndarray | Tensor | Sequence[Any]


def states(
    model: nn.Module, inputs: Any, layer: str, *, position: Position = -1, batch_size: int = 256
) -> Float[Tensor, "n d"]:
    """Run a model and give the states of one layer, as a ClusterProbe reads them.

    inputs:   what its forward takes, one row an instance
    position: whose token's state: an index, the name of an input whose last marked token it is ("attention_mask"),
              marks or indices of each row, or a function of (output, rows)
    Shapes: n instances -> (n, d) float32, where the model is
    Errors: UsageError for a name that no one layer has; ShapeError for outputs without a state at the position
    """
    name, _ = _layer_named(model, layer, "layer")
    return LayerReader(model, [name], positions=[position], batch_size=batch_size).read(as_inputs(inputs))[0]


def keys(
    model: nn.Module, inputs: Any, linear: str, *, position: Position = -1, batch_size: int = 256
) -> Float[Tensor, "n d_in"]:
    """Run a model and give what one linear map takes at a token of each instance; arguments as in `states`.

    Shapes: n instances -> (n, d_in) float32
    Errors: UsageError, ShapeError as `states`; ProbeError if the map is not called, as within a fused block
    """
    name, part = _layer_named(model, linear, "linear")

    def taken(whole: nn.Module, chunk: Any) -> Mapping[str, Tensor]:
        found: dict[str, Tensor] = {}
        handle = part.register_forward_pre_hook(lambda _part, given: found.update({name: given[0]}))
        try:
            call_model(whole, chunk)
        finally:
            handle.remove()
        if not found:
            raise ProbeError(
                f"linear: expected {name!r} to be called in a forward of the inputs, it was not; a fused block "
                "computes its maps itself (fuse_blocks(False) has a model of fclm call them)"
            )
        return found

    return LayerReader(model, taken, positions=[position], batch_size=batch_size).read(as_inputs(inputs))[0]


def fit(
    states: Float[Tensor, "n d"] | np.ndarray,
    labels: Labels,
    *,
    source: Any,
    target: Any,
    context: Labels | None = None,
) -> "Alignment":
    """Find where a source label's states lie, and where the target's lie, that they are to be moved to.

    states:  of one layer, of all labels that the move must tell the source from
    context: of each state, for a centroid of each label in each context; without it one for each label
    Shapes: states (n, d), labels and context (n,)
    Errors: ShapeError for shapes that do not fit; DataError for states that are not finite, labels that no state has,
            one for both, or a context of the source without the target
    """
    X = torch.as_tensor(states).detach().double()
    if X.ndim != 2 or not len(X):
        raise ShapeError(f"states: expected (n, d), one or more, got shape {tuple(X.shape)}")
    if not bool(X.isfinite().all()):
        raise DataError("states: expected finite numbers, got NaN or infinity")
    names, label = _coded(labels, len(X), "labels")
    contexts, where = _coded(["all"] * len(X) if context is None else context, len(X), "context")
    ends = [_index(names, wanted, what) for what, wanted in (("source", source), ("target", target))]
    if ends[0] == ends[1]:
        raise DataError(f"target: expected another label than the source's, got {target!r} for both")
    # a centroid for each (label, context) that has states, and its number, -1 where there are none
    cells = torch.from_numpy(label * len(contexts) + where).to(X.device)
    known, own = cells.unique(return_inverse=True)
    sums = X.new_zeros(len(known), X.shape[1]).index_add_(0, own, X)
    centroids = sums / torch.bincount(own)[:, None]  # (k, d)
    number = torch.full((len(names), len(contexts)), -1, device=X.device)
    number.view(-1)[known] = torch.arange(len(known), device=X.device)
    # what a state whose nearest centroid is the source's is moved by: 0 for all others
    moves = torch.zeros_like(centroids)
    from_, to = number[ends[0]], number[ends[1]]
    if lost := ((from_ >= 0) & (to < 0)).nonzero()[:, 0].tolist():
        missing = contexts[lost[0]]
        raise DataError(
            f"context: expected the target's states in every context of the source, got none in {missing!r}"
        )
    both = from_ >= 0
    moves[from_[both]] = centroids[to[both]] - centroids[from_[both]]
    is_source = torch.zeros(len(known), dtype=torch.bool, device=X.device)
    is_source[from_[both]] = True
    rows = is_source[own].nonzero()[:, 0]
    goals = centroids[to[torch.from_numpy(where).to(X.device)[rows]]] - X[rows]
    return Alignment(source, target, centroids, is_source, moves, rows, goals, len(X))


@dataclass(frozen=True, eq=False, repr=False)
class Alignment:
    """The centroids of a layer's states by label, or by label and context, and the move from a source to a target.

    centroids: (k, d) float64, of all labels and contexts that have states
    is_source: (k,), which of them are the source's
    moves:     (k, d), target less source, 0 for centroids of other labels
    rows:      (m,), which of the states given to `fit` are the source's
    goals:     (m, d), the target's centroid less each of these states
    """

    source: Any
    target: Any
    centroids: Float[Tensor, "k d"]
    is_source: Bool[Tensor, " k"]
    moves: Float[Tensor, "k d"]
    rows: Int[Tensor, " m"]
    goals: Float[Tensor, "m d"]
    n_states: int

    def __repr__(self) -> str:
        k, d = self.centroids.shape
        return f"<Alignment of {self.source!r} with {self.target!r} by {k} centroids of width {d}>"

    def moved(self, X: Float[Tensor, "n d"], *, strength: float = 1.0) -> Float[Tensor, "n d"]:
        """Move the states whose nearest centroid is the source's by target less source; all others keep their bits.

        strength: how much of the way
        Shapes: X (n, d) -> (n, d), in its dtype, with its gradient
        """
        if X.ndim != 2 or X.shape[1] != self.centroids.shape[1]:
            raise ShapeError(f"X: expected (n, {self.centroids.shape[1]}), as fitted, got shape {tuple(X.shape)}")
        centroids, is_source, moves = (own.to(X.device) for own in (self.centroids, self.is_source, self.moves))
        with torch.no_grad():
            # |x - c|^2 less |x|^2, which all centroids share; ties go to the first
            nearest = (centroids.square().sum(1) - 2 * X.double() @ centroids.T).argmin(1)  # (n,)
        return torch.where(is_source[nearest][:, None], (X.double() + strength * moves[nearest]).to(X.dtype), X)

    def edit(
        self,
        model: nn.Module,
        linear: str,
        *,
        keys: Float[Tensor, "n d_in"],
        hold: float = 1.0,
        ridge: float = 1e-4,
        held: Float[Tensor, "m d_in"] | None = None,
    ) -> "Applied":
        """Change one linear map's weight in closed form: source keys give the way to the target, all others nothing.

        linear: the name of an nn.Linear, or a Conv1D of transformers, whose output is added to the layer's states, such
                as the last map of the MLP of that layer's block; its bias stays
        keys:   what it takes for the states given to `fit`, in their order
        hold:   weight of the keys that are to give nothing, beside 1 for those of the source: more of it forgets less
        ridge:  weight of the squared change, times the summed squares of the source's keys over d_in
        held:   further keys that are to give nothing, of text that the model shall go on with as before, say
        Notes:  the change D makes sum |D k - goal|^2 + hold sum |D k'|^2 + ridge |D|^2 least, solved in float64
        Errors: UsageError for another kind of layer, or a sharded model; ShapeError, DataError for keys that do not fit
        Source: Meng et al. 2022 (MEMIT), equation 14: the target's centroid is the value, other labels are what stays
        """
        name, part = _layer_named(model, linear, "linear")
        if is_sharded(unwrapped(model)):
            raise UsageError("model: expected one with whole weights, got a sharded one")
        is_conv1d = any(kind.__name__ == "Conv1D" and "transformers" in kind.__module__ for kind in type(part).__mro__)
        if not (isinstance(part, nn.Linear) or is_conv1d):
            raise UsageError(f"linear: expected an nn.Linear or a Conv1D, got {type(part).__name__} {name!r}")
        weight: Tensor = part.weight  # type: ignore[assignment]
        if not weight.is_floating_point():
            raise DataError(f"linear: expected floating-point weights, got {weight.dtype} in {name!r}")
        # (d_out, d_in), whichever way it lies
        d_out, d_in = reversed(weight.shape) if is_conv1d else weight.shape
        if d_out != self.goals.shape[1]:
            width = self.goals.shape[1]
            raise ShapeError(
                f"linear: expected one that gives width {width}, as the states have, got {d_out} of {name!r}"
            )
        K = _keys_checked(keys, d_in, "keys")
        if len(K) != self.n_states:
            raise ShapeError(f"keys: expected {self.n_states}, one for each state given to fit, got {len(K)}")
        if not (0 <= hold < float("inf") and 0 < ridge < float("inf")):
            raise DataError(f"hold, ridge: expected hold 0 or more and ridge above 0, got {hold} and {ridge}")
        rows = self.rows.to(K.device)
        others = torch.ones(len(K), dtype=torch.bool, device=K.device)
        others[rows] = False
        stay = [K[others], *([] if held is None else [_keys_checked(held, d_in, "held").to(K.device)])]
        # normal equations of both sums: (K'K + hold K''K'' + ridge mean(diag K'K)) D' = K' goals
        own = K[rows]
        left = own.T @ own  # (d_in, d_in)
        scale = left.diagonal().mean()
        if scale == 0:
            raise DataError("keys: expected keys of the source that are not all 0, got zeros")
        left.diagonal().add_(ridge * scale)
        for k in stay:
            left += hold * (k.T @ k)
        change = torch.linalg.solve(left, own.T @ self.goals.to(K.device))  # (d_in, d_out), as Conv1D has it
        change = change if is_conv1d else change.T
        before = weight.detach().clone()
        after = (before.double() + change.to(before.device)).to(before.dtype)

        def undo() -> None:
            if not torch.equal(weight, after):
                raise DataError(
                    f"undo: expected {name!r} as it was edited, got other weights; undo later changes first"
                )
            weight.copy_(before)

        with torch.no_grad():
            weight.copy_(after)
        return Applied(torch.no_grad()(undo))

    def gate(self, model: nn.Module, layer: str, *, position: int | str = -1, strength: float = 1.0) -> "Applied":
        """Move a layer's states on their way, at one token of each sequence, where the source's centroid is nearest.

        position: an index, or the name of an argument of the model's forward that marks tokens, of which the last one
                  counts ("attention_mask"), or gives each row's index
        strength: how much of the way from source to target
        Notes:  every forward is gated, so a cache of keys and values has each new token looked at too; a nearest
                centroid there always is, however far. Other states keep their bits
        Errors: UsageError for a name that no one layer has, a compiled model, which would never call the gate, or
                padding at the position; ShapeError in the forward for outputs that are not (B, d) or (B, T, d)
        """
        if not isinstance(position, int | str):
            raise UsageError(f"position: expected an index or the name of an input, got {position!r:.60}")
        name, part = _layer_named(model, layer, "layer")
        if any(hasattr(own, "_orig_mod") or own._compiled_call_impl is not None for own in model.modules()):
            raise UsageError("model: expected one that is not compiled, got one that is; gate it before torch.compile")
        whole = unwrapped(model)
        given: dict[str, Any] = {}

        def enter(_whole: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given.clear()
            given.update(inspect.signature(whole.forward).bind(*args, **kwargs).arguments | kwargs)

        def at_layer(_part: nn.Module, _args: Any, output: Any) -> Any:
            if type(output) in (tuple, list) and output:
                return type(output)((at_layer(_part, _args, output[0]), *output[1:]))
            d = self.centroids.shape[1]
            if not isinstance(output, Tensor) or output.ndim not in (2, 3) or output.shape[-1] != d:
                shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise ShapeError(f"layer: expected {name!r} to give (B, {d}) or (B, T, {d}), as fitted, got {shape}")
            if output.ndim == 2:
                return self.moved(output, strength=strength)
            rows = torch.arange(len(output), device="cpu")
            at = tokens_at(position, given, rows, output.shape[1], name).to(output.device)
            gated = output.clone()
            gated[rows.to(output.device), at] = self.moved(output[rows.to(output.device), at], strength=strength)
            return gated

        handles = [
            whole.register_forward_pre_hook(enter, with_kwargs=True),
            part.register_forward_hook(at_layer),
            whole.register_forward_hook(lambda *_: given.clear(), always_call=True),
        ]

        def undo() -> None:
            for handle in handles:
                handle.remove()

        return Applied(undo)


class Applied:
    """What an alignment did to a model; `undo`, or the end of a `with` block, takes it back exactly.

    Notes: weights come back bit for bit, hooks are removed; undoing twice does nothing
    """

    def __init__(self, undo: Callable[[], object]) -> None:
        self._undo: Callable[[], object] | None = undo

    def undo(self) -> None:
        """Take it back.

        Errors: DataError if the weight was changed since, by a later edit or by training, which would be lost
        """
        if self._undo is not None:
            self._undo()
            self._undo = None

    def __enter__(self) -> "Applied":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()


def _layer_named(model: nn.Module, name: str, what: str) -> tuple[str, nn.Module]:
    """Find one layer by its name, as the plain model has it."""
    whole = unwrapped(model)
    found = matching_layers(whole, [name], what)
    if len(found) != 1:
        raise UsageError(
            f"{what}: expected the name of one of the model's modules, got {name!r}, which {len(found)} match"
        )
    return found[0], named_layers(whole)[found[0]]


def _coded(given: Labels, n: int, what: str) -> tuple[list[Any], np.ndarray]:
    """Number labels in their order."""
    values = given.detach().cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)
    if values.shape != (n,):
        raise ShapeError(f"{what}: expected ({n},), one for each state, got shape {values.shape}")
    names, codes = np.unique(values, return_inverse=True)
    return names.tolist(), codes


def _index(names: Sequence[Any], wanted: Any, what: str) -> int:
    plain = wanted.item() if isinstance(wanted, Tensor | np.generic) else wanted
    if plain not in names:
        shown = ", ".join(map(repr, names[:12])) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
        raise DataError(f"{what}: expected one of the labels {shown}, got {wanted!r}")
    return names.index(plain)


def _keys_checked(given: Tensor, d_in: int, what: str) -> Float[Tensor, "n d_in"]:
    K = torch.as_tensor(given).detach().double()
    if K.ndim != 2 or K.shape[1] != d_in:
        raise ShapeError(f"{what}: expected (n, {d_in}), as the map takes them, got shape {tuple(K.shape)}")
    if not bool(K.isfinite().all()):
        raise DataError(f"{what}: expected finite numbers, got NaN or infinity")
    return K
