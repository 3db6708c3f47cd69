"""Lays out the floors of roofline.py for shapes and presets, as lines and as a page; it counts nothing."""

import math
from collections.abc import Iterator
from typing import Any

from fastcluster_lm.benchmarks.markdown import percent, short, table, wrapped
from fastcluster_lm.benchmarks.roofline import (
    A100,
    FRESH_ITER,
    GPUS,
    H100,
    WARM_ITER,
    Probe,
    Work,
    capture_states,
    cluster_sums,
    floor_of,
    kmeans_assign,
    linear_cross_entropy,
    nearest_neighbors,
    step_floor,
    total,
    training_step,
    tsne_forces,
    tsne_step,
)
from fastcluster_lm.benchmarks.roofline_ways import GOAL, argue, probe_of
from fastcluster_lm.config import RunConfig, load_preset

SHAPES = ((7, 1000, 32), (7, 4096, 768), (13, 8192, 2048))
PRESETS = ("tiny-constant", "paper-768", "paper-2048")
KINDS = ("cold", "warm", "step")
CADENCES = (50, 10, 1)
# GPT-2's; the tasks' own vocabularies are too small for a kernel of their own
VOCABULARY = 50_257
COMPUTED = "computed, not measured: nothing here ran on a GPU"


def bench_roofline() -> Iterator[dict[str, Any]]:
    """Give the floors of the presets' training steps and probes.

    Units:  milliseconds; uncached_ms: where every tile's reading came from memory
    """
    for preset in PRESETS:
        config = load_preset(preset)
        for gpu in GPUS:
            line = {"bench": "roofline", "preset": preset, "gpu": gpu.name, "measured": False}
            yield {**line, "kind": "training step", "floor_ms": step_floor(config, gpu) * 1e3}
            for kind in KINDS:
                stages = probe_of(config).stages(kind)
                floors = {
                    "floor_ms": floor_of(stages, gpu) * 1e3,
                    "uncached_ms": floor_of(stages, gpu, cached=False) * 1e3,
                }
                yield {**line, "kind": f"{kind} probe", "launches": int(total(stages).launches), **floors}


def page() -> str:
    """Write the page."""
    configs = {name: load_preset(name) for name in PRESETS}
    parts = [_head(), _gpus(), _kernels(), _probes(), _stages(), _steps(configs), _shares(configs), argue(configs)]
    return "\n\n".join(wrapped(block) for part in parts for block in part.split("\n\n")) + "\n"


def _head() -> str:
    return f"""# Roofline

Every figure on this page is **{COMPUTED}**. `fclm bench roofline -o benchmarks/roofline.md` writes it from the sizes of
the work alone, and a test holds the two together.

A kernel's floor is max(bytes / bandwidth, operations / peak) + launches; kernels follow one another, so floors add up.
Real times are longer: no kernel reaches both peaks, and the host's own time for an operation of torch or Triton, which
may be several times a launch's, is left out. So a floor that is too high settles a question, and one that is low enough
does not.

- *Bytes once* read each operand and write each result once, as if the L2 cache kept all that a tile reads again. *Bytes
asked* are what the programs ask for, tile by tile; *uncached* floors take all of them from memory.
- Operations are counted in slots of a fused multiply-add, two each, as peaks are; padding that a tile computes counts.
- What one operation of torch writes and the next one reads counts as memory traffic, though the little of a small shape
may stay in the cache.
- Launches of what torch does are operations dispatched by a probe of `tiny-constant` on pretended CUDA tensors, views
left out; a compiled forward is taken as 8 kernels a block, a captured training step as 31 a block and 30 more.
- A full probe scores both splits, n points each, and half of them, m, on the map. At the three shapes cold maps take
500 iterations and warm ones 100, and none ends early. Scores are made on the host and not counted.
- KMeans takes {FRESH_ITER} iterations a call, {WARM_ITER} from warm centroids. The data decide that: an
untrained `tiny-constant` took 16 to 48, and 16 to 24.
- A step probe scores task labels of the m training points."""


def _gpus() -> str:
    rows = [
        ["fp32, TFLOP/s", *(f"{gpu.peaks['fp32'] / 1e12:g}" for gpu in GPUS), "data sheets [1, 2]"],
        [
            "TF32, TFLOP/s",
            *(f"{gpu.peaks['tf32'] / 1e12:g}" for gpu in GPUS),
            "[1, 2], without sparsity: half of [1]'s figure",
        ],
        ["bfloat16, TFLOP/s", *(f"{gpu.peaks['bf16'] / 1e12:g}" for gpu in GPUS), "likewise"],
        ["memory, GB/s", *(f"{gpu.memory / 1e9:g}" for gpu in GPUS), "[1, 2]"],
        ["launch in a stream, µs", *(f"{gpu.stream * 1e6:g}" for gpu in GPUS), "[3], a V100"],
        ["launch within a CUDA graph, µs", *(f"{gpu.graph * 1e6:g}" for gpu in GPUS), "[3], a V100"],
    ]
    return f"""## The two GPUs

{table(["", *(gpu.name for gpu in GPUS), "source"], rows)}

[1] NVIDIA H100 Tensor Core GPU, data sheet, column SXM. [2] NVIDIA A100 Tensor Core GPU, data sheet, column A100 80GB
SXM. [3] A. Gray, "Getting Started with CUDA Graphs", NVIDIA Technical Blog 2019: a kernel of 2.9 µs took 3.8 µs where
launches followed each other, 3.4 µs within a graph, and 9.6 µs where the host waited for each. No such figure was found
for the two GPUs."""


