"""The page of a run while it runs, on this machine alone: a Bokeh server that reads the run folder and draws anew."""

import time
from collections.abc import Callable, Sequence

from bokeh.application import Application
from bokeh.application.handlers import FunctionHandler
from bokeh.document import Document
from bokeh.events import DocumentReady
from bokeh.layouts import column
from bokeh.server.server import BaseServer
from bokeh.server.tornado import BokehTornado
from tornado.ioloop import IOLoop, PeriodicCallback
from tornado.netutil import bind_sockets

from fastcluster_lm.errors import RunFolderError, UsageError
from fastcluster_lm.store import RunFolder
from fastcluster_lm.views.report.gate import ADDRESS, MESSAGE_BYTES, NAMES, UNUSED_MS, Door, Dressed, Gate
from fastcluster_lm.views.report.history import Follower
from fastcluster_lm.views.report.page import RunPage, dark_toggle
from fastcluster_lm.views.report.sources import RunSources, Tabulate
from fastcluster_lm.views.report.write import page_template

REFRESH_MS = 1000
# a browser that does not answer for so long has lost its page
PING_S = 20


class LivePages:
    """A server of one run's page; every browser that opens it gets its own copy, which follows the run."""

    def __init__(
        self,
        folder: RunFolder,
        *,
        port: int,
        texts: Sequence[str] = (),
        tabulate: Tabulate | None = None,
        position: str | None = None,
    ) -> None:
        self._folder, self._texts, self._tabulate, self._position = folder, texts, tabulate, position
        # what cannot be read is said here, before a page is promised
        Follower(folder, position).refresh()
        try:
            sockets = bind_sockets(port, ADDRESS)
        except OSError as error:
            raise UsageError(
                f"--port: expected a port of {ADDRESS} that is free, got {port}: {error.strerror}; "
                "choose another, or 0 for any"
            ) from error
        port = sockets[0].getsockname()[1]
        self.url = f"http://{ADDRESS}:{port}/"
        pages = BokehTornado(
            Application(FunctionHandler(self._open)),
            extra_websocket_origins=[f"{name}:{port}" for name in NAMES],
            unused_session_lifetime_milliseconds=UNUSED_MS,
            check_unused_sessions_milliseconds=REFRESH_MS,
            websocket_max_message_size_bytes=MESSAGE_BYTES,
            # tornado's pings close what does not answer, Bokeh's do not
            keep_alive_milliseconds=0,
            websocket_ping_interval=PING_S,
            websocket_ping_timeout=PING_S,
            # a token is good for as long as its page is known, and has nothing of the request in it
            session_token_expiration=10**8,
            include_headers=[],
            include_cookies=[],
            transforms=[Dressed],
            # who asks for what is no news: a hostile page could fill the terminal with it
            log_function=lambda handler: None,
        )
        door = Door(Gate(pages, port=port, pages=lambda: self._server.get_sessions()))
        door.add_sockets(sockets)
        self._server = BaseServer(IOLoop.current(), pages, door)

    def serve(self, say: Callable[[str], None], *, idle_exit_s: float | None = None) -> None:
        """Serve until interrupted, or until the run is over and nobody has looked for so long.

        Units:  seconds
        """
        self._server.start()
        say(self.url)
        loop = self._server.io_loop
        last_needed = [time.monotonic()]

        def look() -> None:
            if self._server.get_sessions() or self._folder.status() == "running":
                last_needed[0] = time.monotonic()
            elif idle_exit_s is not None and time.monotonic() - last_needed[0] > idle_exit_s:
                loop.stop()

        PeriodicCallback(look, REFRESH_MS).start()
        try:
            loop.start()
        except KeyboardInterrupt:
            pass
        finally:
            self._server.stop()

    def stop(self) -> None:
        """End `serve`, from whatever thread."""
        self._server.io_loop.add_callback(self._server.io_loop.stop)

    def _open(self, document: Document) -> None:
        follower = Follower(self._folder, self._position)
        follower.refresh()
        dark = dark_toggle()
        page = RunPage(
            RunSources(follower.history, texts=self._texts, tabulate=self._tabulate), packed=False, dark=dark
        )

        def update() -> None:
            try:
                if follower.refresh():
                    page.refresh()
            except RunFolderError as error:
                # the folder may be moved or its run dropped while somebody looks
                page.say(str(error))

        # what the scripts draw is theirs: nothing of it is sent back
        for model in [*page.root.references(), *page.drawing.references(), dark]:
            model.syncable = False
        document.title = follower.history.name
        document.template = page_template()
        document.add_root(column(dark, page.root, sizing_mode="stretch_width"))
        document.js_on_event(DocumentReady, page.drawing)
        document.add_periodic_callback(update, REFRESH_MS)
