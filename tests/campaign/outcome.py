"""What became of one promise when it was put to the test; it tests nothing itself.

Every module of the campaign gives `PROMISE`, one sentence; `TIMES`, how often it is tried in the short and in the long
form; and `run(times, seed, folder)`, which tries it that often with all it writes below `folder`, and tells.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Outcome:
    """One row of the campaign's table.

    done: what was done, in a few words
    times: how often
    held: how often the promise held; the row is met where that is every time
    figure: the measured figure beside it, "" where the counts say all
    broken: what did not hold, a line each, with what repeats it (a seed, a case)
    """

    done: str
    times: int
    held: int
    figure: str = ""
    broken: list[str] = field(default_factory=list)

    @property
    def met(self) -> bool:
        """Whether it held every time, and was tried at all."""
        return self.times > 0 and self.held == self.times and not self.broken
