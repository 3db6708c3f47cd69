"""Requests to a live page's server that are not of its page, and a plain client on a socket; it judges nothing."""

import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass

SCRIPT = "/static/js/bokeh.min.js"
# what Bokeh's server knows, needed or not
PATHS = ("/", "/ws", SCRIPT, "/favicon.ico", "/autoload.js?bokeh-autoload-element=1", "/metadata")
# {} is the port of the server, {more} the next one
HOSTS = (
    "evil.example", "evil.example:{}", "EVIL.EXAMPLE:{}", "127.0.0.1.evil.example:{}", "localhost.evil:{}",
    "evil.localhost:{}", "127.0.0.1.nip.io:{}", "xn--lcalhost-13g:{}", "127.0.0.1", "localhost", "127.0.0.1:80",
    "127.0.0.1:{more}", "localhost:{more}", "127.0.0.1:0{}", "127.0.0.1:+{}", "127.0.0.1:{}0", "127.0.0.1:{}:{}",
    "127.0.0.1:", "user@127.0.0.1:{}", "127.0.0.1:{}@evil.example", "user:127.0.0.1@evil.example:{}",
    "evil.example#127.0.0.1:{}", "evil.example/127.0.0.1:{}", "evil.example?127.0.0.1:{}", "127.0.0.1:{}/",
    "http://127.0.0.1:{}", "//127.0.0.1:{}", "127.0.0.1:{},evil.example", "127.0.0.1:{} evil.example",
    "[::1]", "[::1]:{}", "::1:{}", "[::]:{}", "[::ffff:127.0.0.1]:{}", "[0:0:0:0:0:0:0:1]:{}", "[::1%25lo]:{}",
    "[127.0.0.1]:{}", "LOCALHOST:{}", "localhost.:{}", "127.0.0.1.:{}", "localhost.localdomain:{}", "ip6-localhost:{}",
    "2130706433:{}", "0x7f000001:{}", "0x7f.0.0.1:{}", "0177.0.0.1:{}", "127.1:{}", "127.000.000.001:{}",
    "127.0.0.2:{}", "0.0.0.0:{}", "0:{}", "%6cocalhost:{}", "localhost%2eevil:{}", "localhost%00:{}", "*", "null", "",
    "l\u00f8calhost:{}",
)  # fmt: skip
ORIGINS = (
    "http://evil.example", "http://evil.example:{}", "https://evil.example", "null", "file://", "file:///etc/passwd",
    "data:", "about:blank", "chrome-extension://abcdef", "moz-extension://abcdef", "http://127.0.0.1",
    "http://127.0.0.1:{more}", "http://localhost:{}", "http://localhost:{more}", "https://127.0.0.1:{}",
    "ws://127.0.0.1:{}", "127.0.0.1:{}", "//127.0.0.1:{}", "http://127.0.0.1:{}/", "http://127.0.0.1:{}.evil.example",
    "http://127.0.0.1:{}@evil.example", "http://user@127.0.0.1:{}", "http://evil.example#127.0.0.1:{}",
    "http://evil.example/?http://127.0.0.1:{}", "http://127.0.0.1:{} http://evil.example", "http://[::1]:{}",
    "http://2130706433:{}", "http://0.0.0.0:{}", "http://127.1:{}", "HTTP://127.0.0.1:{}", "http://127.0.0.1.:{}", "*",
    "", "http://127.0.0.1.evil.example:{}",
)  # fmt: skip
SITES = ("cross-site", "same-site", "none, cross-site", "Same-Origin", "", "unknown")
# asked with the page's own Host: other methods, other names for the same things, ways out of the folder of scripts
LINES = (
    "POST / HTTP/1.1", "PUT / HTTP/1.1", "OPTIONS / HTTP/1.1", "HEAD / HTTP/1.1", "TRACE / HTTP/1.1", "BREW / HTTP/1.1",
    "CONNECT evil.example:443 HTTP/1.1", "GET http://evil.example/ HTTP/1.1", "GET http://127.0.0.1:{}/ HTTP/1.1",
    "GET //evil.example/ HTTP/1.1", "GET /autoload.js HTTP/1.1", "GET /autoload.js?bokeh-autoload-element=1 HTTP/1.1",
    "GET /metadata HTTP/1.1", "GET /static/extensions/x/y.js HTTP/1.1", "GET /%77s HTTP/1.1", "GET /ws/ HTTP/1.1",
    "GET /?bokeh-session-id=abc HTTP/1.1", "GET /?bokeh-token=abc HTTP/1.1", "GET /? HTTP/1.1", "GET /?a=b HTTP/1.1",
    "GET /static/../../../../../../etc/passwd HTTP/1.1", "GET /static/js/../../../settings.py HTTP/1.1",
    "GET /static/js/..%2f..%2f..%2fsettings.py HTTP/1.1", "GET /static/%2e%2e/%2e%2e/settings.py HTTP/1.1",
    "GET /static/js/....//settings.js HTTP/1.1", "GET /static//etc/passwd HTTP/1.1", "GET /static/js/ HTTP/1.1",
    "GET /static/js\\..\\..\\settings.py HTTP/1.1", "GET /static/js/bokeh.min.js%00.txt HTTP/1.1",
    "GET /static/js/a.js/../../../../settings.py HTTP/1.1", "GET /run.toml HTTP/1.1", "GET ../run.toml HTTP/1.1",
)  # fmt: skip
SOCKET = (
    "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    "Sec-WebSocket-Version: 13",
)  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """What a server sent back; status 0 where it said nothing."""

    status: int
    head: str
    body: str

    @property
    def token(self) -> str:
        """The key to a page's socket, "" where there is none."""
        found = re.search(r'"token":"([^"]+)"', self.body)
        return found[1] if found else ""

    @property
    def let_in(self) -> bool:
        """Whether it is anything but a refusal of one line."""
        lines = self.body.splitlines()
        opened = "access-control" in self.head.lower() or bool(self.token)
        return opened or self.status not in (400, 403, 404, 405) or len(lines) > 1


