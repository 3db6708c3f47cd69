"""Instances as tensors that live on the device; it draws nothing and shuffles nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Int
from torch import Tensor

from fastcluster_lm.data.vocabulary import PAD, Vocabulary
from fastcluster_lm.tasks import TaskSet


@dataclass(frozen=True)
class Instances:
    """Instruction and input of each instance, its output, and what it belongs to.

    Shapes: tokens (n, T), all others (n,)
    """

    tokens: Int[Tensor, "n T"]  # instruction, then the input token; padded at the end
    output_position: Int[Tensor, " n"]  # where the input token stands, so where the output is predicted
    targets: Int[Tensor, " n"]  # the output token's id
    task: Int[Tensor, " n"]
    distribution: Int[Tensor, " n"]
    input: Int[Tensor, " n"]
    output: Int[Tensor, " n"]
    instruction: Int[Tensor, " n"]  # identity of the instruction string within the split
    probe_positions: Int[Tensor, "n P"] | None = None  # where states are probed; None: at the input token alone

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def inputs(self, index: Int[Tensor, " batch"]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Give what the model's forward takes for the chosen instances."""
        probe = None if self.probe_positions is None else self.probe_positions[index]
        return self.tokens[index], self.output_position[index], probe

    def select(self, index: Int[Tensor, " chosen"]) -> "Instances":
        """Keep the chosen instances, in that order."""
        columns = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        chosen = {name: value[index] for name, value in columns.items() if isinstance(value, Tensor)}
        return replace(self, **chosen)

    def next_tokens(self, index: Int[Tensor, " batch"]) -> Int[Tensor, "batch T"]:
        """Give the token that follows each position, -100 where none is to be predicted."""
        tokens, end = self.tokens[index], self.output_position[index][:, None]
        shifted = torch.cat((tokens[:, 1:], tokens[:, -1:]), 1)
        place = torch.arange(tokens.shape[1], device=tokens.device)[None]
        following = torch.where(place < end, shifted, torch.full_like(shifted, -100))
        return following.scatter(1, end, self.targets[index][:, None])


def build_instances(
    taskset: TaskSet,
    instructions: Sequence[Sequence[str]],
    vocabulary: Vocabulary,
    device: torch.device,
    *,
    positions: Sequence[str] = ("input",),
) -> Instances:
    """Join every instruction with every input; positions name the tokens that are probed.

    Shapes: instructions by distribution -> n = instructions * inputs instances, input fastest
    """
    width = max(taskset.lengths) + 1
    pad = vocabulary.encode([PAD])[0]
    input_ids, output_ids = vocabulary.encode(taskset.inputs), vocabulary.encode(taskset.outputs)
    rows: list[list[int]] = []
    columns: dict[str, list[int]] = {entry.name: [] for entry in fields(Instances)}
    number = 0
    for distribution, ((task, _), texts) in enumerate(zip(taskset.distributions, instructions, strict=True)):
        table = taskset.tasks[task].table
        for text in texts:
            letters = vocabulary.encode(text)
            for given, (token, output) in enumerate(zip(input_ids, table, strict=True)):
                rows.append(letters + [token] + [pad] * (width - len(letters) - 1))
                columns["output_position"].append(len(letters))
                columns["targets"].append(output_ids[output])
                columns["task"].append(task)
                columns["distribution"].append(distribution)
                columns["input"].append(given)
                columns["output"].append(output)
                columns["instruction"].append(number)
            number += 1
    columns.pop("tokens")
    columns.pop("probe_positions")
    tensors = {name: torch.tensor(values, dtype=torch.int64).to(device) for name, values in columns.items()}
    tokens = torch.tensor(rows, dtype=torch.int64).reshape(-1, width)
    probe_positions = None
    if tuple(positions) != ("input",):
        # the instruction ends where the input token begins
        ends = [tensors["output_position"] - int(position == "instruction") for position in positions]
        probe_positions = torch.stack(ends, 1)
    return Instances(tokens=tokens.to(device), probe_positions=probe_positions, **tensors)
