"""The copy of `fclm train` that probes beside it: the same bytes, no orphan, and none where there are threads."""

import errno
import gc
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import tomli_w
from click.testing import CliRunner

from fastcluster_lm.cli import main
from fastcluster_lm.config import config_to_dict
from fastcluster_lm.engine import worker_ahead
from fastcluster_lm.errors import ProbeError
from fastcluster_lm.probe import copied
from fastcluster_lm.probe.runners import process as worker_process
from fastcluster_lm.store import RunFolder
from tests.laws.conftest import fingerprint, run_to_end
from tests.laws.test_worker import files, probing

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are copied on Linux alone")
# a process that is started afresh cannot be, so that it must be a copy which probes
TRAIN = """
import sys
from fastcluster_lm.cli import main
sys.executable = '/nowhere/python'
main(['train', *sys.argv[1:]])"""


def command(config, folder: Path, *options: str) -> list[str]:
    file = folder.with_suffix(".toml")
    file.write_text(tomli_w.dumps(config_to_dict(config)))
    return [sys.executable, "-c", TRAIN, "-c", str(file), "--out", str(folder), *options]


def children(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(entry.parent.name))
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition, seconds=120.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.fixture
def long_run(small, tmp_path):
    """Start a command that goes on for minutes; give it and the process beside it, once steps are taken."""
    config = probing(replace(small, training=replace(small.training, steps=10**6, checkpoint_every=10**6)), "on")
    process = subprocess.Popen(command(config, tmp_path / "run"), start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: (tmp_path / "run" / "scores.jsonl").exists())
        (beside,) = children(process.pid)
        yield process, beside
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("changes", [{"every": 4}, {"every": 1, "full_every": 5, "source": "batch"}])
def test_a_copy_scores_what_training_itself_would(small, tmp_path, changes):
    within = run_to_end(probing(small, "off", **changes), tmp_path / "within").folder
    config = probing(small, "on", **changes)
    done = subprocess.run(command(config, tmp_path / "beside"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    beside = RunFolder.open(tmp_path / "beside")
    assert beside.status() == "finished" and beside.config()["resolved"]["probe_worker"]
    assert files(beside) == files(within) and fingerprint(beside) == fingerprint(within)


def test_a_stopped_run_and_its_copy_end_and_go_on_bit_for_bit(long_run, small, tmp_path):
    process, beside = long_run
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 130
    wait_until(lambda: not alive(beside))
    assert RunFolder.open(tmp_path / "run").latest_checkpoint() > 0


def test_a_copy_leaves_signals_to_training_and_has_no_part_of_its_input(long_run):
    process, beside = long_run
    status = Path(f"/proc/{beside}/status").read_text()
    lines = dict(line.split(":\t", 1) for line in status.splitlines())
    masks = {name: int(lines[name], 16) for name in ("SigIgn", "SigBlk")}
    bits = {number: 1 << (number - 1) for number in (*worker_process.LEFT_TO_TRAINING, signal.SIGUSR2)}
    assert all(masks["SigIgn"] & bits[number] for number in worker_process.LEFT_TO_TRAINING)
    assert not masks["SigIgn"] & bits[signal.SIGUSR2] and masks["SigBlk"] == 0
    assert os.getpgid(beside) == beside != os.getpgid(process.pid)
    assert os.readlink(f"/proc/{beside}/fd/0") == os.devnull


def test_a_copy_ends_when_training_is_killed(long_run):
    process, beside = long_run
    process.kill()
    process.wait()
    wait_until(lambda: not alive(beside))


def test_training_says_when_its_copy_was_killed(long_run):
    process, beside = long_run
    os.kill(beside, signal.SIGKILL)
    assert process.wait(60) == 1


def test_a_run_that_cannot_begin_leaves_no_copy(small, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.toml").write_text("")
    done = subprocess.run(command(probing(small, "on"), tmp_path / "run"), capture_output=True, text=True)
    # a copy would hold the command's stderr, and this would still wait for its end
    assert done.returncode == 2 and "already" in done.stderr


def test_none_is_copied_where_there_are_threads_or_torch_may_have_some(small, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("copied"))
    ready = threading.Event()
    thread = threading.Thread(target=ready.wait)
    thread.start()
    try:
        assert copied("os:close") is None
    finally:
        ready.set()
        thread.join()
    with worker_ahead(probing(small, "off")) as ahead:
        assert ahead is None
    config = tmp_path / "run.toml"
    config.write_text(tomli_w.dumps(config_to_dict(probing(small, "on"))))
    done = CliRunner().invoke(main, ["train", "-c", str(config), "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output


def test_none_is_copied_for_a_resume_that_asks_for_none(small, tmp_path):
    run_to_end(probing(small, "on"), tmp_path / "run")
    code = f"import os, sys; os.fork = lambda: sys.exit('a copy'); {TRAIN}"
    resume = [sys.executable, "-c", code, "--resume", str(tmp_path / "run")]
    for worker, status in (("on", 1), ("off", 0)):
        done = subprocess.run([*resume, "-s", f"probe.worker={worker}"], capture_output=True, text=True)
        assert done.returncode == status and ("a copy" in done.stderr) == bool(status), done.stderr


def test_what_a_copy_ends_with_is_told():
    code = """
import subprocess, sys
from fastcluster_lm.probe import copied
worker = copied("builtins:print")
assert worker.process.wait() == 0 == worker.process.poll() == worker.process.wait(1.0)
worker.close(), worker.close()
worker = copied("os:read")
assert worker.process.poll() is None
try:
    worker.process.wait(0.05)
except subprocess.TimeoutExpired:
    worker.close()
    assert worker.process.returncode == -9
    worker = copied("os:fsencode")
    assert worker.process.wait() == 1
    print("end")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "end" and "TypeError" in done.stderr


def test_a_copy_that_the_system_reaps_has_ended_too():
    code = """
import signal
from fastcluster_lm.probe import copied
worker = copied("builtins:print")
assert worker.process.wait() == 0 == worker.process.poll()
worker.close()
worker = copied("os:read")
assert worker.process.poll() is None
worker.close()
assert worker.process.wait(1.0) == 0
print("end")
"""
    ignored = lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # noqa: E731
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, preexec_fn=ignored)
    assert done.stdout.splitlines()[-1:] == ["end"], done.stderr


def test_two_threads_may_end_and_wait_for_a_copy():
    code = """
import threading
from fastcluster_lm.probe import copied
for _ in range(200):
    worker = copied("os:read")
    found, ready = [], threading.Barrier(3)
    def end():
        ready.wait()
        worker.process.kill()
        found.append(worker.process.poll() in (None, -9))
    def wait(timeout):
        ready.wait()
        found.append(worker.process.wait(timeout) == -9)
    threads = [threading.Thread(target=end), *(threading.Thread(target=wait, args=[limit]) for limit in (5.0, None))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 3, found
    worker.close()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_signal_right_after_the_start_is_left_to_training_too():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    worker = worker_process.started("os:read")
    try:
        for number in worker_process.LEFT_TO_TRAINING:
            os.kill(worker.process.pid, number)
        time.sleep(0.5)
        status = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{worker.process.pid}/status").read_text().splitlines()
        )
        assert int(status["SigBlk"], 16) == 0
        worker.connection.close()
        assert worker.process.wait(20) == 0
    finally:
        worker.close()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def full(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("place", ["memory", "pipe"])
def test_no_room_for_a_process_is_explained_and_leaves_no_descriptor(monkeypatch, place):
    gc.collect()
    held = len(os.listdir("/proc/self/fd"))
    if place == "pipe":
        monkeypatch.setattr(worker_process, "Pipe", full)
    else:
        monkeypatch.setattr(os, "memfd_create", full)
    with pytest.raises(ProbeError, match="cannot be started: No space left on device; resume the run with -s probe"):
        worker_process.started("os:read")
    assert copied("os:read") is None
    assert len(os.listdir("/proc/self/fd")) == held


def test_a_process_needs_no_room_for_files(monkeypatch):
    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    worker_process.started("os:read").close()
