"""Bounds GPU kernels, probes and training steps from below by bytes, operations and launches; it runs nothing."""

import math
from dataclasses import dataclass
from typing import NamedTuple

from fastcluster_lm.config import RunConfig

MIB = 2**20
# operations are counted in slots of a fused multiply-add, two each, whether or not both are used: peaks count so too
SLOT = 2
# a pair of the t-SNE forces takes 12 slots (its reciprocal has a unit of its own), an edge 7, a stage of a sort of
# 64-bit keys 4: compare and choose, by halves
PAIR, EDGE, SORT = 12 * SLOT, 7 * SLOT, 4 * SLOT
# launches of what torch does beside our kernels: operations dispatched, views left out, by one probe of
# `tiny-constant` on pretended CUDA tensors
SEED, LLOYD, KMEANS, RUN = 21, 45.25, 83, 5
VOTERS, OWN, BISECTION, MAP, TRUST, SPREAD, FULL_SCORES, STEP_SCORES = 62, 44, 16, 130, 29, 37, 1850, 100
BISECTIONS, BLOCK_BYTES = 32, 256 * MIB
# Lloyd iterations until the slowest run of all layers stands: they depend on the data. On `tiny-constant` 16 to 48
# fresh ones and 16 to 24 from warm centroids, in eights
FRESH_ITER, WARM_ITER = 32, 16


class Gpu(NamedTuple):
    """What a GPU's data sheet says: operations and bytes a second; and seconds that a launch adds to a kernel."""

    name: str
    peaks: dict[str, float]
    memory: float
    stream: float = 0.9e-6
    graph: float = 0.5e-6


H100 = Gpu("H100 SXM", {"fp32": 67e12, "tf32": 494.5e12, "bf16": 989.5e12}, 3.35e12)
A100 = Gpu("A100 SXM 80 GB", {"fp32": 19.5e12, "tf32": 156e12, "bf16": 312e12}, 2.039e12)
GPUS = (H100, A100)


class Work(NamedTuple):
    """What some launches do: bytes if every operand is read once, bytes that their programs ask for, operations."""

    launches: float
    once: float
    asked: float
    operations: float = 0.0
    precision: str = "fp32"

    def times(self, n: float) -> "Work":
        return Work(self.launches * n, self.once * n, self.asked * n, self.operations * n, self.precision)

    def floor(self, gpu: Gpu, *, cached: bool = True, graph: bool = False) -> float:
        """Give the least seconds: max(bytes / bandwidth, operations / peak) + launches.

        cached: a tile's second reading of an operand costs no memory traffic; else it costs as much as the first
        """
        seconds = max((self.once if cached else self.asked) / gpu.memory, self.operations / gpu.peaks[self.precision])
        return seconds + self.launches * (gpu.graph if graph else gpu.stream)


Stages = dict[str, list[Work]]


def floor_of(stages: Stages, gpu: Gpu, **how: bool) -> float:
    """Add the floors of all kernels, which run one after the other."""
    return sum(work.floor(gpu, **how) for works in stages.values() for work in works)


def total(stages: Stages) -> Work:
    """Add what all kernels do; the sum's own floor is lower than theirs."""
    works = [work for part in stages.values() for work in part]
    return Work(
        sum(work.launches for work in works),
        sum(work.once for work in works),
        sum(work.asked for work in works),
        sum(work.operations for work in works),
    )


