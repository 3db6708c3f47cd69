"""`fclm bench overhead`: what probes cost a run, at several cadences, key frames apart."""

import statistics
import time
from collections.abc import Iterator

from fastcluster_lm.benchmarks.harness import Line, judged, peak_mib
from fastcluster_lm.config import apply_settings, load_preset
from fastcluster_lm.engine import build_run
from fastcluster_lm.tasks import taskset_of

# steps between probes: largest share of the time that warm probes may take, where there is a target
TARGETS = {50: 0.05}
# (step + probe) / step with a step probe of the batch source at every step
STEP_TARGET, FIRST_COUNTED = 1.5, 20


def bench_overhead(preset: str, steps: int, warm_probes: int = 4) -> Iterator[Line]:
    """Train and probe in turns in one process, and time steps, warm probes and key frames apart.

    Units:  medians in seconds; share is warm probe / (warm probe + the steps between two probes)
    """
    config = apply_settings(load_preset(preset), [f"training.steps={steps * 100}"])
    run = build_run(config, taskset_of(config.tasks, config.seed))
    assert run.probe is not None
    for _ in range(5):
        run.trainer.advance()
    cold = [run.probe.score(0).seconds, run.probe.score(0).seconds]
    gap = max(1, steps // warm_probes)
    steps_s: list[float] = []
    warm: list[float] = []
    for turn in range(warm_probes):
        steps_s += [run.trainer.advance().step_ms / 1e3 for _ in range(gap)]
        # numbered as a full probe that is neither the first nor the last, so that the map goes on from the one before
        found = run.probe.score(run.cadence.period * (turn + 1))
        if found.warm:
            warm.append(found.seconds)
        steps_s += [run.trainer.advance().step_ms / 1e3 for _ in range(gap)]
    step, probe = statistics.median(steps_s), statistics.median(warm)
    common = {
        "bench": "overhead",
        "preset": preset,
        "d": config.model.d_model,
        "step_s": step,
        "warm_probe_s": probe,
        "warm_probe_low_s": min(warm),
        "warm_probe_high_s": max(warm),
        "first_probe_s": cold[0],
        "key_frame_s": cold[1],
        "peak_mib": peak_mib(),
        "steps_timed": len(steps_s),
    }
    for every in (50, 10, 1):
        share = probe / (probe + every * step)
        line: Line = {**common, "every": every, "kind": "share of a full warm probe", "share": share}
        yield judged(line, TARGETS[every], share, at_least=False) if every in TARGETS else line
    for name, values in (("with its map", []), ("without a map", ["scores.step_iter=0"])):
        line = _step_probes(preset, steps, values)
        line["kind"] = f"step probe of the batch source, {name}"
        yield judged(line, STEP_TARGET, line["ratio"], at_least=False)


def _step_probes(preset: str, steps: int, values: list[str]) -> Line:
    """Probe after every step, in the step tier, and compare with the step it follows."""
    config = apply_settings(
        load_preset(preset), ["probe.every=1", "probe.source=batch", f"training.steps={steps * 100}", *values]
    )
    run = build_run(config, taskset_of(config.tasks, config.seed))
    assert run.probe is not None
    run.probe.score(0)
    step_s, probe_s = [], []
    for step in range(1, FIRST_COUNTED + steps):
        result = run.trainer.advance()
        started = time.perf_counter()
        run.probe.observe(result.batch, result.states, step)
        found = run.probe.score(step)
        if step > FIRST_COUNTED and found.rows and not found.maps:
            step_s.append(result.step_ms / 1e3)
            probe_s.append(time.perf_counter() - started)
    step_median, probe_median = statistics.median(step_s), statistics.median(probe_s)
    return {
        "bench": "overhead",
        "preset": preset,
        "d": config.model.d_model,
        "every": 1,
        "step_s": step_median,
        "step_probe_s": probe_median,
        "ratio": statistics.median((a + b) / a for a, b in zip(step_s, probe_s, strict=True)),
        "steps_timed": len(step_s),
    }
