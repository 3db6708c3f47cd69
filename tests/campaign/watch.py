"""Strangers' requests at the live page, beside pages that are opened and left; all on this machine, one at a time."""

import random
import re
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from tests.campaign.outcome import Outcome
from tests.views.report.made_run import make_run
from tests.views.report.strangers import (
    HOSTS,
    ORIGINS,
    SCRIPT,
    Answer,
    ask,
    page_request,
    socket_request,
    strangers,
)

PROMISE = "`fclm watch` lets in the browser on its own machine and nobody else, and stays as small as it was."
TIMES = (1_000, 60_000)
# a page is opened and left before each so many requests: 200 of them in the long form
A_PAGE = 300
MOST_GROWTH_MIB, MOST_MORE_DESCRIPTORS = 48, 8


class Size(NamedTuple):
    """What a process holds: memory in MiB and open files."""

    rss_mib: float
    descriptors: int


def run(times: int, seed: int, folder: Path) -> Outcome:
    """Send so many requests, in an order that the seed decides; all kinds of them where there are enough."""
    made = make_run(folder / "run")
    made.add(0, warm=False)
    said = folder / "stderr"
    command = [sys.executable, "-m", "fastcluster_lm", "watch", str(made.folder.path), "--port", "0"]
    streams = {"stdout": subprocess.PIPE, "stderr": said.open("w"), "text": True}
    with streams["stderr"], subprocess.Popen(command, **streams) as server:
        try:
            port = _port(server)
            held, broken, pages, grown = _try(times, seed, port, server.pid)
            broken += _still_there(port)
        finally:
            server.terminate()
    if text := said.read_text():
        broken.append(f"it filled the terminal: {text[:200]!r}")
    figure = (
        f"{len(HOSTS)} hosts and {len(ORIGINS)} origins; {pages} pages opened and left; "
        f"RSS {grown.rss_mib:+.0f} MiB, open files {grown.descriptors:+d}"
    )
    return Outcome("requests of strangers", times, held, figure, broken)


def _try(times: int, seed: int, port: int, pid: int) -> tuple[int, list[str], int, Size]:
    """Give how many were refused, what was not, how many pages were opened, and how the server grew."""
    draw, broken = random.Random(seed), []
    held = pages = 0
    first: Size | None = None
    waiting: list[int] = []
    for number in range(times):
        if number % A_PAGE == 0:
            page, pages = _page(port), pages + 1
            kinds = list(strangers(port, page.token))
            # what the first page brings is there from now on
            first = first or _size(pid)
        if not waiting:
            waiting = draw.sample(range(len(kinds)), len(kinds))
        what, asked = kinds[waiting.pop()]
        answer = ask(port, asked)
        if answer.let_in:
            broken.append(f"{what}: {answer.status} {answer.body[:80]!r}")
        else:
            held += 1
    now = _size(pid)
    assert first is not None, "nothing was tried"
    grown = Size(now.rss_mib - first.rss_mib, now.descriptors - first.descriptors)
    if grown.rss_mib > MOST_GROWTH_MIB or grown.descriptors > MOST_MORE_DESCRIPTORS:
        broken.append(f"it grew from {first} to {now}")
    return held, broken, pages, grown


def _still_there(port: int) -> list[str]:
    """Open the page as a browser does."""
    page = _page(port)
    answers = {"script": (ask(port, page_request(port, SCRIPT)), 200)}
    answers["socket"] = ask(port, socket_request(port, page.token)), 101
    return [f"the page's {name}: {told.status}" for name, (told, status) in answers.items() if told.status != status]


def _page(port: int) -> Answer:
    """Open a page, once those that were left are forgotten."""
    ends_at = time.monotonic() + 120
    while (page := ask(port, page_request(port))).status == 503 and time.monotonic() < ends_at:
        time.sleep(0.2)
    assert page.status == 200 and page.token, f"expected the page, got {page}"
    return page


def _port(server: subprocess.Popen) -> int:
    assert select.select([server.stdout], [], [], 120)[0], "expected an address within 120 s"
    line = server.stdout.readline()
    found = re.search(r"http://127\.0\.0\.1:(\d+)/", line)
    assert found, f"expected an address, got {line!r}"
    return int(found[1])


def _size(pid: int) -> Size:
    process = Path(f"/proc/{pid}")
    rss_kib = int(re.search(r"VmRSS:\s+(\d+)", (process / "status").read_text())[1])
    return Size(rss_kib / 1024, len(list((process / "fd").iterdir())))
