"""What a study is, and how its verdict falls: one statistic a seed beside its control; it runs and draws nothing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fastcluster_lm.config import RunConfig
from fastcluster_lm.engine import start_run
from fastcluster_lm.studies.statistics import holm, t_interval

Row = dict[str, Any]
Value = str | int | float
Options = Mapping[str, Value]
# what a cell does: from a config, and words of its own, into an empty folder
Work = Callable[[RunConfig, Path, Options], None]

ALPHA = 0.05
# seeds below which there is no verdict
FEWEST_SEEDS = 5


def train_run(config: RunConfig, folder: Path, options: Options) -> None:
    """Train and probe one run, as `fclm train` does, into the folder `run`."""
    start_run(config, folder / "run")


@dataclass(frozen=True)
class Arm:
    """One kind of run that a study needs at every seed.

    settings: KEY=VALUE over the preset
    options:  words for `work`, in pairs
    cost:     seconds, in those of a plain run of the preset
    seed:     one of its own, for a search that no judged seed may take part in; None: the seed that is judged
    """

    settings: tuple[str, ...] = ()
    work: Work = train_run
    options: tuple[tuple[str, Value], ...] = ()
    cost: float = 1.0
    seed: int | None = None


# the run that most studies share: the preset as it is
BASE = Arm()


@dataclass(frozen=True)
class Measured:
    """What a study found at one seed; a value is None where it is undefined.

    beside: further figures, by name, that no verdict rests on; those named "figure, case" make a table on the page
    rows:   all that the figure and a reader need
    note:   what else must be known to read them
    """

    statistic: float | None
    control: float | None
    rows: list[Row]
    beside: dict[str, float | None] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Lines:
    """A figure: one line for each value of `by`, its mean over seeds, and the control as a dotted line.

    only: the values that a row must have to be drawn, in pairs
    """

    x: str
    y: str
    by: str
    control: str | None = None
    only: tuple[tuple[str, Value], ...] = ()


@dataclass(frozen=True)
class Study:
    """One question, the runs it needs, the statistic that answers it and its control.

    claim:     what the verdict is about, in one sentence
    statistic: what is taken of each seed, higher if the claim holds
    control:   what it is paired with
    margin:    the difference of the two that counts, fixed before the runs
    arms:      the cells of one seed, by the preset's name
    measure:   the statistic of one seed, from the folders of its cells
    alone:     whether its p is judged by itself, as that of a study that stands apart from all others
    note:      what a reader needs beside the rule, such as what was tried before it was fixed
    """

    name: str
    question: str
    claim: str
    statistic: str
    control: str
    margin: float
    arms: Callable[[str], Mapping[str, Arm]]
    measure: Callable[[Mapping[str, Path]], Measured]
    figure: Lines
    alone: bool = False
    note: str = ""

    @property
    def rule(self) -> str:
        """Say how the verdict falls."""
        return (
            f"d = ({self.statistic}) - ({self.control}), one value a seed, {FEWEST_SEEDS} seeds or more; two-sided "
            f"t-test of d against {self.margin:g}, p "
            f"{'of this study alone, uncorrected' if self.alone else 'adjusted over all studies by Holm'}; supported "
            f"if p < {ALPHA} and the mean of d is above {self.margin:g}, not supported if p < {ALPHA} and it is below, "
            f"else undecided{'; ' * bool(self.note)}{self.note}"
        )


@dataclass(frozen=True)
class Verdict:
    """What came out of one study; p is that of the paired differences against the margin, before and after Holm."""

    study: str
    question: str
    claim: str
    verdict: str
    reason: str
    rule: str
    statistic: str
    control: str
    margin: float
    seeds: list[int]
    values: list[float | None]
    controls: list[float | None]
    differences: list[float]
    mean: float | None
    low: float | None
    high: float | None
    p: float | None
    p_adjusted: float | None
    n_studies: int
    beside: dict[str, dict[str, Any]]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Give plain values, ready for JSON."""
        return asdict(self)


def judge(
    study: Study, found: Mapping[int, Measured], *, others: Sequence[float | None] = (), n_studies: int = 1
) -> Verdict:
    """Let a study's verdict fall.

    others: the p-values of the other studies, None for one without; of n_studies those that are not there count as 1
    """
    seeds = sorted(found)
    pairs = [(found[seed].statistic, found[seed].control) for seed in seeds]
    differences = [value - control for value, control in pairs if value is not None and control is not None]
    reason, verdict = "", "undecided"
    interval = t_interval(differences, against=study.margin) if len(differences) > 1 else None
    p_adjusted = None
    if interval is not None:
        known = [1.0 if p is None else p for p in others]
        p_adjusted = holm([interval.p, *known, *[1.0] * (n_studies - 1 - len(known))])[0]
    if len(differences) < len(seeds):
        reason = f"the statistic is undefined at {len(seeds) - len(differences)} of {len(seeds)} seeds"
    elif len(seeds) < FEWEST_SEEDS or interval is None or p_adjusted is None:
        reason = f"{len(seeds)} seeds; a verdict needs {FEWEST_SEEDS}"
    elif p_adjusted >= ALPHA:
        reason = f"p = {interval.p:.3g} against the margin {study.margin:g}, {_corrected(study, p_adjusted, n_studies)}"
    else:
        verdict = "supported" if interval.mean > study.margin else "not supported"
        side = "above" if verdict == "supported" else "below"
        reason = (
            f"d is {side} the margin {study.margin:g}, p = {interval.p:.3g}, {_corrected(study, p_adjusted, n_studies)}"
        )
    return Verdict(
        study.name,
        study.question,
        study.claim,
        verdict,
        reason,
        study.rule,
        study.statistic,
        study.control,
        study.margin,
        seeds,
        [pair[0] for pair in pairs],
        [pair[1] for pair in pairs],
        differences,
        sum(differences) / len(differences) if differences else None,
        interval.low if interval else None,
        interval.high if interval else None,
        interval.p if interval else None,
        p_adjusted,
        n_studies,
        _beside(found, seeds),
        [note for note in dict.fromkeys(found[seed].note for seed in seeds) if note],
    )


def _corrected(study: Study, p: float, n_studies: int) -> str:
    if study.alone:
        return "uncorrected"
    return f"{p:.3g} after Holm's correction over {n_studies} {'study' if n_studies == 1 else 'studies'}"


def _beside(found: Mapping[int, Measured], seeds: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Give each further figure with its t-interval over the seeds where it is defined."""
    rows: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(name for seed in seeds for name in found[seed].beside):
        values = [found[seed].beside.get(name) for seed in seeds]
        known = [value for value in values if value is not None]
        interval = t_interval(known) if len(known) > 1 else None
        rows[name] = {
            "values": values,
            "mean": sum(known) / len(known) if known else None,
            "low": interval.low if interval else None,
            "high": interval.high if interval else None,
        }
    return rows
