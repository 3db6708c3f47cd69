"""`fclm bench overhead`: what probes cost a run: the same steps with probes and without, in turns, by the clock."""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from fastcluster_lm.benchmarks.harness import Line, judged, peak_mib
from fastcluster_lm.config import RunConfig, apply_settings, load_preset
from fastcluster_lm.engine import Hooks, Loop, Rooms, Row, RunFolder
from fastcluster_lm.errors import DataError
from fastcluster_lm.probe import ProbeRunner, WorkerRunner
from fastcluster_lm.tasks import taskset_of

# largest share of the time that full probes may take every 50 steps, and (step + probe) / step of step probes
SHARE_TARGET, STEP_TARGET = 0.05, 1.5
# steps that do not count, at least: the ring of the batch source is full after them
FIRST_COUNTED = 40
# steps from one probe to the next, and where probes run: beside training if they can, or within it
CADENCES, WORKERS = (50, 10, 1), ("auto", "off")
STEP_PROBES = ("probe.every=1", "probe.source=batch")


def bench_overhead(
    preset: str, steps: int, repeats: int, cadences: Sequence[int] = CADENCES, workers: Sequence[str] = WORKERS
) -> Iterator[Line]:
    """Take steps with probes and without, in turns, at several cadences, beside training and within it.

    steps is the least number of steps of a turn; key frames, the first probe and the start stand apart; cadences above
    1 are of full probes, 1 is of step probes
    """
    for worker in workers:
        for every in (every for every in cadences if every > 1):
            line = _measure(preset, [f"probe.every={every}", f"probe.worker={worker}"], steps, repeats)
            line = {**line, "every": every, "kind": f"share of full warm probes, {line['where']}"}
            asked = every == 50 and worker == "auto"
            yield judged(line, SHARE_TARGET, line["share"], at_least=False) if asked else line
        if 1 not in cadences:
            continue
        for name, values in (("with its map", []), ("without a map", ["scores.step_iter=0"])):
            # a full probe draws the map that step probes go on from, and none falls within a turn
            often = [*STEP_PROBES, f"probe.full_every={steps + FIRST_COUNTED}"]
            line = _measure(preset, [*often, f"probe.worker={worker}", *values], steps, repeats)
            line = {**line, "every": 1, "kind": f"step probes of the batch source {name}, {line['where']}"}
            yield judged(line, STEP_TARGET, line["ratio"], at_least=False) if worker == "auto" else line


def _measure(preset: str, settings: list[str], steps: int, repeats: int) -> Line:
    """Time one cadence.

    Units:  seconds by the clock: step_s without probes, step_probed_s with them, with all that is written; share is
            1 - step_s / step_probed_s, ratio their quotient, both medians over turns; a turn with a key frame is left
            out, since its cost stands apart
    """
    config = apply_settings(load_preset(preset), settings)
    # so many steps that the last, which has a key frame, never comes
    config = apply_settings(config, [f"training.steps={config.training.steps * 100}", "scores.key_frame_every=0"])
    with tempfile.TemporaryDirectory() as folder:
        return _Turns(config, Path(folder)).measure(steps, repeats)


class _Turns:
    """Two loops over the same model, one of which probes."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        self.run = Rooms(config, taskset_of(config.tasks, config.seed))
        self.started = time.perf_counter()
        runner = self.run.start_runner()
        assert runner is not None
        self.runner: ProbeRunner = runner
        self.every = config.probe.every
        self.seen: list[Row] = []
        hooks = Hooks(on_step=lambda row, scores: self.seen.extend(scores or []))
        stored = RunFolder.create(folder / "run", {"name": "bench"}, {})
        self.probing, self.plain = Loop(self.run, stored, runner, hooks), Loop(self.run, stored, None, Hooks())

    def measure(self, steps: int, repeats: int) -> Line:
        """Take turns; a turn with probes is over when no more of them are under way than when it began.

        That a checkpoint waits for the state behind a probe is not counted as one: a turn that began at a checkpoint
        would begin with nothing under way, and be charged a whole probe more
        """
        try:
            self.probing.begin()
            self._drain(0)
            first_s = time.perf_counter() - self.started
            self._take(self.probing, max(FIRST_COUNTED, self.every))
            count = -(-steps // self.every) * self.every
            turns = []
            for _ in range(repeats):
                self._drain(0)
                plain_s = self._timed(lambda: self._take(self.plain, count))
                # from a full probe on, with as many probes under way when a turn begins as when it ends
                self._take(self.probing, 1)
                while not self._probed_fully():
                    self._take(self.probing, 1)
                self._drain(1 if self.every > 1 else 0)
                behind = self.runner.probes_behind
                self.seen.clear()
                started = time.perf_counter()
                self._take(self.probing, count)
                self._drain(behind)
                probed_s = time.perf_counter() - started
                if all(row["warm"] for row in self.seen if row["space"] == "map"):
                    turns.append((plain_s / count, probed_s / count))
            return self._line(turns, first_s, count)
        finally:
            self.runner.close()

    def _line(self, turns: list[tuple[float, float]], first_s: float, count: int) -> Line:
        if not turns:
            raise DataError(
                "every turn had a map that started cold; raise --repeats, or scores.warm_iter in a preset of your own"
            )
        beside = isinstance(self.runner, WorkerRunner)
        return {
            "bench": "overhead",
            "preset": self.run.config.name,
            "d": self.run.config.model.d_model,
            "where": "beside training" if beside else "within training",
            "step_s": statistics.median(plain for plain, _ in turns),
            "step_probed_s": statistics.median(probed for _, probed in turns),
            "share": statistics.median(1 - plain / probed for plain, probed in turns),
            "ratio": statistics.median(probed / plain for plain, probed in turns),
            "ratio_low": min(probed / plain for plain, probed in turns),
            "ratio_high": max(probed / plain for plain, probed in turns),
            "turns": len(turns),
            "steps_a_turn": count,
            "first_probe_with_start_s": first_s,
            "spaces_scored": sorted({str(row["space"]) for row in self.seen}),
            "peak_mib": peak_mib(),
            "worker_peak_mib": peak_mib(self.runner.process_id) if isinstance(self.runner, WorkerRunner) else 0.0,
        }

    def _probed_fully(self) -> bool:
        step = self.run.trainer.step
        return self.run.cadence.is_due(step) and self.run.cadence.is_full(step)

    def _timed(self, work: Callable[[], None]) -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    def _take(self, loop: Loop, steps: int) -> None:
        for _ in range(steps):
            loop.advance()

    def _drain(self, behind: int) -> None:
        self.seen += self.probing.collect(wait=False)
        while self.runner.probes_behind > behind:
            time.sleep(5e-4)
            self.seen += self.probing.collect(wait=False)
