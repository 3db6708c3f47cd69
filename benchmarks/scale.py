"""`fclm bench scale`: how the seconds of each stage grow with points and width."""

from collections.abc import Iterator

import numpy as np

from fastcluster_lm.benchmarks.data import make_points
from fastcluster_lm.benchmarks.harness import Line, peak_mib, resident_mib
from fastcluster_lm.benchmarks.probe import LAYERS, OurProbe

CLASSES = 20
WIDTHS, POINTS = (32, 128, 512, 768, 2048), (500, 1000, 2000, 5000, 10000, 20000)
FIXED_N, FIXED_WIDTH = 2000, 32


def bench_scale(shapes: list[tuple[int, int, int]], repeats: int) -> Iterator[Line]:
    """Time cold probes along both axes, or at the shapes given, and fit seconds ~ size ** exponent to each stage.

    Units:  seconds, medians of the repeats; peak memory above the points in MiB, a cold probe's
    """
    lines: list[Line] = []
    along = [(n, FIXED_WIDTH, CLASSES) for n in POINTS] + [(FIXED_N, width, CLASSES) for width in WIDTHS]
    for n, width, k in shapes or along:
        X, labels = make_points("blobs", LAYERS, n, width, k)
        probe = OurProbe(X, labels, k)
        before = resident_mib()
        for _ in range(repeats):
            probe.cold()
        stages = {stage: float(np.median(seconds)) for stage, seconds in probe.stages.items()}
        line: Line = {"bench": "scale", "layers": LAYERS, "n": n, "d": width, "classes": k, "seconds_by_stage": stages}
        line |= {"total_s": sum(stages.values()), "peak_mib_above_input": peak_mib() - before, "repeats": repeats}
        lines.append(line)
        yield line
    for axis, fixed in (("n", ("d", FIXED_WIDTH)), ("d", ("n", FIXED_N))):
        chosen = [line for line in lines if line[fixed[0]] == fixed[1]]
        if len({line[axis] for line in chosen}) < 3:
            continue
        size = np.log([line[axis] for line in chosen])
        for stage in chosen[0]["seconds_by_stage"]:
            seconds = np.log([line["seconds_by_stage"][stage] for line in chosen])
            slope = float(np.polyfit(size, seconds, 1)[0])
            yield {"bench": "scale", "kind": f"exponent of {stage} along {axis}", "exponent": slope}
