"""How the service meets its clients: slow ones are cut, a signal drains it, health has a way of its own (chapter 07).

uvicorn speaks HTTP. What it leaves open, for a service that strangers reach, is here: a connection that never sends
its request, and a process that is told to end while others still send it requests.
"""

import asyncio
import json
import logging
import multiprocessing
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import FrameType
from typing import Any

import lightgbm  # noqa: F401  before `threadpool_limits`, which sees only what has been loaded
import uvicorn
from threadpoolctl import threadpool_limits
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from recutils.service.app import create_app
from recutils.service.auth import ServiceSettings
from recutils.service.middleware import JsonFormatter
from recutils.service.state import AppState

MAX_CONNECTIONS = 4000
BACKLOG = 4096  # connections that the system keeps until they are accepted
ALIVE_SECONDS = 10.0  # without a sign of the event loop the process counts as dead


class TimedProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """HTTP with a stamp on each request as it arrives, and on a connection since when it owes one."""

    def connection_made(self, transport: Any) -> None:
        """A client is there; one too many is cut off at once."""
        super().connection_made(transport)
        self.owes_since: float | None = self.loop.time()
        self.answered = self.cycle
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        """Bytes of one request or of several."""
        now = self.loop.time()
        if self.owes_since is None:
            self.owes_since, self.answered = now, self.cycle
        self.app_state["arrived"] = now  # of the requests that begin with these bytes: each takes a copy
        super().data_received(data)
        if self.cycle is not self.answered and not self.cycle.more_body:
            self.owes_since = None

    def is_overdue(self, now: float, patience: float) -> bool:
        """Whether its client has not sent the request that it owes, and waits for no answer."""
        waits = self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body
        return self.owes_since is not None and not waits and now > self.owes_since + patience


class Server(uvicorn.Server):
    """uvicorn's server: cuts overdue clients, shows that the event loop runs, and drains on SIGTERM.

    After SIGTERM /ready answers 503 while all else is served for `settings.drain` seconds, so that a load balancer
    sends no more; then no connection is accepted, and requests in flight are answered.
    """

    def __init__(self, config: uvicorn.Config, state: AppState) -> None:
        super().__init__(config)
        self.state, self.ends_at, self.signal = state, float("inf"), 0

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        self.state.alive_at = time.monotonic()
        if counter % 10 == 0:
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                if isinstance(connection, TimedProtocol) and connection.is_overdue(now, self.state.settings.patience):
                    connection.transport.abort()
        if time.monotonic() >= self.ends_at and not self.should_exit:
            super().handle_exit(self.signal, None)
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A first SIGTERM begins the drain; a second one, or Ctrl-C, ends it."""
        self.state.stopping = True
        if sig == signal.SIGTERM and not self.signal:
            self.signal, self.ends_at = sig, time.monotonic() + self.state.settings.drain
        else:
            super().handle_exit(sig, frame)


class HealthHandler(BaseHTTPRequestHandler):
    """/health and /ready in a thread, for probes: whatever the queue, they are answered at once."""

    timeout = 2.0  # seconds for a client to send its request
    state: AppState

    def do_GET(self) -> None:
        """200 or 503, in JSON."""
        if self.path == "/health":
            status, text = ("ok", "") if time.monotonic() < self.state.alive_at + ALIVE_SECONDS else ("", "stuck")
        elif self.path == "/ready":
            status, text = "ready", self.state.unready()
        else:
            return self.send_error(404)
        body = json.dumps({"error": text} if text else {"status": status}).encode()
        self.send_response(503 if text else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Probes are not logged."""


def watch_health(state: AppState, host: str, port: int) -> ThreadingHTTPServer:
    """Answer probes on a port of their own, in a thread that ends with the process."""
    handler = type("Handler", (HealthHandler,), {"state": state})
    kind = type("Probes", (ThreadingHTTPServer,), {"allow_reuse_port": True, "daemon_threads": True})  # one a worker
    server = kind((host, port), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def allow_many_connections() -> None:
    """Each is an open file; the system's soft limit is often a thousand. Windows has none."""
    try:
        import resource
    except ImportError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * MAX_CONNECTIONS if hard == resource.RLIM_INFINITY else min(hard, 2 * MAX_CONNECTIONS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def serve(settings: ServiceSettings, listener: socket.socket, health_port: int | None) -> None:
    """Answer requests that come to a listening socket, until a signal ends it."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.captureWarnings(True)
    sys.excepthook = lambda *fault: logging.getLogger("recutils.service").critical("died", exc_info=fault)
    threadpool_limits(1)  # small products: a second thread costs more than it brings
    sys.setswitchinterval(0.001)  # seconds that a long explanation may hold the interpreter while a search waits
    allow_many_connections()
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        http=TimedProtocol,
        access_log=False,
        log_level="warning",
        log_config=None,
        server_header=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=20,
    )
    if health_port is not None:
        watch_health(app.state.shared, listener.getsockname()[0], health_port)
    Server(config, app.state.shared).run([listener])


def run(settings: ServiceSettings, host: str, port: int, health_port: int | None = None, workers: int = 1) -> None:
    """Serve until a signal ends it, in this process or in several that share a port and the mapped version.

    With several, one that dies is started again.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family, backlog=BACKLOG) as listener:
        if workers == 1:
            return serve(settings, listener, health_port)
        arguments = (settings.model_copy(update={"workers": workers}), listener, health_port)
        supervise(partial(multiprocessing.get_context("spawn").Process, target=serve, args=arguments), workers)


def supervise(make: Callable[[], Any], workers: int) -> None:
    """Keep so many processes running until a signal comes; it is passed on, and their end is waited for."""
    stop = threading.Event()
    for sig in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sig, lambda *what: stop.set())
    children: list[Any] = [None] * workers
    while not stop.is_set():
        for place, child in enumerate(children):
            if child is None or not child.is_alive():
                children[place] = make()
                children[place].start()
        stop.wait(0.5)
    for child in children:
        child.terminate()
    for child in children:
        child.join()
