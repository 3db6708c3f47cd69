"""What a run is: frozen dataclasses, read from TOML and written back; it checks values and builds nothing."""

import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from fastcluster_lm.errors import ConfigError, nearest_name
from fastcluster_lm.untrusted import read_toml

# of run.toml; one that names none is of the first
RUN_FORMAT = 1
# tables of a run.toml that are no part of its config
NO_CONFIG = ("changes", "resolved", "taskset")
# what may be changed when a run is resumed: what its later steps depend on, and what is kept of them
TRAINING_CHANGES = ("training.learning_rate", "training.grad_clip")
RECORD_CHANGES = ("training.checkpoint_every", "training.keep_checkpoints", "store.max_mib", "store.keep_maps")
# the largest that every generator here takes
MAX_SEED = 2**32 - 1
# who can compute the scores, beside "auto", which is one of them: the one list of their names
ENGINES = ("fused", "reference", "rapids")
# whose states can be probed
POSITIONS = ("input", "instruction")


def setting(
    default: Any,
    doc: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """Declare one field: its default, what it means, and the range or the words it accepts."""
    return field(default=default, metadata={"doc": doc, "low": low, "high": high, "choices": choices})


@dataclass(frozen=True)
class TasksConfig:
    """Which tasks are asked: generated from these numbers, or read from a file of the user's own."""

    file: str = setting("", "TOML file with a task set of your own; empty: generate one")
    n_tasks: int = setting(12, "lookup tables to learn", low=2)
    n_distributions: int = setting(2, "instruction distributions (expressions) a task", low=1)
    n_inputs: int = setting(8, "input tokens, shared by all tasks", low=1)
    n_outputs: int = setting(4, "output tokens, shared by all tasks", low=2)
    instruction_length: int = setting(8, "characters an instruction", low=1)
    alphabet_size: int = setting(20, "letters the instructions are written in", low=2)
    letters_per_position: int = setting(3, "letters one position of an expression allows", low=1)
    tasks_per_output: int = setting(
        3, "tasks that share each output of an input, at least, where n_tasks allows", low=1
    )
    style: str = setting("positions", "how an expression's letters are drawn: see `fclm data --help`")
    seed: int = setting(-1, "seed of the task set; -1: the run's seed", low=-1, high=MAX_SEED)


@dataclass(frozen=True)
class DataConfig:
    """How many instructions there are; the two splits never share one."""

    n_train_instructions: int = setting(100, "distinct training instructions a distribution", low=1)
    n_val_instructions: int = setting(20, "distinct validation instructions a distribution", low=1)


@dataclass(frozen=True)
class ModelConfig:
    """A GPT-2-style decoder."""

    d_model: int = setting(32, "hidden width", low=2)
    n_layers: int = setting(6, "blocks", low=1)
    n_heads: int = setting(4, "attention heads; must divide d_model", low=1)
    d_mlp: int = setting(0, "width of the MLP; 0: 4 * d_model", low=0)
    dropout: float = setting(0.0, "dropout share", low=0.0, high=0.9)
    init_std: float = setting(0.02, "standard deviation of the initial weights", low=1e-6)


@dataclass(frozen=True)
class TrainingConfig:
    """AdamW with warm-up and cosine annealing."""

    steps: int = setting(1000, "optimiser steps", low=1)
    batch_size: int = setting(256, "instances a step", low=1, high=2**24)
    learning_rate: float = setting(4e-3, "peak learning rate", low=0.0)
    min_learning_rate_share: float = setting(0.0, "the cosine's end, as a share of the peak", low=0.0, high=1.0)
    warmup_steps: int = setting(50, "steps of linear warm-up", low=0)
    weight_decay: float = setting(0.1, "decoupled weight decay on matrices and embeddings", low=0.0)
    beta1: float = setting(0.9, "AdamW beta1", low=0.0, high=0.9999)
    beta2: float = setting(0.98, "AdamW beta2", low=0.0, high=0.99999)
    grad_clip: float = setting(1.0, "largest gradient norm; 0: no clipping", low=0.0)
    loss: str = setting("output", "tokens the loss is on", choices=("output", "all"))
    eval_every: int = setting(50, "steps between validation accuracies", low=1)
    early_stopping_patience: int = setting(
        5, "validations without a better accuracy before the early-stopping mark is set; training goes on", low=1
    )
    early_stopping_delta: float = setting(0.001, "accuracy gain that counts as better", low=0.0)
    checkpoint_every: int = setting(500, "steps between checkpoints; the last step always has one", low=1)
    keep_checkpoints: int = setting(0, "newest checkpoints kept; 0: all", low=0)
    compile: str = setting("auto", "torch.compile the step", choices=("auto", "on", "off"))
    graph: str = setting("auto", "play the step as one captured CUDA graph, on a GPU", choices=("auto", "off"))
    precision: str = setting(
        "auto",
        "of the matmuls; weights, sums and states stay float32; auto: bfloat16 on a GPU that has it, else float32",
        choices=("auto", "float32", "bfloat16"),
    )
    block: str = setting(
        "auto",
        "blocks of the model: plain runs them operation by operation, fused each as one compiled op (and rounds "
        "otherwise); auto: fused on a CPU with a compiler, below a width of 192",
        choices=("auto", "plain", "fused"),
    )
    head: str = setting(
        "auto",
        "output head and loss: plain holds all logits of a step, fused a tile of them (and rounds otherwise); "
        "auto: fused from 32 MiB of logits on, 1024 on a GPU",
        choices=("auto", "plain", "fused"),
    )
    threads: int = setting(0, "CPU threads; 0: as torch chooses", low=0, high=1024)


@dataclass(frozen=True)
class ProbeConfig:
    """When the hidden states are scored, and how many of them."""

    every: int = setting(50, "steps between probes; 0: off; step 0 and the last are always probed if on", low=0)
    full_every: int = setting(
        50, "with every below 10: steps between full probes; those between score task labels only", low=1
    )
    source: str = setting(
        "fresh",
        "training states scored: a fixed set run afresh, or those of the newest training batches as they come",
        choices=("fresh", "batch"),
    )
    n_points: int = setting(960, "instances a split whose states are scored", low=2)
    map_points: int = setting(480, "instances a split on the t-SNE map, a balanced part of n_points", low=2)
    position: str = setting(
        "input", "token whose states are probed: the input, or the instruction's last", choices=POSITIONS
    )
    positions: tuple[str, ...] = setting(
        (), "several tokens in place of one, scored in one probe; tables and figures show the first", choices=POSITIONS
    )
    seed: int = setting(1, "seed of the probe's own generators", low=0, high=MAX_SEED)
    worker: str = setting(
        "auto",
        "probe in a process beside training, on spare CPU cores; no score depends on it",
        choices=("auto", "on", "off"),
    )
    worker_timeout_s: float = setting(
        300.0,
        "seconds for which the process beside training may use no processor while training waits for it, before it is "
        "ended; a busy one may take 100 times its longest probe, and at least as long",
        low=1.0,
    )

    @property
    def full_period(self) -> int:
        """Steps between full probes; from every 10 steps on each probe is a full one."""
        return self.every if self.every >= 10 else self.every * -(-self.full_every // max(self.every, 1))

    @property
    def all_positions(self) -> tuple[str, ...]:
        """Name every token that is probed, in order."""
        return self.positions or (self.position,)


@dataclass(frozen=True)
class ScoresConfig:
    """How states are scored."""

    engine: str = setting("auto", "scoring engine", choices=("auto", *ENGINES))
    threads: int = setting(
        0, "threads of compiled CPU kernels; 0: OMP_NUM_THREADS, or all cores; no score depends on it", low=0, high=1024
    )
    memory_mib: int = setting(256, "most MiB of one block of distances in the fused engine", low=1, high=2**20)
    n_neighbors: int = setting(5, "k of the KNN scores", low=1)
    n_init: int = setting(10, "KMeans restarts", low=1)
    n_nulls: int = setting(20, "random reassignments behind each null", low=1)
    perplexity: float = setting(30.0, "t-SNE perplexity", low=1.0)
    n_iter: int = setting(500, "t-SNE iterations of a cold map", low=1)
    step_iter: int = setting(5, "t-SNE iterations of a step probe's map; 0: no map in step probes", low=0)
    warm_iter: int = setting(100, "t-SNE iterations of a map that continues the last one", low=1)
    min_gradient_norm: float = setting(
        2.5e-4, "a layer's map is done once n times the RMS of a point's quarter gradient is below; 0: never", low=0.0
    )
    key_frame_every: int = setting(10, "probes between cold maps; 0: only the first and the last", low=0)
    key_frame_margin: float = setting(
        0.05, "fall of neighbour preservation since the last cold map after which the next is cold too", low=0.0
    )


@dataclass(frozen=True)
class StoreConfig:
    """What a run may take on disk; rows are never given up."""

    max_mib: int = setting(
        0,
        "most MiB of a run folder; the oldest maps go first, then old checkpoints, then key frames; 0: no limit",
        low=0,
        high=2**30,
    )
    keep_maps: int = setting(
        0, "most maps kept, from 2 on: those of step 0 and the last, key frames, then the newest; 0: all", low=0
    )


@dataclass(frozen=True)
class ReportConfig:
    """The one place of the score table that the closing table leads with."""

    space: str = setting("hidden", "space of the headline", choices=("hidden", "map"))
    group: str = setting("input_output", "group of the headline", choices=("all", "input", "input_output"))
    layer: int = setting(-1, "layer of the headline; -1: the last", low=-1)


@dataclass(frozen=True)
class RunConfig:
    """One whole run; stored with it and enough to repeat it."""

    name: str = setting("custom", "preset this began as")
    seed: int = setting(0, "seed of weights, batches and (unless set) tasks", low=0, high=MAX_SEED)
    device: str = setting("auto", "where it runs", choices=("auto", "cpu", "cuda"))
    tasks: TasksConfig = TasksConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    probe: ProbeConfig = ProbeConfig()
    scores: ScoresConfig = ScoresConfig()
    store: StoreConfig = StoreConfig()
    report: ReportConfig = ReportConfig()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.+-]*", self.name) or self.name.startswith("."):
            raise ConfigError(
                f"name: expected letters, digits and - _ + . only, for it names a folder, got {self.name!r}"
            )
        if self.model.d_model % self.model.n_heads:
            raise ConfigError(
                f"model.n_heads: expected a divisor of model.d_model={self.model.d_model}, got {self.model.n_heads}"
            )
        if self.probe.source == "batch" and self.model.dropout > 0:
            raise ConfigError(
                f"probe.source: expected fresh with model.dropout={self.model.dropout}, got batch: "
                "states under dropout are not the model's; set model.dropout=0"
            )
        if self.probe.map_points > self.probe.n_points:
            raise ConfigError(
                f"probe.map_points: expected at most probe.n_points={self.probe.n_points}, got {self.probe.map_points}"
            )
        if self.store.keep_maps == 1:
            raise ConfigError("store.keep_maps: expected 0 or at least 2, for step 0 and the last, got 1")
        if self.report.layer > self.model.n_layers:
            raise ConfigError(
                f"report.layer: expected at most model.n_layers={self.model.n_layers}, got {self.report.layer}"
            )

    @property
    def headline_layer(self) -> int:
        """The headline's layer with -1 resolved."""
        return self.model.n_layers if self.report.layer < 0 else self.report.layer


def config_from_dict(values: Mapping[str, Any], base: RunConfig | None = None, origin: str = "config") -> RunConfig:
    """Lay nested values over a config.

    Errors: ConfigError for an unknown key (the nearest one named), a wrong type, a value out of range
    """
    return _overlay(base or RunConfig(), values, "", origin)


def config_to_dict(config: RunConfig) -> dict[str, Any]:
    """Turn a config into nested plain values, ready for TOML."""
    return _plain(config)


def load_config(path: str | Path, base: RunConfig | None = None, *, chosen: Collection[str] = ()) -> RunConfig:
    """Read a TOML file over a config; a relative `tasks.file` is taken from the file's own folder.

    chosen names keys that the caller will set, whatever the file says
    Errors: ConfigError if there is no such file, it is not TOML, or a key or value is wrong; for the run.toml of a run
            whose training was changed on its way, which no one configuration repeats, unless the caller chose a value
    """
    path = Path(path)
    try:
        values = read_toml(path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: expected a TOML file, found none") from None
    except OSError as error:
        raise ConfigError(f"{path}: expected a TOML file, got one that cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: expected a TOML file, got one that cannot be read: {error}") from error
    if values.get("format", RUN_FORMAT) != RUN_FORMAT:
        raise ConfigError(
            f"{path}: expected a run.toml of format {RUN_FORMAT}, got format {values['format']!r}, of a newer fclm; "
            "update fclm to repeat that run"
        )
    if "taskset" in values:
        # the run.toml of a run: what was resolved there is decided anew, and its task set is its own file
        _check_repeatable(path, values, chosen)
        values = {key: value for key, value in values.items() if key not in ("format", *NO_CONFIG)}
    tasks = values.get("tasks")
    if isinstance(tasks, dict) and isinstance(tasks.get("file"), str) and tasks["file"]:
        tasks["file"] = str((path.parent / tasks["file"]).resolve())
    return config_from_dict(values, base, origin=str(path))


def _check_repeatable(path: Path, values: Mapping[str, Any], chosen: Collection[str]) -> None:
    for step, was, now in changes_of(values, str(path)):
        for key in now:
            if key in TRAINING_CHANGES and key not in chosen:
                raise ConfigError(
                    f"{path}: {key} was changed from {was[key]} to {now[key]} after step {step} of that run, so no one "
                    f"configuration repeats it; choose a value for the whole run: -s {key}={was[key]}"
                )


def changes_of(values: Mapping[str, Any], origin: str) -> list[tuple[int, dict[str, Any], dict[str, Any]]]:
    """List how a run changed on its way, as its run.toml says: after which step, what was and what is since, by key.

    Errors: ConfigError for an entry that does not say these
    """
    entries = values.get("changes", [])
    found = []
    for entry in entries if isinstance(entries, list) else [entries]:
        known = entry if isinstance(entry, dict) else {}
        step, was, now = known.get("step"), known.get("was"), known.get("now")
        if type(step) is not int or not isinstance(was, dict) or not isinstance(now, dict):
            raise ConfigError(f"{origin}: changes: expected entries with step, was and now, got {entry!r}")
        if any(key in now and key not in was for key in TRAINING_CHANGES):
            raise ConfigError(f"{origin}: changes: expected what was beside what is since, got {entry!r}")
        found.append((step, was, now))
    return found


def preset_names() -> list[str]:
    """List the presets that ship with the package."""
    folder = resources.files("fastcluster_lm") / "presets"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_preset(name: str) -> RunConfig:
    """Read a preset by name.

    Errors: ConfigError with the nearest name if there is none such
    """
    names = preset_names()
    if name not in names:
        raise ConfigError(f"--preset: expected one of {', '.join(names)}, got {name!r}{nearest_name(name, names)}")
    text = (resources.files("fastcluster_lm") / "presets" / f"{name}.toml").read_text(encoding="utf-8")
    return config_from_dict({"name": name, **tomllib.loads(text)}, origin=f"preset {name}")


def apply_settings(config: RunConfig, assignments: Sequence[str]) -> RunConfig:
    """Lay `key=value` strings over a config; a value is read as TOML, a bare word as a string.

    Errors: ConfigError as for a file
    """
    nested: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set: expected KEY=VALUE, got {assignment!r}; write for example probe.every=10")
        try:
            value = tomllib.loads(f"value = {text.strip()}")["value"]
        except tomllib.TOMLDecodeError:
            value = text.strip()
        *outer, last = key.strip().split(".")
        place = nested
        for part in outer:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise ConfigError(f"--set: {key.strip()}: {part!r} was given a value of its own")
        if isinstance(value, dict) or isinstance(place.get(last), dict):
            raise ConfigError(f"--set: {key.strip()}: expected one key at a time, such as probe.every=10")
        place[last] = value
    return config_from_dict(nested, config, origin="--set")


def differing_keys(one: RunConfig, other: RunConfig) -> list[str]:
    """Name the keys whose values differ, as dotted names."""
    left, right = _flat(config_to_dict(one)), _flat(config_to_dict(other))
    return sorted(key for key in left.keys() | right.keys() if left.get(key) != right.get(key))


def value_of(config: RunConfig, key: str) -> Any:
    """Give the value of a dotted key."""
    return _flat(config_to_dict(config))[key]


def describe_settings() -> list[tuple[str, str, Any, str]]:
    """List every key as (dotted name, type, default, meaning)."""
    rows: list[tuple[str, str, Any, str]] = []
    for outer in fields(RunConfig):
        if is_dataclass(outer.default):
            rows += [
                (f"{outer.name}.{inner.name}", _type_name(inner), _written(inner.default), inner.metadata["doc"])
                for inner in fields(outer.default)
            ]
        else:
            rows.append((outer.name, _type_name(outer), outer.default, outer.metadata["doc"]))
    return rows


def _overlay(base: Any, values: Mapping[str, Any], prefix: str, origin: str) -> Any:
    known = {entry.name: entry for entry in fields(base)}
    changes: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in known:
            raise ConfigError(f"{origin}: unknown key {name!r}{nearest_name(key, known)}")
        if is_dataclass(known[key].default):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{origin}: {name}: expected a table of keys, got {value!r}")
            changes[key] = _overlay(getattr(base, key), value, f"{name}.", origin)
        else:
            changes[key] = _checked(known[key], value, name, origin)
    if isinstance(base, ProbeConfig):
        changes = _one_or_several(changes)
    try:
        return replace(base, **changes)
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from None


def _one_or_several(changes: dict[str, Any]) -> dict[str, Any]:
    """Let `position` name the first token, and `positions` be empty where that is the only one, whoever was given."""
    if tokens := changes.get("positions"):
        return changes | {"position": tokens[0], "positions": tokens if len(tokens) > 1 else ()}
    return changes | {"positions": ()} if "position" in changes else changes


def _checked(entry: Field, value: Any, name: str, origin: str) -> Any:
    wanted: Any = entry.type
    if isinstance(entry.default, tuple):
        return _checked_words(entry, value, name, origin)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    # type() and not isinstance(): True is no whole number
    if type(value) is not wanted:
        raise ConfigError(f"{origin}: {name}: expected {_type_name(entry)}, got {value!r}")
    low, high, choices = (entry.metadata[key] for key in ("low", "high", "choices"))
    if wanted is float and not abs(value) < float("inf"):
        raise ConfigError(f"{origin}: {name}: expected a finite number, got {value!r}")
    if low is not None and value < low:
        raise ConfigError(f"{origin}: {name}: expected at least {low}, got {value!r}")
    if high is not None and value > high:
        raise ConfigError(f"{origin}: {name}: expected at most {high}, got {value!r}")
    if choices and value not in choices:
        raise ConfigError(
            f"{origin}: {name}: expected one of {', '.join(choices)}, got {value!r}{nearest_name(value, choices)}"
        )
    return value


def _checked_words(entry: Field, value: Any, name: str, origin: str) -> tuple[str, ...]:
    choices = entry.metadata["choices"]
    if not isinstance(value, list | tuple) or not all(isinstance(word, str) for word in value):
        raise ConfigError(f'{origin}: {name}: expected {_type_name(entry)}, got {value!r}; write ["{choices[0]}"]')
    for word in value:
        if word not in choices or value.count(word) > 1:
            raise ConfigError(
                f"{origin}: {name}: expected each of {', '.join(choices)} once at most, got {word!r}"
                f"{nearest_name(word, choices)}"
            )
    return tuple(value)


def _type_name(entry: Field) -> str:
    if isinstance(entry.default, tuple):
        return "a list of strings"
    return {int: "a whole number", float: "a number", str: "a string"}[entry.type]  # type: ignore[index]


def _plain(config: Any) -> dict[str, Any]:
    plain = {entry.name: getattr(config, entry.name) for entry in fields(config) if entry.default is not MISSING}
    # an empty list is as good as none
    return {
        name: _plain(value) if is_dataclass(value) else _written(value) for name, value in plain.items() if value != ()
    }


def _written(value: Any) -> Any:
    """Give a value as TOML has it."""
    return list(value) if isinstance(value, tuple) else value


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return flat
