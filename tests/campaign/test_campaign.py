"""The campaign's short form: every promise, tried a few times; and the frame's own judgement."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.campaign import kills, schedule, studies
from tests.campaign.calls import STRUCK
from tests.campaign.children import End
from tests.campaign.outcome import Outcome
from tests.campaign.page import BEGIN, END, write_page
from tests.campaign.schedule import Row, names

ROOT = Path(__file__).resolve().parents[2]


class Campaign:
    """One campaign in a process of its own, whose rows are taken by name as they come."""

    def __init__(self, chosen: list[str]) -> None:
        command = [sys.executable, "-m", "tests.campaign", "--short", "--json"]
        command += [part for name in chosen for part in ("--only", name)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ)
        self._rows: dict[str, dict] = {}

    def row(self, name: str) -> dict:
        """Wait for a promise's row."""
        while name not in self._rows:
            line = self.process.stdout.readline()
            assert line, "the campaign ended before this row; what it printed stands above"
            row = json.loads(line)
            self._rows[row["name"]] = row
        return self._rows[name]


@pytest.fixture(scope="session")
def campaign(request: pytest.FixtureRequest) -> Iterator[Campaign]:
    """Start one campaign for all the promises chosen here: what they need is imported once."""
    started = Campaign(
        [item.callspec.params["name"] for item in request.session.items if "campaign" in item.fixturenames]
    )
    with started.process as process:
        yield started
        process.terminate()


@pytest.mark.parametrize("name", names())
def test_a_promise_holds(name: str, campaign: Campaign) -> None:
    row = campaign.row(name)
    assert row["met"], "\n".join([row["promise"], *row["outcome"]["broken"]])


def test_a_row_is_met_only_if_it_was_tried_and_held_every_time() -> None:
    assert Outcome("tries", 3, 3).met
    assert not Outcome("tries", 0, 0).met
    assert not Outcome("tries", 3, 2).met
    assert not Outcome("tries", 3, 3, broken=["one"]).met


def test_the_time_is_shared_and_a_row_says_what_it_did_not_suffice_for(monkeypatch: pytest.MonkeyPatch) -> None:
    paces, asked = {"quick": 0.1, "slow": 60.0, "broken": 1.0}, []

    def row(name: str, times: int | None, seed: int, limit_s: float) -> Row:
        asked.append((name, times))
        done = times or 10
        held = done - (name == "broken")
        return Row(name, "", Outcome("tries", done, held), 1000, paces[name] * done)

    monkeypatch.setattr(schedule, "_row", row)
    found = {row.name: row for row in schedule.long_rows(list(paces), 0, hours=1.01)}
    # one that does not hold is its row at once, the others get what they need or their share
    assert asked[3:] == [("quick", 1000), ("slow", 60)] and not found["broken"].outcome.met
    assert found["quick"].counted == "1,000" and found["slow"].counted == "60 of 1,000"
    assert found["broken"].counted == "10 of 1,000"
    asked.clear()
    assert [row.outcome.times for row in schedule.long_rows(list(paces), 0, hours=0.0)] == [10, 10, 10]
    assert [times for _, times in asked] == [None] * 3


def kills_that(end: Callable[[kills.Kill], list[End]], monkeypatch: pytest.MonkeyPatch, folder: Path) -> Outcome:
    """Run the row of kills where they end so, and nothing is wrong with what they leave."""
    monkeypatch.setattr(kills, "_kill", lambda kill, path, life_s: end(kill))
    monkeypatch.setattr(kills, "whole_runs", lambda folder: dict.fromkeys(kills.SOURCES))
    monkeypatch.setattr(kills, "life", lambda *_: 1.0)
    monkeypatch.setattr(kills, "changing_calls", lambda *_: ["write", "fsync"])
    monkeypatch.setattr(kills, "unreadable", lambda at: "")
    monkeypatch.setattr(kills, "gone_on", lambda *_: "")
    folder.mkdir()
    return kills.run(24, 0, folder)


KILLED, ENDED = End(signal=signal.SIGKILL), End(value=None)
AT_CALL = End(signal=signal.SIGKILL, output=f"{STRUCK} write\n")


def as_planned(kill: kills.Kill) -> list[End]:
    """End as a kill that comes does."""
    return [AT_CALL] if kill.call else [KILLED] if kill.again is None else [KILLED, AT_CALL]


