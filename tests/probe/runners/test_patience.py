"""A process beside training that makes no headway is ended, and one that works is waited for."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from fastcluster_lm.config import config_from_dict
from fastcluster_lm.engine import RunFolder, resume_run, start_run
from fastcluster_lm.errors import ProbeError
from fastcluster_lm.probe import WorkerRunner
from fastcluster_lm.probe.runners import patience
from fastcluster_lm.probe.runners import worker as runners
from fastcluster_lm.probe.runners.patience import Patience
from tests.laws.conftest import SMALL, run_to_end
from tests.laws.test_worker import files, probing


@pytest.fixture(autouse=True)
def looks_often(monkeypatch):
    monkeypatch.setattr(patience, "LOOK_S", 0.1)


@pytest.fixture
def process():
    """Start processes of a line of Python, and end them."""
    started = []

    def start(line: str) -> subprocess.Popen:
        started.append(subprocess.Popen([sys.executable, "-c", line], stdout=subprocess.PIPE))
        started[-1].stdout.readline()
        return started[-1]

    yield start
    for one in started:
        one.kill()
        one.wait()


BUSY, ASLEEP = "print(1, flush=True)\nwhile True: pass", "import time; print(1, flush=True); time.sleep(99)"


def test_one_that_uses_no_processor_is_ended_only_while_it_is_waited_for(process):
    asleep = process(ASLEEP)
    watch = Patience(asleep.pid, 0.5)
    with watch.waiting():
        pass
    time.sleep(1.0)
    assert asleep.poll() is None and watch.reason is None
    with watch.waiting():
        assert asleep.wait(timeout=20) == -signal.SIGKILL
    assert watch.reason.startswith("used no processor time for")


def test_one_that_works_may_take_a_hundred_times_as_long_as_ever(process):
    busy = process(BUSY)
    watch = Patience(busy.pid, 1.5)
    with watch.waiting():
        time.sleep(2.5)
        assert busy.poll() is None
    watch.longest = 0.03
    with watch.waiting():
        started = time.monotonic()
        assert busy.wait(timeout=60) == -signal.SIGKILL
    assert time.monotonic() - started > 2.9
    assert "gave no answer for" in watch.reason and "longest so far took 0.0" in watch.reason
    watch.close()


def test_where_processor_time_is_unknown_the_clock_alone_decides(process, monkeypatch):
    asleep = process(ASLEEP)
    monkeypatch.setattr(patience, "processor_seconds", lambda pid: None)
    monkeypatch.setattr(patience, "BLIND", 8)
    watch = Patience(asleep.pid, 0.2)
    with watch.waiting():
        time.sleep(0.8)
        assert asleep.poll() is None
        assert asleep.wait(timeout=20) == -signal.SIGKILL


@pytest.mark.parametrize("at", ["probe", "state", "sending"])
def test_a_run_whose_worker_is_stopped_for_good_ends_and_can_be_resumed(tmp_path, monkeypatch, at):
    small = config_from_dict(SMALL)
    whole = run_to_end(probing(small, "off"), tmp_path / "whole").folder
    verb = {"probe": "submit", "state": "save", "sending": "observe"}[at]
    called, original = [], getattr(WorkerRunner, verb)

    def stop_first(self, *arguments):
        called.append(arguments)
        if len(called) == (8 if at == "sending" else 2):
            # what was asked for before has come
            while self.behind:
                self._receive_one()
            os.kill(self.process_id, signal.SIGSTOP)
        return original(self, *arguments)

    monkeypatch.setattr(WorkerRunner, verb, stop_first)
    config = probing(small, "on", worker_timeout_s=1.0)
    if at == "sending":
        # more than a pipe holds stays with the sender
        monkeypatch.setattr(runners, "LEAD_BYTES", 2000)
        config = probing(small, "on", worker_timeout_s=1.0, every=1, full_every=4, source="batch")
        whole = run_to_end(probing(config, "off"), tmp_path / "other").folder
    started = time.monotonic()
    with pytest.raises(ProbeError, match="used no processor time .* was ended; .* -s probe.worker=off"):
        start_run(config, tmp_path / "run")
    assert time.monotonic() - started < 60
    monkeypatch.undo()
    off = lambda config: replace(config, probe=replace(config.probe, worker="off"))  # noqa: E731
    assert resume_run(tmp_path / "run", wanted=off).finished
    assert files(RunFolder.open(tmp_path / "run")) == files(whole)
