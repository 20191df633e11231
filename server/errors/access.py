"""Who may not ask."""

from __future__ import annotations

from server.errors.base import ServerError


class MissingKey(ServerError):
    """No key was sent."""

    status = 401
    code = "missing_key"
    type = "authentication_error"
    default = "A key is needed: send the header authorization: Bearer sk-..."


class InvalidKey(ServerError):
    """The key is unknown or revoked."""

    status = 401
    code = "invalid_key"
    type = "authentication_error"
    default = "This key is not known here, or it has been revoked."


class ScopeMissing(ServerError):
    """The key does not allow this."""

    status = 403
    code = "scope_missing"
    type = "permission_error"


class HostRefused(ServerError):
    """A server without keys is asked under another name than its own."""

    status = 403
    code = "host_refused"
    type = "permission_error"
    default = "A server without keys answers only under localhost, 127.0.0.1 and [::1]."


class OriginRefused(ServerError):
    """A server without keys is asked by a page of another origin."""

    status = 403
    code = "origin_refused"
    type = "permission_error"
    default = (
        "A server without keys does not answer web pages of other origins. Ask from a program, or "
        "give the server keys."
    )
