"""What is refused before a request is read: foreign hosts and origins, a missing key. It also sets the headers of safety.

A page on another site can make a browser send requests to 127.0.0.1: then the browser names that site in ``Origin``. A
name of another site may also be made to point to 127.0.0.1 (DNS rebinding): then that name is in ``Host``.

Test: ``pytest tests/serve/test_hostile_requests.py``
"""

import hmac
import ipaddress
import socket

from starlette.responses import JSONResponse

from ..files.messages import shown
from .errors import ProtocolError, error_object

LOCAL = ("localhost", "127.0.0.1", "::1")
HEADERS = {  # of every response
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


def is_local(host):
    """Whether only programs on this machine can reach a host."""
    return host in LOCAL or is_address(host) and ipaddress.ip_address(host).is_loopback


def is_address(host):
    """Whether it is an IP address, which no other site can make point elsewhere."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def allowed_hosts(host, names=()):
    """The names in ``Host`` that are accepted by a server that listens on ``host``."""
    own = {*LOCAL, host.lower(), *(name.lower() for name in names)}
    return own if is_local(host) else own | {socket.gethostname().lower()}


def host_of(header):
    """The name in a ``Host`` header, without its port. None if it is damaged."""
    if header.startswith("["):
        name, bracket, port = header[1:].partition("]")
        port = port.removeprefix(":")
    else:
        name, bracket, port = header.partition(":")[0], "]", header.partition(":")[2]
    return name.lower() if bracket and name and (not port or port.isdigit() and len(port) < 6) else None


class Guard:
    """An ASGI application around another one.

    Args:
        hosts: the names in ``Host`` that are accepted.
        addresses: whether IP addresses are accepted too, for a server that other machines reach.
        key: what the header ``Authorization: Bearer KEY`` must have for ``/v1/``; None: nothing.
    """

    def __init__(self, app, hosts, addresses=False, key=None):
        self.app, self.hosts, self.addresses, self.key = app, hosts, addresses, key

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # no websockets
            await send({"type": "websocket.close", "code": 1008})
            return

        async def send_with_headers(message):
            if message["type"] == "http.response.start":
                own = {name for name, _ in message["headers"]}
                more = [(name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in own]
                message = message | {"headers": [*message["headers"], *more]}
            await send(message)

        error = self.refusal(scope)
        app = self.app if error is None else JSONResponse(error_object(error), error.status)
        await app(scope, receive, send_with_headers)

    def refusal(self, scope):
        """The error of a request that is not accepted, or None."""
        headers = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        hosts, origins = headers.get("host", []), headers.get("origin", [])
        name = host_of(hosts[0]) if len(hosts) == 1 else None
        if name is None or not (name in self.hosts or self.addresses and is_address(name)):
            known = "this server is not known by the name " + shown(", ".join(hosts))
            return ProtocolError(f"{known}: use its address, or start it with --allow-host", 403, code="foreign_host")
        if any(origin.lower() not in (f"http://{hosts[0].lower()}", f"https://{hosts[0].lower()}") for origin in origins):
            return ProtocolError("requests of other sites are refused", 403, code="foreign_origin")
        if self.key is not None and scope["path"].startswith("/v1") and scope["method"] != "OPTIONS":
            return self.key_error(headers.get("authorization", []))
        return None

    def key_error(self, given):
        """The error of a missing or wrong key, or None."""
        kind, _, key = (given[0] if len(given) == 1 else "").partition(" ")
        if kind.lower() == "bearer" and hmac.compare_digest(key.strip().encode(), self.key.encode()):
            return None
        reason = "a wrong API key was given" if given else "this server needs an API key"
        return ProtocolError(f"{reason}: Authorization: Bearer KEY", 401, code="invalid_api_key")
