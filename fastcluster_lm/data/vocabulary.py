"""The tokens of a task set and their numbers; it splits no text but instructions into characters."""

from collections.abc import Iterable
from dataclasses import dataclass

from fastcluster_lm.tasks import TaskSet

PAD = "<pad>"


@dataclass(frozen=True)
class Vocabulary:
    """Tokens in the order of their ids; id 0 pads. A string that serves in two roles is one token."""

    tokens: tuple[str, ...]

    @classmethod
    def of(cls, taskset: TaskSet) -> "Vocabulary":
        """Collect letters, inputs and outputs of a task set, in that order."""
        seen = dict.fromkeys((PAD, *taskset.alphabet, *taskset.inputs, *taskset.outputs))
        return cls(tuple(seen))

    def __len__(self) -> int:
        return len(self.tokens)

    def encode(self, tokens: Iterable[str]) -> list[int]:
        """Number tokens; a KeyError names one that is not in the vocabulary."""
        index = {token: i for i, token in enumerate(self.tokens)}
        return [index[token] for token in tokens]

    def decode(self, ids: Iterable[int]) -> list[str]:
        """Give the tokens of ids."""
        return [self.tokens[i] for i in ids]