def test_a_kill_counts_only_if_it_happened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    every = kills_that(as_planned, monkeypatch, tmp_path / "every")
    assert every.met and every.times == 24 and "0 planned ones" in every.figure and " 0 twice" not in every.figure
    at_call = kills_that(lambda kill: [ENDED] if kill.call else as_planned(kill), monkeypatch, tmp_path / "call")
    assert not at_call.met and "not killed at its call" in at_call.broken[0] and at_call.held == at_call.times
    fails = kills_that(
        lambda kill: as_planned(kill) if kill.again is None else [End(error="E"), AT_CALL], monkeypatch, tmp_path / "f"
    )
    assert not fails.met and "before the kill: E" in fails.broken[0]
    never = kills_that(lambda kill: [ENDED], monkeypatch, tmp_path / "never")
    assert not never.met and never.times == never.held == 0


def test_kills_of_which_none_came_are_told_and_not_met(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    once = kills_that(
        lambda kill: as_planned(kill)[:1] + [ENDED] * (kill.again is not None), monkeypatch, tmp_path / "a"
    )
    assert " 0 twice" in once.figure and once.times == once.held < 24 and not once.met
    assert f"{24 - once.times} planned ones" in once.figure
    assert once.broken == [f"none of {24 - once.times} kills twice came"]
    late = kills_that(lambda kill: as_planned(kill) if kill.call else [ENDED], monkeypatch, tmp_path / "late")
    kinds = {line.partition("kills ")[2] for line in late.broken}
    assert not late.met and kinds == {"at random moments came", "twice came", "beside a process came"}


@pytest.mark.parametrize(
    ("end", "told"),
    [
        (lambda kill: [ENDED] if kill.call is None and kill.again is None else as_planned(kill), "from outside"),
        (lambda kill: [KILLED] if kill.call else as_planned(kill), "at a call"),
        (lambda kill: as_planned(kill)[:1], "at a call"),
    ],
)
def test_a_wrong_count_of_kills_is_seen(end, told, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # whatever ended, it counts as killed
    monkeypatch.setattr(kills, "_happened", lambda kill, ends: True)
    wrong = kills_that(end, monkeypatch, tmp_path / "kills")
    assert wrong.times == wrong.held == 24 and not wrong.met
    assert any(f"that came {told}, but" in line for line in wrong.broken), wrong.broken


def test_a_worker_that_ended_before_its_kill_was_not_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def pair(root: Path, kill_after_s: float | None) -> list[int | None]:
        root.mkdir()
        delays.append(kill_after_s)
        killed = kill_after_s is not None and len(delays) >= killed_from
        return [-signal.SIGKILL if killed else 0, 0]

    for name in ("check_packages", "code_digest"):
        monkeypatch.setattr(studies, name, lambda: None)
    monkeypatch.setattr(studies, "_start", lambda root: None)
    monkeypatch.setattr(studies, "_end", lambda workers: [0])
    monkeypatch.setattr(studies, "_contents", lambda root: {})
    monkeypatch.setattr(studies, "_problems", lambda *_, **__: [])
    monkeypatch.setattr(studies, "_pair", pair)
    delays, killed_from = list[float | None](), 4
    outcome = studies.run(2, 0, tmp_path)
    assert outcome.met and outcome.times == 2 and len(delays) == 4 and "1 workers killed, 0 planned" in outcome.figure
    delays, killed_from = [], 100
    outcome = studies.run(2, 0, tmp_path)
    assert outcome.times == outcome.held == 1 and "0 workers killed, 1 planned" in outcome.figure


def test_the_table_goes_between_the_marks_and_says_what_was_not_met(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nearlier\n{END}\nafter\n")
    rows = [
        Row("one", "It holds.", Outcome("tries", 3, 3), 3, 1.0),
        Row("two", "It does not.", Outcome("tries | more", 3, 2, "1 of 3", ["seed 1"]), 500, 1.0),
    ]
    write_page(page, rows, command="a command")
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\nMade on ") and text.endswith(f"{END}\nafter\n") and "earlier" not in text
    assert "| `one`: It holds. | tries | 3 | 3 |  | yes |" in text
    assert "| `two`: It does not. | tries \\| more | 3 of 500 | 2 | 1 of 3 | **no** |" in text
    page.write_text("no marks\n")
    with pytest.raises(ValueError, match="expected the lines"):
        write_page(page, rows, command="a command")
