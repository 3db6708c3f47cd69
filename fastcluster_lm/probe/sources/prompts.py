"""The layers' states of a causal language model of transformers at one token of each prompt; it loads and asks none."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from enum import Enum
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fastcluster_lm.errors import ProbeError, UsageError


class Layers(Enum):
    """What counts as the layers of a model of n blocks.

    RESIDUAL: n + 1: what the first block is given (layer 0, the embedding), then what each block gives. None is normed,
              so layers compare with each other, and with those of runs of `fclm train`
    HEAD:     n: what each block gives, the last one after the final norm, as the output head reads it: what is closest
              to an answer. No embedding: where all prompts end in one token it is one point. These are transformers'
              `hidden_states[1:]`
    """

    RESIDUAL = "residual"
    HEAD = "head"


class PromptReader:
    """A model whose layers are read at one token of each prompt.

    Units:  states in float32
    Errors: UsageError if the model has no list of as many blocks as its config says
    """

    def __init__(self, model: Any, layers: Layers) -> None:
        self._model, self._layers = model.base_model, layers
        config = model.config.get_text_config()
        self.n_blocks, self.width = int(config.num_hidden_layers), int(config.hidden_size)
        lists = [part for part in self._model.modules() if isinstance(part, nn.ModuleList)]
        found = next((part for part in lists if len(part) == self.n_blocks), None)
        if found is None:
            raise UsageError(
                f"{type(model).__name__}: expected a list of {self.n_blocks} blocks, as its config says, found lists "
                f"of {', '.join(str(len(part)) for part in lists) or 'none'}; models built otherwise are not read"
            )
        self._blocks = found

    @property
    def n_layers(self) -> int:
        """Count the layers that are read."""
        return self.n_blocks + (self._layers is Layers.RESIDUAL)

    def states_in_chunks(
        self, prompts: Sequence[Sequence[int]], batch_size: int
    ) -> Iterator[Float[Tensor, "layers chunk D"]]:
        """Give the states of `batch_size` prompts at a time, in their order, at the last token of each.

        Shapes: prompts, each of one token or more -> (n_layers, chunk, D) on the model's device
        Notes:  of a forward only these states are kept, not those of other tokens
        """
        device = next(self._model.parameters()).device
        for start in range(0, len(prompts), batch_size):
            some = prompts[start : start + batch_size]
            ends = torch.tensor([len(one) - 1 for one in some])
            width = int(ends.max()) + 1
            # filled up at the end, where no causal model looks
            tokens = torch.tensor([[*one, *[0] * (width - len(one))] for one in some])
            mask = (torch.arange(width) <= ends[:, None]).long()
            with torch.no_grad(), self.reading(ends.to(device)) as states:
                self._model(input_ids=tokens.to(device), attention_mask=mask.to(device), use_cache=False)
            yield torch.stack(states)

    @contextmanager
    def reading(self, ends: Int[Tensor, " chunk"]) -> Iterator[list[Float[Tensor, "chunk D"]]]:
        """Keep the states of the first forward of the body; they are whole when the body has ended.

        Shapes: ends (chunk,): the place of each prompt's token -> n_layers of (chunk, D)
        Errors: ProbeError if a block did not run, or not once
        """
        kept: list[Tensor] = []
        rows = torch.arange(len(ends), device=ends.device)
        # forwards after the first, of tokens that a model says by itself, are not read
        over = False

        def keep(states: Any) -> None:
            if not over:
                # some blocks give a tuple, the states first
                whole = states if isinstance(states, Tensor) else states[0]
                kept.append(whole[rows, ends].float())  # (chunk, T, D) -> (chunk, D)

        def before_first(_block: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            keep(given[0] if given else named["hidden_states"])

        def after_model(_model: nn.Module, _given: tuple[Any, ...], output: Any) -> None:
            nonlocal over
            if self._layers is Layers.HEAD and not over:
                # the last block's, now after the final norm
                kept[-1:] = [output.last_hidden_state[rows, ends].float()]
            over = True

        with ExitStack() as hooks:
            if self._layers is Layers.RESIDUAL:
                handle = self._blocks[0].register_forward_pre_hook(before_first, with_kwargs=True)
                hooks.callback(handle.remove)
            for block in self._blocks:
                handle = block.register_forward_hook(lambda _block, _given, states: keep(states))
                hooks.callback(handle.remove)
            hooks.callback(self._model.register_forward_hook(after_model).remove)
            yield kept
        if len(kept) != self.n_layers:
            raise ProbeError(f"a forward gave {len(kept)} layers; expected each of {self.n_blocks} blocks to run once")
