"""Score models that exist already: checkpoints of a run, or a language model of transformers; it trains nothing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fastcluster_lm.config import RunConfig, apply_settings, differing_keys
from fastcluster_lm.data import Instances, build_instances, split_instructions
from fastcluster_lm.engine import stored_config
from fastcluster_lm.engine.checkpoint import check_model, newest_checkpoint, read_weights
from fastcluster_lm.engine.hugging_face import load_model
from fastcluster_lm.engine.probe_work import ProbeOptions, ProbeWork, Row
from fastcluster_lm.engine.rooms import Rooms, device_of
from fastcluster_lm.errors import ConfigError, RunFolderError, TaskError, UsageError
from fastcluster_lm.kernels import native
from fastcluster_lm.probe import choose_sources
from fastcluster_lm.probe.points import check_reachable, labelled_points
from fastcluster_lm.probe.record import Subject
from fastcluster_lm.probe.sources.prompts import Layers, PromptReader
from fastcluster_lm.store import RunFolder, check_free
from fastcluster_lm.tasks import QuestionSet, TaskSet, taskset_from_dict

Configure = Callable[[RunConfig], RunConfig]
# prompts of one forward
PROMPT_BATCH = 16
# whose states are scored
LAST = ("last",)
# what may be set for a probe of a model that exists; all else is about training
SETTABLE = ("device", "probe.", "scores.")


@native.threads_kept()
def probe_run(
    path: str | Path,
    configure: Configure = lambda config: config,
    options: ProbeOptions | None = None,
    *,
    step: int | str | None = None,
    taskset: TaskSet | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """Score a checkpoint of a run as a probe within training would have, each map cold; the run is only read.

    step: a checkpoint's, or "all"; None: the newest. taskset: other tasks than the run's, in its own tokens
    Errors: RunFolderError without the checkpoint; ConfigError for settings of training, or a run of an attached probe;
            TaskError for tasks in tokens that the model does not know; RunExistsError if `out` exists
    """
    options, folder = options or ProbeOptions(), RunFolder.open(path)
    if options.out is not None:
        check_free(options.out)
    stored = folder.config()
    config = _configured(stored_config(stored, str(path)), stored["resolved"], configure)
    steps = _checkpoints(folder, step, say)
    # no probe, whose states would lie in memory whole
    unprobed = replace(config, probe=replace(config.probe, every=0, worker="off"))
    own = taskset_from_dict(stored["taskset"])
    for at in steps:
        check_model(folder, at, config, own)
    rooms = Rooms(unprobed, own)
    splits = _instances(rooms, config, taskset)
    tasks, evaluator = taskset or rooms.taskset, rooms.trainer.evaluator
    evaluator.batch_size = options.batch_size or evaluator.batch_size
    n_layers, width, positions = config.model.n_layers, config.model.d_model, config.probe.all_positions
    # all layers of one position after those of another: (P * layers, d)
    shape = len(positions) * (n_layers + 1), width
    sources = choose_sources(splits, evaluator, config.probe, n_inputs=tasks.n_inputs, shape=shape)
    points = {name: source.points for name, source in sources.items()}
    check_reachable(points["train"], config.scores.n_neighbors)
    names = {
        "task": [task.name for task in tasks.tasks],
        "distribution": [expression.pattern for _, expression in tasks.distributions],
        "input": [*tasks.inputs],
        "output": [*tasks.outputs],
    }
    of = {"run": folder.path.resolve().name, "steps": steps}
    subject = Subject(rooms.trainer.model, n_layers, width, points, names, config.scores, of)
    work = ProbeWork(config, subject, options, positions, rooms.device.torch_device, say)
    rows: list[Row] = []
    with work.opened():
        for at in steps:
            rooms.trainer.model.load_state_dict(read_weights(folder, at, rooms.trainer.model.state_dict()))
            rows += work.score({name: source.chunks() for name, source in sources.items()}, at)
    return rows


@native.threads_kept()
def probe_model(
    folder: Path,
    questions: QuestionSet,
    configure: Configure = lambda config: config,
    options: ProbeOptions | None = None,
    *,
    chat: bool | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """Ask a language model in a folder in words, and score its states at each prompt's last token, as split `val`.

    chat: prompts go through the tokenizer's chat template; None: where it has one
    Notes:  layers are those of Layers.RESIDUAL, as in runs; the rows' step is 0; a wording is a `distribution`, every
            prompt an instruction of its own
    Errors: UsageError and DataError as load_model, or for prompts longer than the model reads
    """
    options = options or ProbeOptions()
    if options.out is not None:
        check_free(options.out)
    config = configure(RunConfig())
    _check_settable(RunConfig(), config)
    prompts = questions.prompts(config.probe.n_points, config.probe.seed)
    labels = {
        "task": [prompt.task for prompt in prompts],
        "distribution": [prompt.wording for prompt in prompts],
        "input": [prompt.input for prompt in prompts],
        "output": [prompt.answer for prompt in prompts],
    }
    points, names = labelled_points(
        {"val": {kind: np.array(values) for kind, values in labels.items()}},
        map_points=config.probe.map_points,
        n_neighbors=config.scores.n_neighbors,
        seed=config.probe.seed,
    )
    device = device_of(config).torch_device
    loaded = load_model(folder, device, chat=chat)
    reader = PromptReader(loaded.model, Layers.RESIDUAL)
    encoded = [loaded.encode(prompt) for prompt in prompts]
    _check_lengths(encoded, loaded.model.config.get_text_config())
    of = {"folder": folder.resolve().name, "chat": loaded.chat}
    subject = Subject(loaded.model, reader.n_blocks, reader.width, points, names, config.scores, of)
    work = ProbeWork(config, subject, options, LAST, device, say)
    with work.opened():
        return work.score({"val": reader.states_in_chunks(encoded, options.batch_size or PROMPT_BATCH)}, 0)


def settings_for(assignments: Sequence[str], options: Mapping[str, Any]) -> Configure:
    """Give what lays KEY=VALUE assignments over a config, and options over those; fewer points take their map along."""
    typed = [*assignments, *(f"{key}={value}" for key, value in options.items())]
    n_points = options.get("probe.n_points")

    def lay_over(config: RunConfig) -> RunConfig:
        fewer = []
        if n_points is not None and not any(text.startswith("probe.map_points=") for text in assignments):
            fewer = [f"probe.map_points={min(config.probe.map_points, n_points)}"]
        return apply_settings(config, [*typed, *fewer])

    return lay_over


def _configured(config: RunConfig, decided: Mapping[str, Any], configure: Configure) -> RunConfig:
    """Lay what is asked for over a run's config, engine and threads as they were decided when the run began."""
    kept = replace(
        config,
        scores=replace(config.scores, engine=decided["engine"]),
        training=replace(config.training, threads=decided["threads"]),
    )
    asked = configure(kept)
    _check_settable(kept, asked)
    return asked


