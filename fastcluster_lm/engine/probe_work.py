"""The probes of one call over models that exist: states streamed through a file, rows and maps kept if wanted."""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fastcluster_lm.config import RunConfig
from fastcluster_lm.errors import UsageError
from fastcluster_lm.kernels import native
from fastcluster_lm.probe.layerwise import score_layerwise
from fastcluster_lm.probe.pending import ProbeResult
from fastcluster_lm.probe.positions import Scorers
from fastcluster_lm.probe.record import Record, Subject
from fastcluster_lm.probe.sources.file import Chunks, FileSource
from fastcluster_lm.scores.engines import choose_engine
from fastcluster_lm.scores.engines.params import TsneParams
from fastcluster_lm.scores.parts import SPACES
from fastcluster_lm.store import SCORE_COLUMNS

Row = dict[str, Any]


@dataclass(frozen=True)
class ProbeOptions:
    """What is scored, and where it goes.

    layers: numbers, 0 for the embedding; None: all
    spaces: hidden, map
    batch_size: instances of one forward; None: as training evaluates, or 16 prompts
    out: a new run folder for rows and maps; None: nothing is kept
    """

    layers: tuple[int, ...] | None = None
    spaces: tuple[str, ...] = SPACES
    batch_size: int | None = None
    out: Path | None = None


class ProbeWork:
    """The probes of one call: what they share, and where they are written.

    subject: of the config's scores; positions: names of the tokens, whose states come side by side
    """

    def __init__(
        self,
        config: RunConfig,
        subject: Subject,
        options: ProbeOptions,
        positions: Sequence[str],
        device: torch.device,
        say: Callable[[str], None],
    ) -> None:
        # before the first probe, whose time is written down
        native.prepare(say)
        self._points, self._options, self._say = subject.points, options, say
        self._layers = _chosen_layers(options, subject.n_layers)
        # lowered to what the map's points allow, once and aloud
        n_shown = sum(len(own.shown()) for own in self._points.values())
        asked = TsneParams(perplexity=config.scores.perplexity)
        perplexity = asked.effective_perplexity(n_shown)
        # of one token alone `position` names it, as in the run.toml of a run
        several = {"positions": list(positions)} if len(positions) > 1 else {}
        probe = {key: value for key, value in asdict(config.probe).items() if key != "positions"}
        self._probe = probe | {"position": positions[0]} | several
        fitting = replace(config.scores, perplexity=perplexity)
        self._subject = replace(subject, scores=fitting)
        engine = choose_engine(fitting.engine, device, fitting.memory_mib)
        self._scorers = Scorers(positions, fitting, engine, device, config.probe.seed)
        lowered = asked.lowered(n_shown)
        if lowered and "map" in options.spaces:
            say(f"scores.{lowered}")
        self._described: dict[str, Any] = {}
        self._record: Record | None = None
        self._last = 0

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Write the probes within into a new folder, if one is wanted, and mark it as finished at the end.

        The folder appears with the first probe's scores, so that a model that cannot be scored leaves none
        """
        if self._options.out is not None:
            space = "hidden" if "hidden" in self._options.spaces else "map"
            self._described = self._subject.described("probed", self._scorers.first, self._probe, space)
        try:
            yield
            if self._record is not None:
                self._record.finish(self._last)
        finally:
            if self._record is not None:
                self._record.close()

    def score(self, chunks: Mapping[str, Chunks], step: int) -> list[Row]:
        """Score one model and write down what came of it."""
        started = time.perf_counter()
        sizes = {name: len(own) for name, own in self._points.items()}
        n_positions, n_layers = len(self._scorers.names), len(self._layers)
        mib = 4 * sum(sizes.values()) * self._subject.width * n_positions * n_layers / 2**20
        tokens = f"{n_positions} tokens of each, " if n_positions > 1 else ""
        self._say(f"step {step}: {sum(sizes.values())} instances, {tokens}{n_layers} layers, {mib:.3g} MiB of states")
        # where the results go, if they are kept, since there is room; else where TMPDIR says
        out = self._options.out
        beside = None if out is None else next(above for above in out.absolute().parents if above.is_dir())
        with tempfile.TemporaryDirectory(prefix=".fclm-", dir=beside) as place:
            source = FileSource(Path(place), self._points, self._layers, n_positions)
            source.write(chunks)
            found = score_layerwise(source, self._scorers, step, self._options.spaces)
        self._write(found, step, time.perf_counter() - started)
        return [dict.fromkeys(SCORE_COLUMNS) | row for row in found.rows]

    def _write(self, found: ProbeResult, step: int, seconds: float) -> None:
        self._last = step
        if self._options.out is None:
            return
        if self._record is None:
            self._record = Record(self._options.out, self._described)
        self._record.write_scores(step, found.rows, found.maps, found.map_notes())
        self._record.write_step(step, seconds)


def _chosen_layers(options: ProbeOptions, n_blocks: int) -> Sequence[int]:
    if options.layers is None:
        return range(n_blocks + 1)
    if options.out is not None:
        raise UsageError("--layers: expected without --out, since a report shows all layers; leave one of them out")
    for layer in options.layers:
        if not 0 <= layer <= n_blocks:
            raise UsageError(f"--layers: expected 0 to {n_blocks}, got {layer}")
    return sorted(set(options.layers))
