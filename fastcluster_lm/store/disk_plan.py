"""What a run will take on disk, reckoned from its configuration and task set alone; it looks at no folder."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tomli_w

from fastcluster_lm.config import RunConfig, config_to_dict
from fastcluster_lm.errors import ConfigError
from fastcluster_lm.tasks import TaskSet

MIB = 2**20
# rows of one layer in a full probe: two splits, nine places of the hidden space, five of the map
FULL_ROWS = 28
# bytes of a row without its position's name, as measured on nano and tiny, probed every 50 steps and every one; of a
# step's row: bare, what a run that is probed adds to it, and what the time of its own probe adds
FULL_ROW, STEP_PROBE_ROW = 711, 654
STEP_ROW, BESIDE_PROBES, PROBED = 232, 16, 9
# rows may take this much more than was reckoned
ROWS_MARGIN = 1.05
# run.toml beside its config and task set, environment.json, summary.json and lock
BESIDE = 2500
STATE_JSON = 700
GENERATOR = 5056
ITEM = {"F32": 4, "F64": 8, "I32": 4, "I64": 8, "U8": 1}
LABELS = ("distribution", "ids", "input", "is_val", "output", "task")

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class DiskPlan:
    """Bytes of one checkpoint, one map, all rows and what is beside them, and how many there will be at the end."""

    checkpoint: int
    n_checkpoints: int
    map: int
    n_maps: int
    rows: int
    beside: int

    @property
    def total(self) -> int:
        """Bytes at the end of the run."""
        return self.checkpoint * self.n_checkpoints + self.map * self.n_maps + self.rows + self.beside

    @property
    def least(self) -> int:
        """Bytes that a run needs: rows, and two checkpoints, since one stays until the next is whole."""
        return 2 * self.checkpoint + round(self.rows * ROWS_MARGIN) + self.beside

    def __str__(self) -> str:
        parts = [_counted(self.n_checkpoints, "checkpoint", self.checkpoint), f"rows {_mib(self.rows)}"]
        if self.n_maps:
            parts.insert(1, _counted(self.n_maps, "map", self.map))
        return f"{_mib(self.total)} MiB on disk at the end: {', '.join(parts)}"


def plan_disk(config: RunConfig, taskset: TaskSet, weights: Shapes | None = None) -> DiskPlan:
    """Reckon what a run will take; weights are the shapes of another model than GPT-2's, by name."""
    weights = _gpt2(config, taskset) if weights is None else weights
    n_checkpoints = math.ceil(config.training.steps / config.training.checkpoint_every)
    if config.training.keep_checkpoints:
        n_checkpoints = min(n_checkpoints, config.training.keep_checkpoints)
    full, n_step_rows = _probes(config, taskset)
    n_full = len(full)
    positions = config.probe.all_positions
    # a name in each row of its position
    full_row, step_probe_row = (
        sum(size + len(position) for position in positions) for size in (FULL_ROW, STEP_PROBE_ROW)
    )
    n_layers = config.model.n_layers + 1
    n_steps = config.training.steps + 1
    every = config.probe.every
    step_rows = n_steps * (STEP_ROW + (BESIDE_PROBES if every else 0)) + (n_steps // every * PROBED if every else 0)
    n_maps = n_full if config.store.keep_maps == 0 else min(n_full, config.store.keep_maps)
    toml = tomli_w.dumps({**config_to_dict(config), "taskset": taskset.to_toml_dict()})
    return DiskPlan(
        checkpoint=_checkpoint(config, taskset, weights),
        n_checkpoints=n_checkpoints,
        map=safetensors_size(_map(config, taskset)) if n_full else 0,
        n_maps=n_maps,
        rows=step_rows + n_layers * (n_full * FULL_ROWS * full_row + n_step_rows * step_probe_row),
        beside=len(toml.encode()) + BESIDE,
    )


def check_budget(plan: DiskPlan, max_mib: int) -> str:
    """Say what a limit leaves of a plan, empty where it leaves all.

    Errors: ConfigError if not even the rows and two checkpoints fit, saying what would
    """
    limit = max_mib * MIB
    if not max_mib or plan.total <= limit:
        return ""
    if plan.least > limit:
        raise ConfigError(
            f"store.max_mib: expected at least {math.ceil(plan.least / MIB)}, got {max_mib}: rows take "
            f"{_mib(plan.rows)} MiB, which never go, and two checkpoints {_mib(2 * plan.checkpoint)}, since one stays "
            "until the next is whole; raise it, or probe.every for fewer rows"
        )
    # plain maps go first, so old checkpoints keep their place as long as it holds them
    room = limit - plan.least
    old = min(plan.n_checkpoints - 1, max(0, room - 2 * plan.map) // plan.checkpoint)
    maps = min(plan.n_maps, (room - old * plan.checkpoint) // plan.map) if plan.map else 0
    return (
        f"store.max_mib={max_mib} leaves about {maps} of {plan.n_maps} maps and {old + 1} of {plan.n_checkpoints} "
        "checkpoints at the end, key frames and the newest"
    )


def safetensors_size(entries: Sequence[tuple[str, str, tuple[int, ...]]]) -> int:
    """Give the bytes of a safetensors file of these names, types and shapes."""
    header: dict[str, Any] = {}
    end = 0
    for name, kind, shape in entries:
        start, end = end, end + ITEM[kind] * math.prod(shape)
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}
    size = len(json.dumps(header, separators=(",", ":")))
    return 8 + size + -size % 8 + end


def _probes(config: RunConfig, taskset: TaskSet) -> tuple[list[int], int]:
    """List the steps of full probes, and count the rows that the step probes between them give of a layer."""
    every, steps = config.probe.every, config.training.steps
    if not every:
        return [], 0
    full = sorted({*range(0, steps + 1, config.probe.full_period), steps})
    between = sorted(set(range(0, steps + 1, every)).difference(full))
    filled = mapped = 0
    if config.probe.source == "batch":
        # step probes wait until the newest states fill their places, their maps until a full probe has drawn those
        places = min(_points(config, taskset, config.probe.n_points), _n_train(config, taskset))
        filled = math.ceil(places / config.training.batch_size)
        mapped = next((step for step in full if step >= filled), steps)
    with_map = sum(step > mapped for step in between) if config.scores.step_iter else 0
    return full, sum(step >= filled for step in between) + with_map


def _n_train(config: RunConfig, taskset: TaskSet) -> int:
    return len(taskset.distributions) * config.data.n_train_instructions * len(taskset.inputs)


def _gpt2(config: RunConfig, taskset: TaskSet) -> dict[str, tuple[int, ...]]:
    d = config.model.d_model
    inner = config.model.d_mlp or 4 * d
    tokens = {*taskset.alphabet, *taskset.inputs, *taskset.outputs}
    block = {
        "attn_c_proj.bias": (d,), "attn_c_proj.weight": (d, d), "c_attn.bias": (3 * d,), "c_attn.weight": (3 * d, d),
        "c_fc.bias": (inner,), "c_fc.weight": (inner, d), "ln_1.bias": (d,), "ln_1.weight": (d,), "ln_2.bias": (d,),
        "ln_2.weight": (d,), "mlp_c_proj.bias": (d,), "mlp_c_proj.weight": (d, inner),
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {
        f"blocks.{i}.{name}": shape for i in range(config.model.n_layers) for name, shape in block.items()
    }
    shapes |= {"ln_f.bias": (d,), "ln_f.weight": (d,), "wpe.weight": (max(taskset.lengths) + 1, d)}
    # one more token pads
    return {**shapes, "wte.weight": (len(tokens) + 1, d)}


def _checkpoint(config: RunConfig, taskset: TaskSet, weights: Shapes) -> int:
    model = [(name, "F32", shape) for name, shape in weights.items()]
    n_train = _n_train(config, taskset)
    moments = [("sampler/order", "I64", (n_train,)), ("sampler/position", "I64", ())]
    for name, _, shape in model:
        moments += [
            (f"{name}/exp_avg", "F32", shape),
            (f"{name}/exp_avg_sq", "F32", shape),
            (f"{name}/step", "F32", ()),
        ]
    moments.append(("sampler/generator", "U8", (GENERATOR,)))
    probe = _probe_state(config, taskset, n_train) if config.probe.every else []
    return safetensors_size(model) + safetensors_size(moments) + safetensors_size(probe) + STATE_JSON


def _points(config: RunConfig, taskset: TaskSet, asked: int) -> int:
    """Count the points of one split: as many of each distribution and input."""
    cells = len(taskset.distributions) * len(taskset.inputs)
    return asked // cells * cells


def _probe_state(config: RunConfig, taskset: TaskSet, n_train: int) -> list[tuple[str, str, tuple[int, ...]]]:
    layers, n, d = (
        config.model.n_layers + 1,
        2 * _points(config, taskset, config.probe.map_points),
        config.model.d_model,
    )
    n_tasks = len(taskset.tasks)
    scorer = [
        ("ids", "I64", (n,)),
        ("neighbor_ids", "I64", (n,)),
        ("preserved", "F64", (layers,)),
        (f"centroids/hidden/train/all/{n_tasks}", "F32", (1, layers, n_tasks, d)),
        (f"centroids/map/train/all/{n_tasks}", "F32", (1, layers, n_tasks, 2)),
        ("map", "F32", (layers, n, 2)),
        ("neighbors", "I32", (layers, n, config.scores.n_neighbors)),
        ("restart", "U8", (1,)),
    ]
    positions = config.probe.all_positions
    prefixes = ["", *(f"positions/{position}/" for position in positions[1:])]
    state = [(f"{prefix}{name}", kind, shape) for prefix in prefixes for name, kind, shape in scorer]
    if config.probe.source == "batch":
        slots = min(_points(config, taskset, config.probe.n_points), n_train)
        state += [
            ("ring/instances", "I64", (slots,)),
            ("ring/seen_at", "I64", (slots,)),
            ("ring/states", "F32", (len(positions) * layers, slots, d)),
        ]
    return state


def _map(config: RunConfig, taskset: TaskSet) -> list[tuple[str, str, tuple[int, ...]]]:
    layers, n = config.model.n_layers + 1, 2 * _points(config, taskset, config.probe.map_points)
    # about as wide as the text in the header
    text = [("__metadata__", "U8", (0,))]
    places = ["points", *(f"points/{position}" for position in config.probe.all_positions[1:])]
    return [*text, *((kind, "I64", (n,)) for kind in LABELS), *((name, "F32", (layers, n, 2)) for name in places)]


def _counted(n: int, name: str, size: int) -> str:
    return f"{n} {name}{'' if n == 1 else 's'} {_mib(n * size)}"


def _mib(size: int) -> str:
    return f"{size / MIB:,.0f}" if size >= 100 * MIB else f"{size / MIB:.3g}"
