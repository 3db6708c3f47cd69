"""Who may ask the live page's server for what: one gate before its router, which draws nothing and knows no run.

A page of another site can make a browser here send requests to this machine, and a name of its own can be made to lead
here. So a request is let in only if it names an address that the server is bound to, comes from the page itself or from
no page at all, and asks for one of the few things that the page needs. The rest gets one line.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakSet

from bokeh.server.session import ServerSession
from bokeh.server.tornado import BokehTornado
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPHeaders, HTTPMessageDelegate, HTTPServerRequest
from tornado.iostream import IOStream
from tornado.routing import Router
from tornado.web import OutputTransform, RequestHandler, stream_request_body

# the page is of a person's own run, so nobody else's machine may open it
ADDRESS = "127.0.0.1"
NAMES = (ADDRESS, "localhost")
# pages that are open at once, and those left less than UNUSED_MS ago: each takes half a second to build, and memory
MOST_PAGES = 8
# a browser must have opened the socket of its page by then
UNUSED_MS = 15_000
# a browser opens six connections and a socket a page
MOST_CONNECTIONS = 16 * MOST_PAGES
# for a request's headers, and between two requests
IDLE_S = 10.0
# cookies of other programs on this machine come along
HEADER_BYTES = 16_384
# requests have no body; 0 would mean tornado's own limit of 100 MB in some versions
BODY_BYTES = 1
# the page sends small events, and asks for its document
MESSAGE_BYTES = 1 << 20

SCRIPT = re.compile(r"/static/js/[a-z0-9-]+(\.[a-z0-9-]+)*\.js")
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    # Bokeh's page has its scripts inline, and makes functions of the text of callbacks; it can fetch from here alone
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; font-src data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}


class Door(HTTPServer):  # type: ignore[misc, unused-ignore]
    """An HTTP server that is patient for seconds, reads small requests, and holds a bounded number of connections."""

    # tornado makes its servers by initialize(), not by __init__()
    def initialize(self, gate: "Gate") -> None:
        """Set the limits; what comes through goes to the gate."""
        self._gate = gate
        # the oldest first
        self._streams: list[IOStream] = []
        super().initialize(
            gate, idle_connection_timeout=IDLE_S, body_timeout=IDLE_S,
            max_header_size=HEADER_BYTES, max_body_size=BODY_BYTES, max_buffer_size=2 * MESSAGE_BYTES,
        )  # fmt: skip

    def handle_stream(self, stream: IOStream, address: tuple[Any, ...]) -> None:
        """Take a connection; where there are too many, the oldest that is no page's socket makes room."""
        self._streams = [one for one in self._streams if not one.closed()]
        if len(self._streams) >= MOST_CONNECTIONS:
            next((one for one in self._streams if one not in self._gate.sockets), stream).close()
        self._streams.append(stream)
        super().handle_stream(stream, address)


class Gate(Router):  # type: ignore[misc, unused-ignore]
    """The router before Bokeh's: it passes on what the page needs, and refuses the rest before a body is read.

    pages: gives the pages that are known now; only one of these has a socket, and only one at a time
    sockets: the connections of those that were opened
    """

    def __init__(self, application: BokehTornado, *, port: int, pages: Callable[[], Sequence[ServerSession]]) -> None:
        # a browser leaves the port out where it is HTTP's own
        self._hosts = {f"{name}:{port}" for name in NAMES} | ({*NAMES} if port == 80 else set())
        self._application, self._pages = application, pages
        self.sockets: WeakSet[IOStream] = WeakSet()
        self._url = f"http://{ADDRESS}:{port}/"
        # who comes from another machine by a tunnel that ends at another port names that one
        self._tunnel = (
            f"a tunnel needs the same port at both ends: ssh -L {port}:{ADDRESS}:{port} "
            "(fclm watch --port N takes another)"
        )

    def find_handler(self, request: HTTPServerRequest, **_: Any) -> HTTPMessageDelegate:
        """Give who answers a request."""
        status, line = self._refusal(request)
        if not status:
            if request.path == "/ws":
                self.sockets.add(request.connection.stream)
            return self._application.find_handler(request)
        return self._application.get_handler_delegate(request, Refused, {"status": status, "line": line})

    def _refusal(self, request: HTTPServerRequest) -> tuple[int, str]:
        """Say why a request is not let in, by a status and a line; 0 and nothing for one that is."""
        headers: HTTPHeaders = request.headers
        # not request.host, which has a default
        host = headers.get_list("Host")
        if len(host) != 1 or host[0] not in self._hosts:
            return 403, f"refused: expected Host to be the address of this page; open {self._url}; {self._tunnel}"
        if any(origin != f"http://{host[0]}" for origin in headers.get_list("Origin")):
            return 403, f"refused: the request comes from another page; open {self._url} by itself; {self._tunnel}"
        if any(site not in ("none", "same-origin") for site in headers.get_list("Sec-Fetch-Site")):
            return 403, f"refused: another page led here; type or paste {self._url} as the address"
        if request.method != "GET":
            return 405, f"refused: expected GET, got {request.method[:20]!r}"
        if request.path == "/":
            return self._page_refusal(request)
        if request.path == "/ws":
            return self._socket_refusal(headers)
        if request.path == "/favicon.ico" or SCRIPT.fullmatch(request.path):
            return 0, ""
        return 404, f"refused: nothing is here; the page is {self._url}"

    def _page_refusal(self, request: HTTPServerRequest) -> tuple[int, str]:
        # Bokeh takes names of sessions from there
        if request.uri != "/" or "Bokeh-Session-Id" in request.headers:
            return 403, f"refused: the page's address is {self._url} and nothing more"
        if len(self._pages()) >= MOST_PAGES:
            return 503, (
                f"refused: {MOST_PAGES} pages of this run are open or were left less than {UNUSED_MS // 1000} s ago; "
                "close one and try again"
            )
        return 0, ""

    def _socket_refusal(self, headers: HTTPHeaders) -> tuple[int, str]:
        offered = [part.strip() for part in headers.get("Sec-WebSocket-Protocol", "").split(",")]
        free = {page.token for page in self._pages() if page.connection_count == 0}
        # a browser always names the page that asks for a socket
        if "Origin" not in headers or len(offered) != 2 or offered[1] not in free:
            return 403, f"refused: no page that is open asks for this socket; open {self._url} again"
        return 0, ""


@stream_request_body
class Refused(RequestHandler):  # type: ignore[misc, unused-ignore]
    """Answers with a status and one line, whatever the method."""

    def initialize(self, status: int, line: str) -> None:
        """Take what to say."""
        self._status, self._line = status, line

    def prepare(self) -> None:
        """Say it before anything else is done."""
        self.set_status(self._status)
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(self._line + "\n")

    def data_received(self, chunk: bytes) -> None:
        """Drop what comes of a body."""


class Dressed(OutputTransform):  # type: ignore[misc, unused-ignore]
    """Gives every answer the headers that keep it to its own page, and takes away what would open it to others."""

    def __init__(self, request: HTTPServerRequest) -> None:
        pass

    def transform_first_chunk(
        self, status_code: int, headers: HTTPHeaders, chunk: bytes, finishing: bool
    ) -> tuple[int, HTTPHeaders, bytes]:
        """Change the headers; the rest is as it was."""
        for name in list(headers):
            if name == "Server" or name.startswith("Access-Control-"):
                del headers[name]
        for name, value in HEADERS.items():
            headers[name] = value
        # a page holds the key to its socket; scripts carry their version in their address
        headers.setdefault("Cache-Control", "no-store")
        return status_code, headers, chunk
