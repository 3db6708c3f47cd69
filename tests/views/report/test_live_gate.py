"""The live page's server lets its own page in and nobody else, and what strangers do to it is bounded."""

import asyncio
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from bokeh.models import Div

from fastcluster_lm.views.report import gate, live
from tests.views.report.made_run import MadeRun, make_run
from tests.views.report.strangers import (
    HOSTS,
    ORIGINS,
    SCRIPT,
    ask,
    page_request,
    request,
    socket_request,
    strangers,
    talk,
)


@pytest.fixture
def run(tmp_path: Path) -> MadeRun:
    """Give a run that was probed once."""
    made = make_run(tmp_path / "run", n_layers=1)
    made.add(0, warm=False)
    return made


@pytest.fixture
def served(run: MadeRun, monkeypatch: pytest.MonkeyPatch) -> Iterator[live.LivePages]:
    """Serve pages in a thread; what is drawn on them is no matter here."""
    monkeypatch.setattr(live.LivePages, "_open", lambda self, document: document.add_root(Div(text="drawn")))
    made: list[live.LivePages] = []
    ready = threading.Event()

    def serve() -> None:
        asyncio.set_event_loop(asyncio.new_event_loop())
        made.append(live.LivePages(run.folder, port=0))
        made[0].serve(lambda _: ready.set())

    thread = threading.Thread(target=serve)
    thread.start()
    assert ready.wait(30)
    yield made[0]
    made[0].stop()
    thread.join(30)
    assert not thread.is_alive()


@pytest.fixture
def port(served: live.LivePages) -> int:
    """Give the port that it is served at."""
    return int(served.url.rsplit(":", 1)[1].strip("/"))


def test_no_stranger_is_let_in_and_the_page_is_still_there(port, capfd):
    page = ask(port, page_request(port))
    assert page.status == 200 and page.token
    tried = list(strangers(port, page.token))
    assert len(tried) > 500 and len(HOSTS) >= 50 and len(ORIGINS) >= 30
    let_in = [(what, answer) for what, asked in tried if (answer := ask(port, asked)).let_in]
    assert let_in == []
    # nor is the terminal filled
    assert capfd.readouterr().err == ""
    assert ask(port, page_request(port)).token not in ("", page.token)


@pytest.mark.parametrize("host", gate.NAMES)
def test_the_page_has_its_scripts_and_one_socket(port, host):
    for path in ("/", SCRIPT, "/favicon.ico"):
        for told in ([], ["Sec-Fetch-Site: none"], ["Sec-Fetch-Site: same-origin", f"Origin: http://{host}:{port}"]):
            answer = ask(port, request(f"GET {path} HTTP/1.1", f"{host}:{port}", *told))
            assert answer.status == 200, answer
            assert "Access-Control" not in answer.head and "Server:" not in answer.head
            for header in (*gate.HEADERS, "Cache-Control"):
                assert answer.head.count(f"\r\n{header}: ") == 1, answer.head
    token = ask(port, page_request(port)).token
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        answer = talk(connection, socket_request(port, token, host))
        assert answer.status == 101
        # the server's greeting, behind a ping: Bokeh knows the page. It may have come along with the answer
        told = answer.body.encode()
        while b"ACK" not in told:
            piece = connection.recv(1 << 16)
            told += piece
            assert piece and len(told) < 1000, told
        assert ask(port, socket_request(port, token, host)).status == 403


def test_a_refusal_says_what_to_do_in_one_line(port):
    url = f"http://127.0.0.1:{port}/"
    refused = {
        request("GET / HTTP/1.1", "evil.example"): (403, "expected Host to be the address of this page"),
        request("GET / HTTP/1.1", f"127.0.0.1:{port}", "Origin: null"): (403, "comes from another page"),
        request("GET / HTTP/1.1", f"127.0.0.1:{port}", "Sec-Fetch-Site: cross-site"): (403, "another page led here"),
        request("GET /run.toml HTTP/1.1", f"127.0.0.1:{port}"): (404, "nothing is here"),
        socket_request(port, "none"): (403, "no page that is open asks for this socket"),
    }
    for asked, (status, line) in refused.items():
        answer = ask(port, asked)
        assert answer.status == status and answer.body.startswith("refused: ") and answer.body.endswith("\n")
        assert line in answer.body and url in answer.body and answer.body.count("\n") == 1
        assert "text/plain" in answer.head and "Content-Security-Policy" in answer.head


