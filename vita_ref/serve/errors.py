"""Errors of the protocol: an HTTP status, and an object in OpenAI's format.

Test: ``pytest tests/serve/test_protocol.py``
"""

from ..cli.terminal import one_line, user_message

TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class ProtocolError(ValueError):
    """What a client is told instead of an answer. ``param`` is the field of the request that is wrong."""

    def __init__(self, message, status=400, *, param=None, code=None):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


def as_protocol_error(error):
    """Any exception as a `ProtocolError`. Only errors that a client can fix have their own message."""
    if isinstance(error, ProtocolError):
        return error
    if isinstance(error, ValueError):
        return ProtocolError(str(error))
    if user_message(error):  # not enough memory
        return ProtocolError("there is not enough memory for this request: send less, or try again later", 503)
    return ProtocolError("the server has failed: its log says why", 500)


def error_object(error):
    """A `ProtocolError` as the JSON object that OpenAI's clients read."""
    kind = TYPES.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
    return {"error": {"message": one_line(error), "type": kind, "param": error.param, "code": error.code}}
