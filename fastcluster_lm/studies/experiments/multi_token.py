"""With inputs and outputs of two tokens, which token's state carries the task?"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from fastcluster_lm.config import RunConfig
from fastcluster_lm.data import Instances, split_instructions
from fastcluster_lm.device import generator
from fastcluster_lm.engine.rooms import device_of
from fastcluster_lm.model import GPT2
from fastcluster_lm.scores.engines import choose_engine
from fastcluster_lm.scores.parts import Scoring
from fastcluster_lm.store.files import encode_json, read_json, write_new_file
from fastcluster_lm.studies.phases import fit
from fastcluster_lm.studies.reading import above_layer_zero, pick
from fastcluster_lm.studies.states import score_states, states_of
from fastcluster_lm.studies.stored import Places
from fastcluster_lm.studies.study import Arm, Lines, Measured, Options, Study
from fastcluster_lm.tasks import TaskSet, taskset_of

# where a state is taken, as places counted from the end of: instruction, first input, second input, first output
PLACES = {"instruction": 3, "first input": 2, "second input": 1, "first output": 0}


def train_on_pairs(config: RunConfig, folder: Path, options: Options) -> None:
    """Train on the preset's tasks with every input and output written as two tokens; score each token's states."""
    taskset = taskset_of(config.tasks, config.seed)
    texts = split_instructions(
        taskset, n_train=config.data.n_train_instructions, n_val=config.data.n_val_instructions, seed=config.seed
    )
    device = device_of(config).torch_device
    train, val = (pairs(taskset, own, device) for own in (texts.train, texts.val))
    n_positions = train.tokens.shape[1]
    model = GPT2(config.model, n_tokens(taskset), n_positions, generator(config.seed, torch.device("cpu"))).to(device)
    phase = fit(model, train, val, config, steps=config.training.steps)
    rows = []
    sets = {name: _seen_everywhere(own) for name, own in (("train", train), ("val", val))}
    sizes = {"n_layers": config.model.n_layers, "d_model": config.model.d_model}
    # one forward gives the states of all places: (places * layers, n, d)
    states = {name: states_of(phase.trainer.evaluator, own, **sizes) for name, own in sets.items()}
    engine = choose_engine(config.scores.engine, device, config.scores.memory_mib)
    for at, place in enumerate(PLACES):
        here = {name: own.chunk(len(PLACES))[at] for name, own in states.items()}
        scored = score_states(
            here, sets, engine, n_inputs=taskset.n_inputs, scoring=Scoring(n_init=config.scores.n_init)
        )
        rows += [
            {
                "place": place,
                "layer": row["layer"],
                "ari": row["ari"],
                "null_ari": row["null_ari"],
                "knn_share": row["knn_share"],
            }
            for row in scored
            if row["split"] == "val"
        ]
    found = {"val_accuracy": phase.accuracy[config.training.steps], "rows": rows}
    write_new_file(folder / "places.json", encode_json(found, "scores by token"))


def pairs(taskset: TaskSet, instructions: tuple[tuple[str, ...], ...], device: torch.device) -> Instances:
    """Write every input and output as two tokens; each instance is there twice, once for either token of the output.

    Shapes: tokens (n, length + 3): instruction, two of the input, the first of the output; where that is to be
            predicted it is not yet there (token 0)
    """
    letter = {text: 1 + index for index, text in enumerate(taskset.alphabet)}
    base_in, base_out = side(taskset.n_inputs), side(taskset.n_outputs)
    first_in = 1 + len(letter)
    first_out = first_in + base_in
    rows: list[list[int]] = []
    columns: dict[str, list[int]] = {
        name: [] for name in ("output_position", "targets", "task", "distribution", "input", "output", "instruction")
    }
    number = 0
    for distribution, ((task, _), texts) in enumerate(zip(taskset.distributions, instructions, strict=True)):
        for text in texts:
            for given, output in enumerate(taskset.tasks[task].table):
                begin = [*(letter[one] for one in text), first_in + given // base_in, first_in + given % base_in]
                answer = first_out + output // base_out, first_out + output % base_out
                for place in (0, 1):
                    rows.append([*begin, answer[0] if place else 0])
                    here = (len(begin) - 1 + place, answer[place], task, distribution, given, output, number)
                    for name, value in zip(columns, here, strict=True):
                        columns[name].append(value)
            number += 1
    tensors = {name: torch.tensor(values, device=device) for name, values in columns.items()}
    return Instances(
        tokens=torch.tensor(rows, device=device),
        output_position=tensors["output_position"],
        targets=tensors["targets"],
        task=tensors["task"],
        distribution=tensors["distribution"],
        input=tensors["input"],
        output=tensors["output"],
        instruction=tensors["instruction"],
    )


def side(count: int) -> int:
    """Give the smallest number of tokens of which two write `count` things."""
    return next(base for base in range(1, count + 1) if base * base >= count)


def n_tokens(taskset: TaskSet) -> int:
    """Count padding, letters, and the tokens of inputs and outputs."""
    return 1 + len(taskset.alphabet) + side(taskset.n_inputs) + side(taskset.n_outputs)


def _seen_everywhere(instances: Instances) -> Instances:
    """Keep the instances of the second output token, which hold all that comes before it, and probe all PLACES."""
    last = instances.tokens.shape[1] - 1
    own = instances.select((instances.output_position == last).nonzero()[:, 0])
    at = torch.tensor([last - back for back in PLACES.values()], device=own.tokens.device)
    return replace(own, probe_positions=at.expand(len(own), -1))


def _arms(preset: str) -> Mapping[str, Arm]:
    return {"pairs": Arm((), train_on_pairs, cost=1.5)}


def _measure(cells: Mapping[str, Path]) -> Measured:
    stored = read_json(cells["pairs"] / "places.json", Places)
    rows, accuracy = stored["rows"], float(stored["val_accuracy"])
    beside: dict[str, float | None] = {"accuracy of tokens": accuracy}
    found = {place: above_layer_zero(pick(rows, place=place)) for place in PLACES}
    for place, (value, null) in found.items():
        beside |= {f"ARI, {place}": value, f"null ARI, {place}": null}
    return Measured(*found["second input"], rows, beside)


STUDY = Study(
    name="multi-token",
    question="With inputs and outputs of two tokens each, which token's state carries the task?",
    claim="With inputs and outputs of two tokens, the state of the last input token carries the task.",
    statistic="task ARI within input and output at the second input token, at the end, validation, mean over layers 1 "
    "and up",
    control="its block null",
    margin=0.1,
    arms=_arms,
    measure=_measure,
    figure=Lines("layer", "ari", "place", "null_ari"),
)
