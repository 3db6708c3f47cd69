"""Says what would bring probes to 5 % of training, change by change, by roofline.py's figures; it counts nothing."""

import math
from dataclasses import replace

from fastcluster_lm.benchmarks.markdown import milliseconds, percent, short, table
from fastcluster_lm.benchmarks.roofline import (
    H100,
    Probe,
    Work,
    cluster_sums,
    floor_of,
    nearest_neighbors,
    step_floor,
    total,
)
from fastcluster_lm.config import RunConfig

# largest share of training that probes may take
GOAL = 0.05


def probe_of(config: RunConfig) -> Probe:
    """Give the probe of a run, with as many points as it asks for."""
    tasks, scores = config.tasks, config.scores
    return Probe(
        config.model.n_layers + 1,
        config.probe.n_points,
        config.probe.map_points,
        config.model.d_model,
        n_tasks=tasks.n_tasks,
        n_distributions=tasks.n_tasks * tasks.n_distributions,
        n_inputs=tasks.n_inputs,
        n_outputs=tasks.n_outputs,
        n_init=scores.n_init,
        n_iter=scores.n_iter,
        warm_iter=scores.warm_iter,
        step_iter=scores.step_iter,
        tokens=tasks.instruction_length + 1,
    )


def share(config: RunConfig, probe: Probe, kind: str, every: int, *, graph: bool = False) -> float:
    """Give a probe's floor on an H100 over that of the steps between two of them."""
    return floor_of(probe.stages(kind), H100, graph=graph) / (every * step_floor(config, H100))


def ways(config: RunConfig, kind: str, every: int) -> dict[str, float]:
    """Make one change after the other, and give the share after each."""
    probe = probe_of(config)
    found = {"as it is": share(config, probe, kind, every)}
    probe = replace(probe, streamed=True)
    found["states of training batches"] = share(config, probe, kind, every)
    probe = replace(probe, n_init=1)
    found["one KMeans restart"] = share(config, probe, kind, every)
    probe = replace(probe, fused=True)
    found["torch's small operations fused"] = share(config, probe, kind, every)
    found["captured as a graph"] = share(config, probe, kind, every, graph=True)
    probe = replace(probe, step_iter=0, warm_iter=probe.warm_iter // 2)
    found["no map in step probes, half a warm map's iterations"] = share(config, probe, kind, every, graph=True)
    probe = replace(probe, tensor=True)
    found["TF32"] = share(config, probe, kind, every, graph=True)
    probe = replace(probe, n=probe.n // 2, m=probe.m // 2)
    found["half the points"] = share(config, probe, kind, every, graph=True)
    return found


def argue(configs: dict[str, RunConfig]) -> str:
    """Write what each change would save, and why, with the figures of the presets `tiny-constant` and `paper-2048`."""
    rows = []
    for name, config in configs.items():
        for kind, every in (("step", 1), ("warm", 50)):
            found = ways(config, kind, every)
            rows.append([f"{name}: {kind} probes, every {every}", *map(percent, found.values())])
            rows[-1].append(f"{math.ceil(list(found.values())[-1] * every / GOAL):,}")
    small, large = configs["tiny-constant"], configs["paper-2048"]
    cold = total(probe_of(small).stages("cold"))
    clusters = _part(small, "cold", "KMeans").launches / cold.launches
    descent = floor_of({"": probe_of(small).stages("warm")["t-SNE steps"]}, H100)
    room = GOAL * step_floor(small, H100)
    warm = probe_of(large).stages("warm")
    hidden = sum(floor_of({name: works}, H100) for name, works in warm.items() if name.startswith("KMeans hidden"))
    sums, points = cluster_sums(14, 10, 1920, 96, 2048), 14 * 10 * 1920 * (4 * 2048 + 8)
    exact = nearest_neighbors(7, 4096, 4096, 768, 90)
    states = floor_of({"": probe_of(large).stages("step")["states"]}, H100) / step_floor(large, H100)
    last = {name: list(ways(config, "step", 1).values())[-1] for name, config in configs.items()}
    least = ", ".join(f"{percent(value)} of `{name}`" for name, value in last.items())
    return f"""## What would bring them to 5 %

Changes one upon the other, from left to right, on an H100; the last column is the least cadence that keeps to 5 %
after all of them.

{table(["", *found, "5 % at every"], rows)}

**Where launches are all.** A cold probe of `tiny-constant` makes {short(cold.launches)} launches, {percent(clusters)}
of them KMeans's, each of whose iterations is some fifty operations. Launches alone take
{milliseconds(cold.launches * H100.stream)}, 50 steps {milliseconds(50 * step_floor(small, H100))}. The descent of
t-SNE, two launches an iteration, would save {milliseconds(1000 * (H100.stream - H100.graph))} of a cold map if it
were captured as a graph, and half of the warm iterations are {milliseconds(descent / 2)}: neither decides. One kernel
for what follows the assignment, one for a step of seeding and one for the bisection take most of the launches away; a
graph of eight iterations takes {percent(1 - H100.graph / H100.stream)} off each, and nearly all of the host's time,
which is not in these figures. Of a step of `tiny-constant` 5 % are {short(room * 1e6)} µs, or
{int(room / H100.stream)} launches in a stream, or
{int(room / H100.graph)} in a graph, and a step probe makes {short(total(probe_of(small).stages("step")).launches)}:
no probe of more kernels than that keeps to 5 % at every step of so small a model. It must be rarer, or run on another
GPU.

**Where arithmetic is.** In a warm full probe of `paper-2048` KMeans on hidden states takes {milliseconds(hidden)} of
{milliseconds(floor_of(warm, H100))}: ten restarts in exact fp32. One restart is the largest saving. `cluster_sums`
multiplies by the clusters' indicator, {short(sums.operations / 1e9)} Gop for 96 clusters in
{milliseconds(sums.floor(H100))}; sums of points sorted by cluster would read each point once a run, in
{milliseconds(points / H100.memory)}. The inertia of each run in float64 moves 16 floats for each one of the points; a
pass in fp32 that adds in float64 would read it once.

**Where a tile is too small.** With 90 neighbours a program holds 8 queries, so that every 8 read the whole bank:
{short(exact.asked / 1e9)} GB asked at (7, 4096, 768), for {short(exact.once / 1e9)} GB of operands. Uncached that is
{milliseconds(exact.floor(H100, cached=False))} against {milliseconds(exact.floor(H100))}: arithmetic decides only as
long as the L2 cache holds. Products in TF32 that propose candidates, and differences in fp32 among these, would lower
both.

**What cannot be tuned away.** A step probe of the fixed set runs the model itself, at `paper-2048` for
{percent(states)} of a step: only states of training batches (`probe.source=batch`) leave room for a probe at every
step. With every change above it would take {least}: the share falls as steps grow, and
fewer points must make up the rest."""


def _part(config: RunConfig, kind: str, start: str) -> Work:
    """Add up the stages of a run's probe whose name begins so."""
    return total({name: works for name, works in probe_of(config).stages(kind).items() if name.startswith(start)})
