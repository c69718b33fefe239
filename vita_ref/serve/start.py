"""Runs the application with uvicorn, and stops it gracefully.

Test: ``pytest tests/serve/test_server_process.py``
"""

import uvicorn

from .app import Server
from .limits import MAX_CONNECTIONS, STOP_SECONDS


class Stoppable(uvicorn.Server):
    """After the first signal no request is accepted any more, and those that there are get `STOP_SECONDS`."""

    def __init__(self, config, engine):
        super().__init__(config)
        self.engine = engine

    def handle_exit(self, sig, frame):
        self.engine.stop()
        super().handle_exit(sig, frame)


def serve(vita, name, listening, *, hosts, addresses, key, verbose=False):
    """Serves a model on a socket until a signal ends it, which is raised again then."""
    server = Server(vita, name, hosts=hosts, addresses=addresses, key=key)
    config = uvicorn.Config(
        server.app, log_level="info" if verbose else "error", access_log=verbose, limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=STOP_SECONDS + 2, server_header=False, ws="none", proxy_headers=False,
    )  # fmt: skip
    Stoppable(config, server.engine).run(sockets=[listening])