def _kernels() -> str:
    rows = []
    for layers, n, d in SHAPES:
        head = dict(
            zip(("forward", "hidden gradient", "weight gradient"), linear_cross_entropy(n, d, VOCABULARY), strict=True)
        )
        works = {
            "nearest_neighbors, k = 5": nearest_neighbors(layers, n, n, d, 5),
            "nearest_neighbors, k = 90": nearest_neighbors(layers, n, n, d, 90),
            "kmeans_assign, k = 12, 10 runs": kmeans_assign(layers, 10, n, 12, d),
            "kmeans_assign, k = 96, 10 runs": kmeans_assign(layers, 10, n, 96, d),
            "cluster_sums, k = 12, 10 runs": cluster_sums(layers, 10, n, 12, d),
            "cluster_sums, k = 96, 10 runs": cluster_sums(layers, 10, n, 96, d),
            "tsne_forces, 180 entries a point": tsne_forces(layers, n, 180 * n),
            "tsne_step": tsne_step(layers, n),
            "capture_states, a layer": capture_states(n, d),
            **{f"linear_cross_entropy, {name}": work for name, work in head.items()},
        }
        for name, work in works.items():
            sizes = [work.launches, work.once / 1e6, work.asked / 1e6, work.operations / 1e9]
            floors = [
                work.floor(H100),
                work.floor(H100, cached=False),
                work.floor(A100),
                work.floor(A100, cached=False),
            ]
            rows.append([f"{layers}, {n:,}, {d}", name, *map(short, sizes), *(short(floor * 1e6) for floor in floors)])
    header = ["layers, n, width", "kernel", "launches", "MB once", "MB asked", "Gop"]
    header += [f"{gpu} {how}µs" for gpu in ("H100", "A100") for how in ("", "uncached ")]
    return f"""## Kernels, one call each

n points against themselves, or n rows of a vocabulary of {VOCABULARY:,}. All take fp32 but `linear_cross_entropy`,
whose 16-bit inputs are multiplied in TF32; its backward computes all logits anew for each block of columns.

{table(header, rows)}"""


def _probes() -> str:
    rows = []
    for layers, n, d in SHAPES:
        for kind in KINDS:
            stages = Probe(layers, n, n // 2, d).stages(kind)
            work = total(stages)
            floors = [floor_of(stages, gpu, cached=cached) * 1e3 for gpu in GPUS for cached in (True, False)]
            sizes = [work.launches, work.once / 1e9, work.asked / 1e9, work.operations / 1e12, *floors]
            rows.append([f"{layers}, {n:,}, {d}", kind, *map(short, sizes), short(work.launches * H100.stream * 1e3)])
    header = ["layers, n, width", "probe", "launches", "GB once", "GB asked", "Top"]
    header += ["H100 ms", "H100 uncached ms", "A100 ms", "A100 uncached ms", "of it launches ms"]
    return f"""## Whole probes

{table(header, rows)}"""


def _stages() -> str:
    probes = [Probe(layers, n, n // 2, d) for layers, n, d in SHAPES]
    found = [probe.stages(kind) for kind in ("cold", "step") for probe in probes]
    rows = []
    for name in dict.fromkeys(name for stages in found for name in stages):
        rows.append(
            [name, *(short(floor_of({"": stages[name]}, H100) * 1e3) if name in stages else "" for stages in found)]
        )
    header = ["stage", *(f"{kind}: {', '.join(map(str, shape))}" for kind in ("cold", "step") for shape in SHAPES)]
    return f"""### Where their time goes: milliseconds on an H100

{table(header, rows)}"""


def _steps(configs: dict[str, RunConfig]) -> str:
    rows = []
    for name, config in configs.items():
        work: Work = total(training_step(config))
        tokens = config.training.batch_size * (config.tasks.instruction_length + 1)
        sizes = [tokens, work.launches, work.once / 1e6, work.operations / 1e9]
        rows.append([name, *map(short, sizes), *(short(step_floor(config, gpu) * 1e3) for gpu in GPUS)])
    return f"""## Training steps

Forward and backward take 6 operations a parameter and token that meet (the last block and the head see one token an
instance), attention beside them; memory carries weights, their bfloat16 copies, gradients, AdamW's moments and
activations. The step is one captured graph.

{table(["preset", "tokens", "kernels", "MB", "Gop", "H100 ms", "A100 ms"], rows)}"""


def _shares(configs: dict[str, RunConfig]) -> str:
    rows: list[list[str]] = []
    kept: dict[int, list[str]] = {every: [] for every in CADENCES}
    for name, config in configs.items():
        for gpu in GPUS:
            for kind in KINDS:
                floor = floor_of(probe_of(config).stages(kind), gpu)
                steps = floor / step_floor(config, gpu)
                shares = (percent(steps / every) for every in CADENCES)
                rows.append([name, gpu.name, kind, short(floor * 1e3), *shares, f"{math.ceil(steps / GOAL):,}"])
                for every in CADENCES:
                    if steps / every <= GOAL:
                        kept[every].append(f"{kind} probes of `{name}` ({gpu.name})")
    header = ["preset", "GPU", "probe", "ms", *(f"every {every}" for every in CADENCES), "5 % at every"]
    return f"""## What probes cost beside training: probe / steps between two of them

On one GPU, where nothing overlaps; a stream of its own lets a probe fill what training leaves idle, which in a step of
large matmuls is little. Full probes at a cadence below 10 are not the design's, which takes step probes there. The last
column is the least cadence that keeps to 5 %. These floors keep to it at every
{"; at every ".join(f"{every}: {', '.join(names) or 'none'}" for every, names in kept.items())}.

{table(header, rows)}"""