def test_who_comes_by_a_tunnel_to_another_port_is_told_how_to_come(port):
    # a browser at the tunnel's own end names that port, as host and, with a script's request, as origin
    for told in (
        request("GET / HTTP/1.1", "127.0.0.1:1"),
        request("GET / HTTP/1.1", "localhost:1", "Origin: http://localhost:1"),
        request("GET / HTTP/1.1", f"127.0.0.1:{port}", "Origin: http://127.0.0.1:1"),
    ):
        answer = ask(port, told)
        assert answer.status == 403 and answer.body.count("\n") == 1
        assert f"ssh -L {port}:127.0.0.1:{port}" in answer.body and "fclm watch --port" in answer.body, answer.body


def test_pages_beyond_a_number_wait_until_one_was_left(monkeypatch, request):
    # longer than a page needs to be opened here beside other work
    lifetime_ms = 3000
    monkeypatch.setattr(live, "UNUSED_MS", lifetime_ms)
    monkeypatch.setattr(live, "REFRESH_MS", 200)
    monkeypatch.setattr(gate, "MOST_PAGES", 3)
    served = request.getfixturevalue("served")
    port = int(served.url.rsplit(":", 1)[1].strip("/"))
    with ExitStack() as opened:
        for _ in range(3):
            connection = opened.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60))
            token = _page(port).token
            assert talk(connection, socket_request(port, token)).status == 101
        # those that are open stay
        time.sleep(3 * lifetime_ms / 1e3)
        full = ask(port, page_request(port))
        assert full.status == 503 and "close one and try again" in full.body and full.body.count("\n") == 1
        assert ask(port, page_request(port, SCRIPT)).status == 200
    assert _page(port).token
    # a token is of no use once its page is forgotten
    time.sleep(3 * lifetime_ms / 1e3)
    assert ask(port, socket_request(port, token)).status == 403


def test_slow_and_greedy_clients_are_bounded(monkeypatch, request):
    monkeypatch.setattr(gate, "IDLE_S", 4.0)
    served = request.getfixturevalue("served")
    port = int(served.url.rsplit(":", 1)[1].strip("/"))
    own = f"127.0.0.1:{port}"
    before = _descriptors()
    with ExitStack() as opened:
        slow = [
            opened.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
            for _ in range(gate.MOST_CONNECTIONS + 30)
        ]
        for number, connection in enumerate(slow):
            try:
                connection.sendall(b"GET / HTTP/1.1\r\nHost: 127"[: number % 26])
            except ConnectionError:
                assert number < 30
        # who comes while they wait is served; the oldest of them made room
        assert ask(port, page_request(port)).status == 200
        assert _descriptors() - before <= len(slow) + gate.MOST_CONNECTIONS
        time.sleep(5)
        assert all(_is_closed(connection) for connection in slow)
    for asked in (
        f"GET / HTTP/1.1\r\nHost: {own}\r\nX: {'x' * 100_000}\r\n\r\n".encode(),
        f"GET /{'x' * 100_000} HTTP/1.1\r\nHost: {own}\r\n\r\n".encode(),
        f"POST / HTTP/1.1\r\nHost: {own}\r\nContent-Length: 1000000000\r\n\r\n".encode() + bytes(100_000),
        f"GET / HTTP/1.1\r\nHost: {own}\r\nTransfer-Encoding: chunked\r\n\r\nfffff\r\n".encode() + bytes(100_000),
        bytes(100_000),
    ):
        assert ask(port, asked, limit_s=20).status in (0, 400, 403, 405)
    token = _page(port).token
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        assert talk(connection, socket_request(port, token)).status == 101
        # a text of 2 MiB, which no page sends: closed by its header alone
        connection.sendall(b"\x81\xff" + struct.pack(">Q", 2 << 20) + bytes(4))
        assert _is_closed(connection)
    assert ask(port, page_request(port)).status == 200


def _page(port: int):
    """Ask for a page until there is room for it."""
    ends_at = time.monotonic() + 30
    while (answer := ask(port, page_request(port))).status == 503 and time.monotonic() < ends_at:
        time.sleep(0.1)
    return answer


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _is_closed(connection: socket.socket) -> bool:
    try:
        while connection.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass
    except TimeoutError:
        return False
    return True
