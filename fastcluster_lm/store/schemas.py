"""What a run's files of text must hold, as types that msgspec checks; extra keys of a newer version are let be."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Required, TypedDict

import msgspec
from msgspec import Meta

# as far as a float64 counts in ones
MOST = 2**53
# more than any model has, and few enough to draw
MOST_LAYERS = 1000

Whole = Annotated[int, Meta(ge=0, le=MOST)]
Positive = Annotated[int, Meta(ge=1, le=MOST)]
Layer = Annotated[int, Meta(ge=0, le=MOST_LAYERS)]
# neither infinite nor NaN
Finite = Annotated[float, Meta(ge=-1.7e308, le=1.7e308)]
# a name, not a novel
Word = Annotated[str, Meta(max_length=10_000)]


class Model(TypedDict, total=False):
    n_layers: Required[Layer]
    d_model: Required[Annotated[int, Meta(ge=1, le=2**20)]]


class Report(TypedDict, total=False):
    space: Required[Literal["hidden", "map"]]
    group: Required[Literal["all", "input", "input_output"]]
    layer: Required[Annotated[int, Meta(ge=-1, le=MOST_LAYERS)]]


class Resolved(TypedDict, total=False):
    engine: Required[Word]
    device: Required[Word]
    threads: Annotated[int, Meta(ge=1, le=2**16)]
    n_parameters: Whole


class OwnResolved(TypedDict, total=False):
    """What a run trained here was begun with, and is gone on with."""

    engine: Required[Word]
    device: Required[Annotated[str, Meta(pattern=r"^(cpu|cuda(:[0-9]{1,3})?)\Z")]]
    threads: Required[Annotated[int, Meta(ge=1, le=2**16)]]
    n_parameters: Whole


class Task(TypedDict, total=False):
    name: Required[str]
    expressions: Required[list[str]]
    table: Required[dict[str, str]]


class Tasks(TypedDict, total=False):
    inputs: Required[Annotated[list[str], Meta(min_length=1)]]
    outputs: Required[list[str]]
    lengths: Required[list[Positive]]
    tasks: Required[list[Task]]


class Data(TypedDict, total=False):
    n_train_instructions: Required[Positive]
    n_val_instructions: Required[Positive]


class Probe(TypedDict, total=False):
    """Which tokens are probed: one, or several in an order."""

    position: Word
    positions: list[Word]


class Training(TypedDict, total=False):
    steps: Required[Positive]


class Attached(TypedDict, total=False):
    names: Required[dict[str, list[str]]]
    instances: Required[dict[str, Positive]]


class _AnyRun(TypedDict, total=False):
    name: Required[Word]
    seed: Required[Whole]
    model: Required[Model]
    report: Required[Report]
    probe: Probe
    scores: dict[str, Any]


class OwnRun(_AnyRun, total=False):
    """run.toml of a run that was trained here; what its settings mean is config.py's."""

    resolved: Required[OwnResolved]
    data: Required[Data]
    training: Required[Training]
    taskset: Required[Tasks]


class AttachedRun(_AnyRun, total=False):
    """run.toml of a probe of a model that others train or have trained."""

    resolved: Required[Resolved]
    attached: Required[Attached]


class StepRow(TypedDict, total=False):
    """A line of steps.jsonl; columns of an older version may be missing."""

    step: Required[Whole]
    loss: Finite | None
    lr: Finite | None
    grad_norm: Finite | None
    val_accuracy: Finite | None
    step_ms: Finite | None
    probe_ms: Finite | None
    probe_wait_ms: Finite | None
    tokens_per_s: Finite | None
    skipped: str | None


class ScoreRow(TypedDict, total=False):
    """A line of scores.jsonl; columns of an older version may be missing, all but two."""

    step: Required[Whole]
    layer: Required[Layer]
    split: Word | None
    space: Word | None
    group: Word | None
    labels: Word | None
    tier: Word | None
    source: Word | None
    age_steps: Finite | None
    n_points: Whole | None
    n_clusters: Whole | None
    ari: Finite | None
    ami: Finite | None
    f1: Finite | None
    f1_pairwise: Finite | None
    f1_bcubed: Finite | None
    knn_share: Finite | None
    knn_accuracy: Finite | None
    knn_share_across: Finite | None
    null_ari: Finite | None
    null_ami: Finite | None
    null_f1: Finite | None
    null_knn_share: Finite | None
    null_knn_share_across: Finite | None
    ceiling_output: Finite | None
    cdnv: Finite | None
    intrinsic_dimension: Finite | None
    neighbor_overlap: Finite | None
    engine: Word | None
    warm: bool | None
    kl: Finite | None
    trustworthiness: Finite | None
    null_kind: Literal["distributions", "permutation"] | None
    base_rate: Finite | None
    position: Word | None


class Summary(TypedDict, total=False):
    """summary.json of a finished run; a probed model's has no training in it."""

    steps: Whole
    early_stopping_step: Whole | None
    val_accuracy: Finite | None
    probes: Whole
    probe_seconds: Finite
    probe_wait_seconds: Finite
    step_seconds: Finite
    probe_share: Finite
    wall_seconds: Finite


class StoredFile(TypedDict, total=False):
    bytes: Required[Whole]
    sha256: Required[Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]]


class CheckpointRecord(TypedDict, total=False):
    """state.json of a checkpoint; the state is the trainer's."""

    format: Required[int]
    step: Required[Whole]
    files: Required[dict[str, StoredFile]]
    state: Required[dict[str, Any]]


class TensorEntry(TypedDict, total=False):
    """A tensor in the header of a safetensors file."""

    dtype: Required[str]
    shape: Required[list[Whole]]
    data_offsets: Required[tuple[Whole, Whole]]


def check(value: object, schema: Any) -> None:
    """Refuse a value that does not fit a schema; it is neither changed nor copied.

    Errors: ValueError naming the place in it, what was expected and what came
    """
    try:
        msgspec.convert(value, schema)
    except msgspec.ValidationError as error:
        what, _, place = str(error).partition(" - at ")
        found = f"{place.strip('`').removeprefix('$').removeprefix('.')}: " if place else ""
        raise ValueError(f"{found}{what[:1].lower()}{what[1:]}") from None
    except RecursionError:
        raise ValueError("values that nest too deep") from None


def check_run(values: Mapping[str, Any]) -> None:
    """Refuse the contents of a run.toml that is neither an own run's nor an attached probe's.

    Errors: ValueError as for check
    """
    check(values, AttachedRun if "attached" in values else OwnRun)
