"""Runs the application with uvicorn, closes connections on which nothing moves, and stops gracefully.

Test: ``pytest tests/serve/test_server_process.py``
"""

import time

import uvicorn

from .app import Server
from .limits import MAX_CONNECTIONS, SILENT_SECONDS, STOP_SECONDS


class Stoppable(uvicorn.Server):
    """After the first signal no request is accepted any more, and those that there are get `STOP_SECONDS`.

    uvicorn waits without end for the rest of a head, and for a client that takes nothing of its response; with
    `MAX_CONNECTIONS` of them nobody else would get in. They are closed after `SILENT_SECONDS`.
    """

    def __init__(self, config, engine):
        super().__init__(config)
        self.engine, self.waits = engine, {}  # waits: connection -> what it waits with, and since when

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
        for each in self.server_state.connections:
            cycle, unsent = each.cycle, each.transport.get_write_buffer_size()
            if cycle is None or cycle.response_complete or unsent:
                before, since = self.waits.get(each, (None, now))
                waits[each] = (cycle, unsent), since if before == (cycle, unsent) else now
        self.waits = waits
        for each in [each for each, (_, since) in waits.items() if now - since > SILENT_SECONDS]:
            each.transport.abort()


def serve(vita, name, listening, **options):
    """Serves a model on a socket until a signal ends it, which is raised again then. The options are those of `stoppable`."""
    stoppable(vita, name, **options).run(sockets=[listening])


def stoppable(vita, name, *, hosts, addresses, key, verbose=False):
    """The server of a model, which does not run yet."""
    server = Server(vita, name, hosts=hosts, addresses=addresses, key=key)
    config = uvicorn.Config(
        server.app, log_level="info" if verbose else "error", access_log=verbose, limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=STOP_SECONDS + 2, server_header=False, ws="none", proxy_headers=False,
        http="h11",  # `close_silent` reads its state
    )  # fmt: skip
    return Stoppable(config, server.engine)