def strangers(port: int, token: str) -> Iterator[tuple[str, bytes]]:
    """Give requests of which none may be let in, each with what it tries; some have the token of a page."""
    own = f"127.0.0.1:{port}"
    for path in PATHS:
        more = _socket(token) if path == "/ws" else []
        for host in HOSTS:
            named = host.replace("{more}", str(port + 1)).replace("{}", str(port))
            origin = [f"Origin: http://{named}"] if path == "/ws" else []
            yield f"{path} Host {named!r}", request(f"GET {path} HTTP/1.1", named, *origin, *more)
        for origin in ORIGINS:
            named = origin.replace("{more}", str(port + 1)).replace("{}", str(port))
            yield f"{path} Origin {named!r}", request(f"GET {path} HTTP/1.1", own, f"Origin: {named}", *more)
        for site in SITES:
            told = [f"Sec-Fetch-Site: {site}", f"Origin: http://{own}"]
            yield f"{path} Sec-Fetch-Site {site!r}", request(f"GET {path} HTTP/1.1", own, *told, *more)
        for version in ("1.0", "1.1"):
            yield f"{path} no Host, HTTP/{version}", request(f"GET {path} HTTP/{version}", None, *more)
        for hosts in ((own, "evil.example"), ("evil.example", own)):
            yield f"{path} Hosts {hosts}", request(f"GET {path} HTTP/1.1", hosts[0], f"Host: {hosts[1]}", *more)
    for line in LINES:
        yield line, request(line.replace("{}", str(port)), own)
    yield "a session's name in a header", request("GET / HTTP/1.1", own, "Bokeh-Session-Id: abc")
    for forged in ("", "none", "e30", "e30.e30", f"{token}x", token[1:], "\u00e9"):
        told = [f"Origin: http://{own}", *_socket(forged)]
        yield f"/ws token {forged[:20]!r}", request("GET /ws HTTP/1.1", own, *told)
    yield "/ws no Origin", request("GET /ws HTTP/1.1", own, *_socket(token))


def request(line: str, host: str | None, *headers: str) -> bytes:
    """Write a request that needs no body; header values as they are."""
    hosts = [] if host is None else [f"Host: {host}"]
    closing = [] if any(header.startswith("Connection:") for header in headers) else ["Connection: close"]
    return "\r\n".join([line, *hosts, *headers, *closing, "", ""]).encode("utf-8")


def page_request(port: int, path: str = "/") -> bytes:
    """Write the request of a person's browser."""
    return request(f"GET {path} HTTP/1.1", f"127.0.0.1:{port}", "Sec-Fetch-Site: none")


def socket_request(port: int, token: str, host: str = "127.0.0.1") -> bytes:
    """Write the request by which a page opens its socket."""
    return request("GET /ws HTTP/1.1", f"{host}:{port}", f"Origin: http://{host}:{port}", *_socket(token))


def ask(port: int, asked: bytes, *, limit_s: float = 60.0) -> Answer:
    """Send a request and read all that comes until the server closes, or a socket's first answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=limit_s) as connection:
        return talk(connection, asked)


def talk(connection: socket.socket, asked: bytes) -> Answer:
    """Send a request over a connection that is there."""
    told = b""
    try:
        connection.sendall(asked)
        while piece := connection.recv(1 << 16):
            told += piece
            if told.startswith(b"HTTP/1.1 101") and b"\r\n\r\n" in told:
                break
    except (ConnectionResetError, BrokenPipeError):
        # closed while there was more to be read
        pass
    head, _, body = told.decode("utf-8", "replace").partition("\r\n\r\n")
    status = re.match(r"HTTP/1\.1 (\d+)", head)
    return Answer(int(status[1]) if status else 0, head, body)


def _socket(token: str) -> list[str]:
    return [*SOCKET, f"Sec-WebSocket-Protocol: bokeh, {token}"]
