"""Run probes on training's GPU, on a stream of their own, fetched once they have come; it scores nothing itself."""

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastcluster_lm.probe.pending import Captured
from fastcluster_lm.probe.positions import PendingPositions
from fastcluster_lm.probe.run_probe import RunProbe
from fastcluster_lm.probe.runners.runner import Event, FinishedProbe, SavedState


class CudaRunner:
    """Score probes on a GPU beside training: launched behind their step, fetched before the next one at the latest.

    Scores are those of InlineRunner: nothing here depends on when a probe ends
    """

    def __init__(self, probe: RunProbe, device: torch.device) -> None:
        self._probe = probe
        self._stream = torch.cuda.Stream(device)
        # the last probe, with the states that it reads on its own stream, and when it began and ended
        self._pending: tuple[Captured, PendingPositions, torch.cuda.Event, torch.cuda.Event] | None = None
        self._done: list[Event] = []

    def observe(self, batch: Int[Tensor, " B"], states: Float[Tensor, "B layers d"], step: int) -> None:
        """Take what a training step's forward gave; the copy is part of training's stream."""
        self._probe.observe(batch, states, step)

    def submit(self, step: int) -> None:
        """Run the model behind the step, on training's stream; all else goes to the probe's own."""
        self._finish()
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        # training and the next probe write into the buffers that these states lie in
        captured = self._probe.capture(step).copied()
        for points in captured.points.values():
            points.X.record_stream(self._stream)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            pending = self._probe.scorer.launch(captured)
            ended.record()
        self._pending = captured, pending, began, ended

    def save(self) -> None:
        """Copy the state that the next probe would begin from, once the probe at hand has come."""
        self._finish()
        self._done.append(SavedState({name: value.cpu() for name, value in self._probe.state().items()}))

    def collect(self, *, wait: bool) -> list[Event]:
        """Give what is done and was not given yet; with `wait` the probe that is on its way too."""
        if self._pending is not None and (wait or self._pending[1].ready()):
            self._finish()
        done, self._done = self._done, []
        return done

    @property
    def behind(self) -> int:
        """One while a probe is on its way."""
        return int(self._pending is not None)

    probes_behind = behind

    def close(self) -> None:
        """Let the stream end what it was given."""
        self._stream.synchronize()

    def _finish(self) -> None:
        if self._pending is None:
            return
        (captured, pending, began, ended), self._pending = self._pending, None
        result = self._probe.scorer.finish(pending)
        ended.synchronize()
        seconds = began.elapsed_time(ended) / 1e3
        self._done.append(FinishedProbe(captured.step, replace(result, seconds=seconds)))