def _check_settable(config: RunConfig, asked: RunConfig) -> None:
    """Refuse settings that are not about a probe.

    Errors: ConfigError naming them
    """
    if other := [key for key in differing_keys(config, asked) if not key.startswith(SETTABLE)]:
        raise ConfigError(
            f"--set: expected device or a key of probe or scores, got {other[0]}; the model is trained already"
        )


def _checkpoints(folder: RunFolder, step: int | str | None, say: Callable[[str], None]) -> list[int]:
    if step is None:
        return [newest_checkpoint(folder, "score")]
    if step != "all":
        return [int(step)]
    for at, why in folder.unreadable_checkpoints().items():
        say(f"the checkpoint of step {at} is left out: {why}")
    if not (steps := folder.checkpoint_steps()):
        raise RunFolderError(f"{folder.path} has no checkpoint that can be read, so there are no weights to score")
    return steps


def _instances(rooms: Rooms, config: RunConfig, taskset: TaskSet | None) -> dict[str, Instances]:
    """Give the run's own instances, or those of other tasks in its tokens."""
    if taskset is None:
        return {"train": rooms.trainer.train, "val": rooms.trainer.val}
    known = set(rooms.vocabulary.tokens)
    for kind, tokens in (("letters", taskset.alphabet), ("inputs", taskset.inputs), ("outputs", taskset.outputs)):
        if new := [token for token in tokens if token not in known]:
            raise TaskError(
                f"--tasks: expected {kind} that the run's model knows, got {new[0]!r}; "
                f"its tokens are {' '.join(rooms.vocabulary.tokens[1:])}"
            )
    longest = rooms.trainer.train.tokens.shape[1] - 1
    if max(taskset.lengths) > longest:
        raise TaskError(
            f"--tasks: expected instructions of at most {longest} letters, as the run's model reads them, "
            f"got lengths up to {max(taskset.lengths)}"
        )
    split = split_instructions(
        taskset, n_train=config.data.n_train_instructions, n_val=config.data.n_val_instructions, seed=config.seed
    )
    on, positions = rooms.device.torch_device, config.probe.all_positions
    return {
        name: build_instances(taskset, texts, rooms.vocabulary, on, positions=positions)
        for name, texts in (("train", split.train), ("val", split.val))
    }


def _check_lengths(encoded: Sequence[Sequence[int]], config: Any) -> None:
    longest, most = max(map(len, encoded)), getattr(config, "max_position_embeddings", None)
    if most is not None and longest > most:
        raise UsageError(f"--tasks: expected prompts of at most {most} tokens, as the model reads them, got {longest}")
    if min(map(len, encoded)) == 0:
        raise UsageError("--tasks: expected a token or more in each prompt, got one without any")
