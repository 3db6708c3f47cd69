"""Run a causal language model of transformers over prompts and give each layer's state at the last token."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fastcluster_lm.errors import ProbeError, UsageError


class PromptReader:
    """A model whose layers are read: the input of its first block, then the output of every block.

    Units:  states in float32; the last is before the final norm, unlike transformers' `hidden_states`
    Errors: UsageError if the model has no list of as many blocks as its config says
    """

    def __init__(self, model: Any) -> None:
        self._model = model.base_model
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

    def states_in_chunks(
        self, prompts: Sequence[Sequence[int]], batch_size: int
    ) -> Iterator[Float[Tensor, "layers chunk D"]]:
        """Give the states of `batch_size` prompts at a time, in their order.

        Shapes: prompts, each of one token or more -> (n_blocks + 1, chunk, D) on the model's device
        Units:  of a forward only these states are kept, not those of other tokens
        """
        device = next(self._model.parameters()).device
        for start in range(0, len(prompts), batch_size):
            some = prompts[start : start + batch_size]
            ends = torch.tensor([len(one) - 1 for one in some])
            width = int(ends.max()) + 1
            # filled up at the end, where no causal model looks
            tokens = torch.tensor([[*one, *[0] * (width - len(one))] for one in some])
            mask = (torch.arange(width) <= ends[:, None]).long()
            yield self._states(tokens.to(device), mask.to(device), ends.to(device))

    @torch.no_grad()
    def _states(self, tokens: Tensor, mask: Tensor, ends: Tensor) -> Float[Tensor, "layers chunk D"]:
        kept: list[Tensor] = []
        rows = torch.arange(len(tokens), device=tokens.device)

        def keep(states: Any) -> None:
            # some blocks give a tuple, the states first
            whole = states if isinstance(states, Tensor) else states[0]
            kept.append(whole[rows, ends].float())

        def before(_block: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            keep(given[0] if given else named["hidden_states"])

        handles = [self._blocks[0].register_forward_pre_hook(before, with_kwargs=True)]
        handles += [block.register_forward_hook(lambda _block, _given, states: keep(states)) for block in self._blocks]
        try:
            self._model(input_ids=tokens, attention_mask=mask, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        if len(kept) != self.n_blocks + 1:
            raise ProbeError(f"a forward gave {len(kept)} layers; expected each of {self.n_blocks} blocks to run once")
        return torch.stack(kept)
