"""The live page: it follows a run as it is written, outlives it, and is for this machine alone."""

import asyncio
import json
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastcluster_lm.cli.beside import Beside
from fastcluster_lm.errors import RunFolderError, UsageError
from fastcluster_lm.store import RunFolder, TornLineWarning
from fastcluster_lm.views.report.live import LivePages
from tests.views.report.conftest import Tab
from tests.views.report.made_run import MadeRun, make_run


@pytest.fixture
def run(tmp_path: Path) -> MadeRun:
    """Give a run that was probed once, before its first step."""
    made = make_run(tmp_path / "run")
    made.add(0, warm=False)
    return made


@pytest.fixture
def url(run: MadeRun) -> Iterator[str]:
    """Serve the run's page in a thread; give its address."""
    said: list[str] = []
    ready = threading.Event()
    stop: list = []

    def say(address: str) -> None:
        said.append(address)
        ready.set()

    def serve() -> None:
        asyncio.set_event_loop(asyncio.new_event_loop())
        pages = LivePages(run.folder, port=0)
        stop.append(pages.stop)
        pages.serve(say)

    thread = threading.Thread(target=serve)
    thread.start()
    assert ready.wait(30)
    yield said[0]
    stop[0]()
    thread.join(30)
    assert not thread.is_alive()


def test_the_page_follows_the_run_and_outlives_it(browser, run, url, tmp_path):
    tab = Tab(browser).open(url)
    assert tab.run("[slider.end, slider.disabled]") == [1, True]
    tab.see("0 of 0, map 1 of 1")
    with run.folder.lock():
        points = run.add(50)
        tab.see("50 of 50, map 2 of 2")
        assert tab.run("[slider.value, slider.end, slider.disabled]") == [1, 1, False]
        xs = tab.run("Array.from(model('map-1').renderers[0].data_source.data.x)")
        half = tab.run("model('map-1').x_range.end - model('map-1').x_range.start") / 2
        assert xs == pytest.approx(list(points[1, :, 0]), abs=half / 65535 * 1.01)
        # a torn last line, as a killed writer leaves it
        with open(run.folder.path / "scores.jsonl", "a") as torn:
            torn.write('{"step":100,"lay')
    with pytest.warns(TornLineWarning):
        run.add(100)
    tab.see("map 3 of 3")
    # who looks at an earlier map keeps it
    tab.run("slider.value = 0")
    run.add(200)
    tab.page.wait_for_function("slider.end === 3")
    assert tab.run("slider.value") == 0
    run.folder.mark_finished({"early_stopping_step": 100})
    tab.see("early-stopping mark 100")
    tab.page.screenshot(path=tmp_path / "live.png", full_page=True)
    assert tab.problems == []
    assert all(request.startswith((url, url.replace("http", "ws"))) for request in tab.requests)
    tab.page.close()


def test_only_this_machine_may_open_the_page(url):
    port = int(url.rsplit(":", 1)[1].strip("/"))
    assert urllib.request.urlopen(url, timeout=20).status == 200
    # another address of this machine, which a server for all of them would answer at
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), timeout=5)


def test_a_port_that_is_taken_is_said_so(run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"--port: expected a port .* got {port}"):
            LivePages(run.folder, port=port)


def test_a_run_that_cannot_be_read_is_refused_before_a_page_is_promised(run):
    (run.folder.path / "run.toml").write_text("not = [toml")
    with pytest.raises(RunFolderError, match="run.toml is damaged"):
        LivePages(run.folder, port=0)


def test_training_starts_the_page_in_a_process_that_ends_with_nobody_looking(run, monkeypatch, capfd):
    started: list[subprocess.Popen] = []
    popen = subprocess.Popen
    monkeypatch.setattr("fastcluster_lm.cli.beside.IDLE_EXIT_S", 0)
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **options: started.append(popen(*args, **options)))
    with Beside(live=True, tensorboard=False) as beside:
        beside.start(run.folder.path, 0)
        beside.update({"step": 0}, None)
    assert started[0].wait(60) == 0
    said = capfd.readouterr()
    assert said.out == "" and f"shows {run.folder.path}" in said.err and "http://127.0.0.1:" in said.err


@pytest.mark.parametrize(("option", "package"), [("live", "bokeh"), ("tensorboard", "tensorboard")])
def test_a_missing_package_is_said_before_training(monkeypatch, option, package):
    monkeypatch.setattr("fastcluster_lm.views.extras.find_spec", lambda name: None)
    options = {"live": False, "tensorboard": False, option: True}
    with pytest.raises(UsageError, match=f"expected the package {package}.*pip install"):
        Beside(**options)


def test_rows_are_those_that_a_reader_would_find(run):
    from fastcluster_lm.views.report.history import Follower

    follower = Follower(RunFolder.open(run.folder.path))
    assert follower.refresh() and not follower.refresh()
    run.add(50)
    assert follower.refresh()
    found = [json.dumps(row) for row in follower.history.score_rows]
    assert found == [json.dumps(row) for row in run.folder.scores()]
    # a map is written before its rows
    arrays, notes = run.folder.read_map(50)
    run.folder.write_map(100, arrays, notes)
    assert not follower.refresh() and follower.history.map_steps == [0, 50]
    # a run taken up again sets aside what came after its checkpoint
    run.folder.set_aside_after(0)
    assert follower.refresh()
    assert {row["step"] for row in follower.history.score_rows} == {0} and follower.history.map_steps == [0]
