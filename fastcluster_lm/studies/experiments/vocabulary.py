"""Do task clusters persist as inputs, outputs and alphabet grow tenfold and a hundredfold?"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from fastcluster_lm.config import RunConfig
from fastcluster_lm.data import Instances, Vocabulary, split_instructions
from fastcluster_lm.device import generator
from fastcluster_lm.engine.rooms import device_of
from fastcluster_lm.model import GPT2
from fastcluster_lm.scores.engines import choose_engine
from fastcluster_lm.store.files import encode_json, read_json, write_new_file
from fastcluster_lm.studies.cells import preset_config
from fastcluster_lm.studies.phases import fit
from fastcluster_lm.studies.reading import above_layer_zero
from fastcluster_lm.studies.states import score_states, states_of
from fastcluster_lm.studies.stored import Scored
from fastcluster_lm.studies.study import Arm, Lines, Measured, Options, Row, Study
from fastcluster_lm.tasks import TaskSet, taskset_of

# instructions scored for each distribution and input: five points a label are the least that a group counts with
POINTS = 2
# inputs that are scored, of however many there are
MOST_INPUTS = 40
# answers that a hundredfold of inputs has: more mappings than these are not learnt in a nano run's time
MOST_GROWTH = 10

# what a reader must know of the sizes
HOW_GROWN = (
    "All sizes train at twice the preset's learning rate, chosen on seed 1000, so that the smallest is not the run of "
    "other studies. Instances are drawn from all pairs of instruction and input, as many whatever the size, twice as "
    "many with more inputs. An expression's letters grow with the alphabet, and its training instructions with them. A "
    f"hundred times the inputs are {MOST_GROWTH} times the columns of answers, each of {100 // MOST_GROWTH} input "
    "tokens. However many outputs there are, an input has three of them over nano's nine tasks, so a model that knows "
    "these and not the tasks is right in one case of three. What is a hundred times as large trains with the fused "
    "head, which keeps no logits."
)


def train_on_pool(config: RunConfig, folder: Path, options: Options) -> None:
    """Train on pairs of instruction and input drawn from all there are; score states of instructions not seen."""
    taskset = rename_inputs(taskset_of(config.tasks, config.seed), int(options["names"]))
    texts = split_instructions(
        taskset, n_train=config.data.n_train_instructions, n_val=config.data.n_val_instructions, seed=config.seed
    )
    vocabulary = Vocabulary.of(taskset)
    on = device_of(config).torch_device
    draw = generator(config.seed, torch.device("cpu"))
    n_seen = config.training.steps * config.training.batch_size
    n_instructions = taskset.n_distributions * len(texts.train[0])
    seen = torch.randint(n_instructions, (n_seen,), generator=draw)
    given = torch.randint(taskset.n_inputs, (n_seen,), generator=draw)
    train = join(taskset, texts.train, vocabulary, seen, given, on)
    inputs = torch.randperm(taskset.n_inputs, generator=draw)[:MOST_INPUTS]
    sets = {
        name: join(taskset, own, vocabulary, *balanced(taskset.n_distributions, len(own[0]), inputs, draw), on)
        for name, own in (("train", texts.train), ("val", texts.val))
    }
    weights = generator(config.seed, torch.device("cpu"))
    model = GPT2(config.model, len(vocabulary), train.tokens.shape[1], weights).to(on)
    phase = fit(model, train, sets["val"], config, steps=config.training.steps)
    sizes = {"n_layers": config.model.n_layers, "d_model": config.model.d_model}
    states = {name: states_of(phase.trainer.evaluator, own, **sizes) for name, own in sets.items()}
    engine = choose_engine(config.scores.engine, on, config.scores.memory_mib)
    scored = score_states(states, sets, engine, n_inputs=taskset.n_inputs)
    names = ("layer", "ari", "null_ari", "knn_share", "null_knn_share")
    found = {
        "rows": [{name: row[name] for name in names} for row in scored if row["split"] == "val"],
        "val_accuracy": phase.accuracy[config.training.steps],
        "vocab_size": len(vocabulary),
    }
    write_new_file(folder / "scored.json", encode_json(found, "scores of a vocabulary"))


def rename_inputs(taskset: TaskSet, names: int) -> TaskSet:
    """Put several tokens in the place of each input, all with its answers."""
    return replace(
        taskset,
        inputs=tuple(f"{one}.{number}" for one in taskset.inputs for number in range(names)),
        tasks=tuple(
            replace(task, table=tuple(output for output in task.table for _ in range(names))) for task in taskset.tasks
        ),
    )


def join(
    taskset: TaskSet,
    texts: Sequence[Sequence[str]],
    vocabulary: Vocabulary,
    instruction: Int[Tensor, " n"],
    given: Int[Tensor, " n"],
    device: torch.device,
) -> Instances:
    """Join chosen instructions with chosen inputs, where to join all with all would be too many.

    Shapes: texts by distribution, as many of each and all of one length; numbers of instructions, counted through all
            distributions, and of inputs -> n instances
    """
    letters = torch.tensor(vocabulary.encode("".join(text for own in texts for text in own)))
    letters = letters.view(-1, taskset.lengths[0])
    input_ids, output_ids = (torch.tensor(vocabulary.encode(own)) for own in (taskset.inputs, taskset.outputs))
    distribution = instruction // len(texts[0])
    task = torch.tensor([number for number, _ in taskset.distributions])[distribution]
    output = torch.tensor([one.table for one in taskset.tasks])[task, given]
    tokens = torch.cat((letters[instruction], input_ids[given][:, None]), 1)
    end = torch.full_like(given, taskset.lengths[0])
    return Instances(
        tokens=tokens.to(device),
        output_position=end.to(device),
        targets=output_ids[output].to(device),
        task=task.to(device),
        distribution=distribution.to(device),
        input=given.to(device),
        output=output.to(device),
        instruction=instruction.to(device),
    )


def balanced(
    n_distributions: int, n_texts: int, inputs: Int[Tensor, " i"], draw: torch.Generator
) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """Choose POINTS instructions of every distribution for each of these inputs.

    Shapes: i inputs -> numbers of instructions and of inputs, n = n_distributions * i * POINTS
    """
    chosen = torch.rand(n_distributions, len(inputs), n_texts, generator=draw).argsort(2)[:, :, :POINTS]
    first = torch.arange(n_distributions)[:, None, None] * n_texts
    return (first + chosen).flatten(), inputs[None, :, None].expand_as(chosen).flatten()


def _arms(preset: str) -> Mapping[str, Arm]:
    return {
        "as it is": _arm(preset),
        "inputs x 10": _arm(preset, inputs=10),
        "outputs x 10": _arm(preset, outputs=10),
        "alphabet x 10": _arm(preset, letters=10),
        "all x 10": _arm(preset, inputs=10, outputs=10, letters=10),
        "inputs x 100": _arm(preset, inputs=100),
        "outputs x 100": _arm(preset, outputs=100),
        "alphabet x 100": _arm(preset, letters=100),
        "all x 100": _arm(preset, inputs=100, outputs=100, letters=100),
    }


def _arm(preset: str, *, inputs: int = 1, outputs: int = 1, letters: int = 1) -> Arm:
    config = preset_config(preset, 0)
    tasks, steps = config.tasks, config.training.steps
    # each mapping is seen less often the more of them there are; twice the steps is what nano's time allows, and at
    # the preset's learning rate a hundredfold was not learnt in them (accuracy 0.345, seed 1000)
    longer, rate = 2 if inputs > 1 else 1, 2 * config.training.learning_rate
    grown = min(inputs, MOST_GROWTH)
    # at 6,501 tokens and 64 rows a step of either head takes as long on one CPU core (medians 12.6 and 12.0 ms), and
    # the losses of 80 steps differ by 2e-6; the fused one is there for presets whose logits are too many to hold
    large = max(inputs, outputs, letters) > MOST_GROWTH
    return Arm(
        (
            f"tasks.n_inputs={grown * tasks.n_inputs}",
            f"tasks.n_outputs={outputs * tasks.n_outputs}",
            # an expression takes its share of a larger alphabet, and has instructions enough to show all its letters
            f"tasks.alphabet_size={letters * tasks.alphabet_size}",
            f"tasks.letters_per_position={letters * tasks.letters_per_position}",
            f"data.n_train_instructions={letters * config.data.n_train_instructions}",
            f"training.steps={longer * steps}",
            f"training.eval_every={longer * steps}",
            f"training.learning_rate={rate}",
            f"training.head={'fused' if large else 'plain'}",
        ),
        train_on_pool,
        (("names", inputs // grown),),
        cost=float(longer),
    )


def _measure(cells: Mapping[str, Path]) -> Measured:
    rows: list[Row] = []
    beside: dict[str, float | None] = {}
    found = {}
    for name, cell in cells.items():
        stored = read_json(cell / "scored.json", Scored)
        scored, accuracy, size = stored["rows"], float(stored["val_accuracy"]), stored["vocab_size"]
        rows += [{"vocabulary": name, **row} for row in scored]
        value, null = found[name] = above_layer_zero(scored)
        beside |= {f"tokens, {name}": float(size), f"accuracy, {name}": accuracy}
        beside |= {f"ARI, {name}": value, f"null ARI, {name}": null}
    return Measured(*found["all x 100"], rows, beside, HOW_GROWN)


STUDY = Study(
    name="vocabulary",
    question="Do task clusters persist as inputs, outputs and alphabet grow tenfold and a hundredfold?",
    claim="Task clusters persist with a hundred times the inputs, outputs and letters.",
    statistic="task ARI within input and output with all three a hundred times as many, at the end, validation, mean "
    "over layers 1 and up",
    control="its block null",
    margin=0.1,
    arms=_arms,
    measure=_measure,
    figure=Lines("layer", "ari", "vocabulary", "null_ari"),
)