def nearest_neighbors(layers: int, n_queries: int, n_bank: int, d: int, k: int) -> Work:
    """Count nearest_neighbors: a program holds a few queries and walks over the whole bank, in chunks of 16 widths."""
    q, b = (32, 32) if k <= 32 else (8, 128) if k <= 128 else (8, 256)
    rows, columns, padded = -(-n_queries // q), -(-n_bank // b), -(-d // 16) * 16
    log = b.bit_length() - 1
    pair = 2 * SLOT * padded + SLOT * padded // 16 + SORT * (log * (log + 1) // 2 + log)
    out = 12 * n_queries * k
    once = (4 * d + 8) * (n_queries + n_bank) + out
    asked = (4 * d + 8) * n_bank * rows + n_queries * (4 * d * columns + 8) + out
    return Work(1, layers * once, layers * asked, layers * rows * q * columns * b * pair)


def kmeans_assign(problems: int, runs: int, n: int, k: int, d: int) -> Work:
    """Count kmeans_assign: points are read once for their norms and again for each block of centroids."""
    block_k = 16 if k <= 16 else 32
    blocks, narrow = -(-k // block_k), d <= 8
    rows = -(-n // (64 if narrow or k > 16 else 32))
    once = 4 * d * (n + runs * k) + 12 * runs * n
    asked = runs * (4 * d * (n * (blocks + (not narrow)) + rows * k) + 12 * n)
    pair = (2 if narrow else 1) * SLOT * d + 3 * SLOT
    return Work(1, problems * once, problems * asked, problems * runs * n * blocks * block_k * pair)


def cluster_sums(problems: int, runs: int, n: int, k: int, d: int) -> Work:
    """Count cluster_sums: a matmul with the clusters' indicator in parts of 1,024 points, and the sum of the parts."""
    block_k, block_d = 16 if k <= 16 else 32, 1 if d <= 8 else 64
    blocks, columns, parts = -(-k // block_k), -(-d // block_d), -(-n // 1024)
    partial = runs * k * (4 * d + 4) * (2 * parts + 1)
    asked = runs * n * blocks * (4 * d + 8 * columns) + partial
    products = runs * n * blocks * block_k * columns * block_d * SLOT
    return Work(3, problems * (4 * n * d + 8 * runs * n + partial), problems * asked, problems * products)


def tsne_forces(layers: int, n: int, n_edges: int) -> Work:
    """Count tsne_forces: every ordered pair of a layer's points, and n_edges entries of its affinities."""
    block_i, block_j = (16, 128) if n <= 4096 else (32, 64)
    rows, columns = -(-n // block_i), -(-n // block_j)
    out = 32 * n + 8 * rows
    pairs = rows * block_i * columns * block_j * PAIR
    once, asked = 8 * n + 8 * n_edges + out, 8 * n * rows + 16 * n_edges + out
    return Work(1, layers * once, layers * asked, layers * (pairs + n_edges * EDGE))


def tsne_step(layers: int, n: int) -> Work:
    """Count tsne_step: nine floats a coordinate, and every program adds up all shares of normaliser and mean."""
    rows, steps = -(-n // (16 if n <= 4096 else 32)), -(-n // 256)
    sums = 8 * rows + 16 * steps
    return Work(1, layers * (72 * n + sums), layers * (72 * n + steps * sums), layers * n * 36 * SLOT)


def capture_states(batch: int, d: int) -> Work:
    """Count capture_states, for one layer."""
    return Work(1, batch * (8 * d + 12), batch * (8 * d + 12), batch * d * SLOT)


def linear_cross_entropy(n: int, d: int, v: int) -> list[Work]:
    """Count forward, hidden gradient and weight gradient; both compute all logits anew for each block of columns."""
    rows, tokens, outs = -(-n // 64), -(-v // 64), -(-d // (32 if d <= 32 else 128 if d <= 128 else 256))
    logits, once = 2 * d * (tokens * n + rows * v), 2 * d * (n + v)
    products = SLOT * rows * 64 * tokens * 64 * d
    hidden = Work(2, once + 4 * n * d, outs * logits + 2 * d * rows * v + 4 * n * d, (outs + 1) * products, "tf32")
    weight = Work(1, once + 2 * v * d, outs * logits + 2 * d * tokens * n + 2 * v * d, (outs + 1) * products, "tf32")
    return [Work(1, once + 12 * n, logits + 12 * n, products, "tf32"), hidden, weight]


def torch_pass(launches: float, bytes_: float, operations: float = 0.0, precision: str = "fp32") -> Work:
    """Count operations of torch itself, which read each operand once."""
    return Work(launches, bytes_, bytes_, operations, precision)


@dataclass(frozen=True)
class Probe:
    """One probe: states of n points a split at width d, of which m a split are on the map.

    tokens: of an instance; streamed: training states come from training batches, and no forward is needed for them
    fused: as if what torch does of seeding, Lloyd's iterations, inertia, affinities, frames and scores were one or two
        kernels each; tensor: as if distances and cluster sums were multiplied in TF32
    """

    layers: int
    n: int
    m: int
    d: int
    n_tasks: int = 12
    n_distributions: int = 48
    n_inputs: int = 8
    n_outputs: int = 4
    n_init: int = 10
    n_iter: int = 500
    warm_iter: int = 100
    step_iter: int = 5
    tokens: int = 9
    streamed: bool = False
    fused: bool = False
    tensor: bool = False

    def stages(self, kind: str) -> Stages:
        """Count a probe of a kind, stage by stage: "cold" and "warm" are full ones, "step" is of the lower tier."""
        return self._step() if kind == "step" else self._full(self.n_iter if kind == "cold" else self.warm_iter)

    def _full(self, iterations: int) -> Stages:
        stages: Stages = {"states": self._states(self.n if self.streamed else 2 * self.n)}
        every = (self.n_tasks, self.n_distributions, self.n_inputs, self.n_outputs, self.n_tasks * self.n_inputs)
        groups, cells = self.n_inputs, self.n_inputs * self.n_outputs
        # splits go together, and groups of one size
        jobs = [(2, self.n, k, self.d) for k in every]
        # a group counts where each label has five points
        within = [k for k in {self.n_tasks, self.n_distributions, self.n_outputs} if self.n // groups // k >= 5]
        jobs += [(2 * groups, self.n // groups, k, self.d) for k in sorted(within)]
        jobs += [(2 * cells, self.n // cells, max(2, self.n_tasks // self.n_outputs), self.d)]
        jobs += [(2, self.m, k, 2) for k in every]
        for sets, n, k, d in jobs:
            self._kmeans(stages, self.layers * sets, n, k, d, self.n_init, warm=False)
        # both splits vote twice: among other instructions, and among other distributions
        for sets in (1, groups, cells):
            self._neighbors(stages, "neighbours that vote", 4, self.layers * sets, self.n // sets, self.d, 5)
        self._neighbors(stages, "neighbours that vote", 4, self.layers, self.m, 2, 5)
        self._map(stages, 2 * self.m, 90, iterations)
        pairs, d = self.layers * (2 * self.m) ** 2, self.d
        # a block of distances is written and read for its diagonal, ranks and five thresholds
        stages["trustworthiness"] = [
            torch_pass(TRUST, 12 * self.layers * 2 * self.m * d + 44 * pairs, SLOT * pairs * d)
        ]
        self._neighbors(stages, "neighbours on the map", 1, self.layers, 2 * self.m, 2, 5)
        spread = 92 * self.layers * 10 * (self.n * d + self.m * 2)
        # twenty reassignments behind each null: tables of eight parts, votes of sixteen
        scores = self.layers * self.n * 20 * (8 * 40 + 16 * 5 * 30)
        stages["CDNV in float64"] = [torch_pass(20 * SPREAD, spread)]
        stages["votes and tables"] = [torch_pass(60 if self.fused else FULL_SCORES, scores)]
        return stages

    def _step(self) -> Stages:
        stages: Stages = {"states": self._states(0 if self.streamed else self.m)}
        if self.step_iter:
            self._map(stages, self.m, 45, self.step_iter)
            self._neighbors(stages, "neighbours that vote", 1, self.layers, self.m, 2, 5)
            self._kmeans(stages, self.layers, self.m, self.n_tasks, 2, 1, warm=True)
        else:
            self._neighbors(stages, "neighbours that vote", 1, self.layers, self.m, self.d, 5)
        self._kmeans(stages, self.layers, self.m, self.n_tasks, self.d, 1, warm=True)
        stages["votes and tables"] = [torch_pass(20 if self.fused else STEP_SCORES, self.layers * self.m * 400)]
        return stages

    def _states(self, n: int) -> list[Work]:
        blocks, chunks = self.layers - 1, -(-n // 512)
        met = (self.tokens * (12 * blocks - 10) + 10) * self.d**2
        # every chunk reads the weights anew
        weights = chunks * 6 * 12 * self.d**2 * blocks
        forward = torch_pass(chunks * (8 * blocks + 8), weights, 2 * met * n, "bf16")
        return [forward, capture_states(n, self.d).times(self.layers)._replace(launches=chunks * self.layers)]

    def _kmeans(self, stages: Stages, problems: int, n: int, k: int, d: int, runs: int, *, warm: bool) -> None:
        chunks = -(-problems // max(1, BLOCK_BYTES // (4 * n * runs * k)))
        points, centroids = problems * n, problems * runs * k * d
        iterations, trials = WARM_ITER if warm else FRESH_ITER, 2 + int(math.log(k))
        seed, lloyd, once = (2, 1, 10) if self.fused else (SEED, LLOYD, KMEANS + RUN * runs)
        where = "2-D" if d == 2 else "hidden"
        if not warm:
            candidates = points * runs * trials
            # each new centroid: points are copied beside their norms and multiplied, candidates written and compared
            moved = 4 * points * d + 8 * candidates if self.fused else 12 * points * d + 28 * candidates
            each = torch_pass(chunks * seed, moved, candidates * (d + 2) * SLOT)
            stages.setdefault(f"KMeans {where}: seeding", []).append(each.times(k))
        moves = [kmeans_assign(problems, runs, n, k, d), cluster_sums(problems, runs, n, k, d)]
        moves = [self._multiplied(work)._replace(launches=work.launches * chunks) for work in moves]
        moved = 24 * points * runs + 24 * centroids if self.fused else 90 * points * runs + 72 * centroids
        moves.append(torch_pass(chunks * lloyd, moved))
        stages.setdefault(f"KMeans {where}: iterations", []).extend(work.times(iterations) for work in moves)
        # frame and copy of the points, then every run's inertia in float64
        last = torch_pass(chunks * once, points * d * (24 + 4 * runs if self.fused else 144 + 64 * runs))
        stages.setdefault(f"KMeans {where}: frame, inertia", []).append(last)

    def _neighbors(self, stages: Stages, name: str, calls: int, layers: int, n: int, d: int, k: int) -> None:
        # groups are banks of their own, all in one call; voters are gathered, so not their own bank
        own = "the map" in name
        frame = torch_pass(4 if self.fused else OWN if own else VOTERS, (28 if own else 64) * layers * n * d)
        search = self._multiplied(nearest_neighbors(layers, n, n, d, k))
        stages.setdefault(name, []).extend([frame.times(calls), search.times(calls)])

    def _multiplied(self, work: Work) -> Work:
        return work._replace(precision="tf32") if self.tensor else work

    def _map(self, stages: Stages, n: int, k: int, iterations: int) -> None:
        k = min(k, n - 1)
        self._neighbors(stages, "neighbours for the map", 1, self.layers, n, self.d, k)
        cells = self.layers * n * k
        bisection = torch_pass(1 if self.fused else BISECTION * BISECTIONS, 36 * BISECTIONS * cells)
        # two entries for each neighbour, sorted by 64-bit keys in eight passes
        sort = torch_pass(40 if self.fused else MAP, 2 * cells * (8 * 32 + 100))
        stages["affinities"] = [bisection, sort]
        forces = tsne_forces(self.layers, n, 2 * n * k)
        stages["t-SNE steps"] = [forces.times(iterations + 1), tsne_step(self.layers, n).times(iterations)]


def training_step(config: RunConfig) -> Stages:
    """Count one step of a run: a captured graph of bfloat16 matmuls, and what goes in and out of it."""
    d, blocks, batch = config.model.d_model, config.model.n_layers, config.training.batch_size
    length = config.tasks.instruction_length + 1
    vocabulary = 1 + config.tasks.alphabet_size + config.tasks.n_inputs + config.tasks.n_outputs
    weights, tokens = 12 * d * d * blocks + (vocabulary + length) * d, batch * length
    # the last block makes keys and values of all tokens, and all else of one token an instance, as the head does
    met = tokens * (12 * (blocks - 1) + 2) * d * d + batch * (10 * d + vocabulary) * d
    products = 6 * met + 6 * tokens * length * d * blocks
    # a weight: read and cast, used three times, its gradient written, cast, measured, clipped, and AdamW's moments
    traffic = weights * (6 + 6 + 2 + 6 + 4 + 8 + 28)
    # activations: 32 bytes a width, token and block, written and read (Korthikanti et al. 2022, without dropout)
    step = torch_pass(31 * blocks + 30, traffic + 64 * d * tokens * blocks, products, "bf16")
    return {"graph": [step, *(capture_states(batch, d) for _ in range(blocks + 1))], "around it": [torch_pass(5, 0)]}


def step_floor(config: RunConfig, gpu: Gpu) -> float:
    """Give the least seconds of a training step; its graph is launched once."""
    stages = training_step(config)
    return floor_of({"": stages["graph"]}, gpu, graph=True) + floor_of({"": stages["around it"]}, gpu)
