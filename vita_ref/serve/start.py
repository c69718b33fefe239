"""Runs the application with uvicorn, closes connections whose client is silent, and stops gracefully.

Test: ``pytest tests/serve/test_server_process.py``
"""

import time

import uvicorn

from .app import Server
from .limits import MAX_CONNECTIONS, SILENT_SECONDS, STOP_SECONDS


class Stoppable(uvicorn.Server):
    """A uvicorn server that stops gracefully: after the first signal no request is accepted, and running ones get `STOP_SECONDS`.

    uvicorn has no time limit for the rest of a request's head, or for a client that does not read its response:
    `MAX_CONNECTIONS` such clients would block the server. Their connections are closed after `SILENT_SECONDS`.
    """

    def __init__(self, config, engine):
        super().__init__(config)
        self.engine, self.waits = engine, {}  # waits: connection -> its state, and the time since which it has had it

    def handle_exit(self, sig, frame):
        self.engine.stop()
        super().handle_exit(sig, frame)

    async def on_tick(self, counter):
        if counter % 10 == 0:  # once a second
            self.close_silent(time.monotonic())
        return await super().on_tick(counter)

    def close_silent(self, now):
        """Closes the connections that have waited too long for their client."""
        waits = {}
        for connection in self.server_state.connections:
            cycle, unsent = connection.cycle, connection.transport.get_write_buffer_size()
            if cycle is None or cycle.response_complete or unsent:
                before, since = self.waits.get(connection, (None, now))
                waits[connection] = (cycle, unsent), since if before == (cycle, unsent) else now
        self.waits = waits
        for connection in [c for c, (_, since) in waits.items() if now - since > SILENT_SECONDS]:
            connection.transport.abort()


def serve(vita, name, listening, **options):
    """Serves a model on a socket until a signal, which is raised again at the end. The options are those of `stoppable`."""
    stoppable(vita, name, **options).run(sockets=[listening])


def stoppable(vita, name, *, hosts, addresses, key, verbose=False):
    """The server of a model, not yet started."""
    server = Server(vita, name, hosts=hosts, addresses=addresses, key=key)
    config = uvicorn.Config(
        server.app, log_level="info" if verbose else "error", access_log=verbose, limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=STOP_SECONDS + 2, server_header=False, ws="none", proxy_headers=False,
        http="h11",  # `close_silent` reads the state of this implementation
    )  # fmt: skip
    return Stoppable(config, server.engine)
