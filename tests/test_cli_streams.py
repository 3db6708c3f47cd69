"""A run outlives whoever reads what it prints, and ends at once at a second signal; real processes throughout."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tomli_w

from fastcluster_lm.config import config_to_dict
from fastcluster_lm.store import RunFolder
from tests.campaign.tiny import tiny

COMMAND = [sys.executable, "-m", "fastcluster_lm", "train"]
# stops the process beside training for good, then asks twice for the end
STOPPED_WORKER = """
import os, signal, time
from fastcluster_lm.cli import main
from fastcluster_lm.probe import WorkerRunner

collect, asked = WorkerRunner.collect, []
def stop_and_ask(self, *, wait):
    if not asked and self.probes_behind:
        os.kill(self.process_id, signal.SIGSTOP)
        asked.append(os.kill(os.getpid(), signal.SIGTERM))
    if wait and asked:
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        signal.setitimer(signal.ITIMER_REAL, 0.5)
    return collect(self, wait=wait)
WorkerRunner.collect = stop_and_ask
main()
"""


@pytest.fixture
def arguments(tmp_path) -> list[str]:
    """Give the options of a run of 24 steps, with its rows shown at every second of them."""
    toml = tmp_path / "run.toml"
    toml.write_bytes(tomli_w.dumps(config_to_dict(tiny(steps=24))).encode())
    return ["-c", str(toml), "--out", str(tmp_path / "run")]


def finished(path: Path) -> list[int]:
    folder = RunFolder.open(path)
    assert folder.status() == "finished"
    return [row["step"] for row in folder.steps()]


@pytest.mark.parametrize("stream", ["stdout", "stderr", "both"])
def test_a_reader_that_leaves_changes_nothing(tmp_path, arguments, stream):
    reader, writer = os.pipe()
    streams = {name: writer if stream in (name, "both") else subprocess.PIPE for name in ("stdout", "stderr")}
    process = subprocess.Popen([*COMMAND, *arguments], **streams)
    os.close(writer)
    if stream != "stdout":
        # the first line was shown, and the next one finds nobody
        assert os.read(reader, 1)
    os.close(reader)
    outputs = process.communicate(timeout=120)
    assert process.returncode == 0
    assert not any(b"Traceback" in (output or b"") or b"Broken" in (output or b"") for output in outputs)
    assert finished(tmp_path / "run") == list(range(25))


def test_streams_that_were_closed_before_the_start_do_not_get_a_file_of_the_run(tmp_path, arguments):
    command = " ".join([*COMMAND, *arguments])
    done = subprocess.run(["sh", "-c", f"exec {command} <&- >&- 2>&-"], timeout=120)
    assert done.returncode == 0
    assert finished(tmp_path / "run") == list(range(25))
    assert json.loads((tmp_path / "run" / "lock").read_text())["pid"] > 0


def test_a_listing_ends_as_a_unix_tool_does(tmp_path, arguments):
    subprocess.run([*COMMAND, *arguments], check=True, capture_output=True, timeout=120)
    listing = [sys.executable, "-m", "fastcluster_lm", "scores", str(tmp_path / "run")]
    for form in (["--json"], ["--csv"], []):
        process = subprocess.Popen([*listing, *form], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        process.stdout.close()
        told = process.stderr.read()
        assert (process.wait(timeout=60), told) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_listing_that_cannot_be_written_says_so_in_a_line(tmp_path, arguments):
    subprocess.run([*COMMAND, *arguments], check=True, capture_output=True, timeout=120)
    for name, path in (("runs", tmp_path), ("scores", tmp_path / "run")):
        # few bytes fail when they are flushed, many when they are written
        for form in (["--json"], ["--csv"], []):
            with open("/dev/full", "w") as full:
                listing = [sys.executable, "-m", "fastcluster_lm", name, str(path), *form]
                done = subprocess.run(listing, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
            told = "fclm: cannot write to standard output: No space left on device\n"
            assert (done.returncode, done.stderr) == (1, told)


def test_a_second_signal_does_not_wait_for_a_worker_that_is_stopped(tmp_path, arguments):
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", STOPPED_WORKER, "train", *arguments, "-s", "probe.worker=on"],
        timeout=120,
        capture_output=True,
    )
    assert done.returncode == 128 + signal.SIGTERM, done.stderr.decode()
    assert b"stopped; go on with" in done.stderr and b"Traceback" not in done.stderr
    assert time.monotonic() - started < 60
    subprocess.run([*COMMAND, "--resume", str(tmp_path / "run")], check=True, capture_output=True, timeout=120)
    assert finished(tmp_path / "run") == list(range(25))
