"""Chooses a benchmark by its name and says its figure in a line; it measures nothing."""

from collections.abc import Iterator

from fastcluster_lm.benchmarks.harness import Line
from fastcluster_lm.errors import UsageError
from fastcluster_lm.kernels import native

Shape = tuple[int, int, int]


def run_benchmark(
    kind: str,
    *,
    shapes: list[Shape],
    source: str,
    repeats: int,
    peer_layers: int,
    preset: str,
    steps: int,
    threads: int,
    cadences: tuple[int, ...] = (),
    workers: tuple[str, ...] = (),
    whole: bool = False,
) -> Iterator[Line]:
    """Give the lines of one benchmark as they are measured.

    Errors: UsageError for an unknown kind, or whole commands of another than overhead
    """
    if whole and kind != "overhead":
        raise UsageError(f"--whole: expected with overhead alone, got it with {kind}")
    native.prepare()
    if threads:
        native.use_threads(threads, threads)
    if kind in ("probe", "quality", "forces"):
        from fastcluster_lm.benchmarks import probe

        if kind == "probe":
            return probe.bench_probe(shapes or list(probe.TARGETS), repeats, peer_layers, source)
        if kind == "quality":
            return probe.bench_quality((shapes or [(1000, 32, 10)])[0], repeats, source)
        return probe.bench_forces((shapes or [(1000, 2, 1)])[0][0], max(repeats, 3))
    if kind == "scale":
        from fastcluster_lm.benchmarks.scale import bench_scale

        return bench_scale(shapes, repeats)
    if kind == "maps":
        from fastcluster_lm.benchmarks.maps import bench_maps

        return bench_maps(preset, steps)
    if whole:
        from fastcluster_lm.benchmarks.whole import bench_whole

        return bench_whole(preset, repeats)
    if kind == "overhead":
        from fastcluster_lm.benchmarks.overhead import CADENCES, WORKERS, bench_overhead

        return bench_overhead(preset, steps, repeats, cadences or CADENCES, workers or WORKERS)
    if kind == "train":
        from fastcluster_lm.benchmarks.training import bench_train

        return bench_train(preset, steps)
    if kind == "attached":
        from fastcluster_lm.benchmarks.attached import SHAPE, WORKERS, bench_attached

        return bench_attached((shapes or [SHAPE])[0], workers or WORKERS)
    if kind == "roofline":
        from fastcluster_lm.benchmarks.roofline_page import bench_roofline

        return bench_roofline()
    raise UsageError(f"bench: unknown kind {kind!r}")


def verdict(line: Line) -> str:
    """Say one measurement in a line."""
    what = " ".join(str(line[key]) for key in ("bench", "kind", "data", "preset", "gpu") if line.get(key) is not None)
    sizes = ", ".join(f"{key}={line[key]}" for key in ("layers", "n", "d", "classes", "every") if key in line)
    if "found" not in line:
        figures = ", ".join(f"{key} {value:.4g}" for key, value in line.items() if isinstance(value, float))
        return f"{what} ({sizes}): {figures}"
    outcome = "PASS" if line["pass"] else "SHORT OF TARGET"
    return f"{what} ({sizes}): {line['found']:.4g}, {line['target_is']} {line['target']:g}: {outcome}"
