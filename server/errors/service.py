"""What the service cannot do now."""

from __future__ import annotations

from server.errors.base import ServerError


class HttpError(ServerError):
    """The request cannot be read, or its address holds what none can."""

    status = 400
    code = "http_error"
    type = "invalid_request_error"
    default = "The request cannot be read."


class QueueFull(ServerError):
    """The queue has no place; one is free after about `retry_after` seconds."""

    status = 429
    code = "queue_full"
    type = "rate_limit_error"
    default = "The server has as many requests waiting as it takes. Try again later."
    retryable = True


class NotReady(ServerError):
    """The model is still loading."""

    status = 503
    code = "not_ready"
    default = "The model is not loaded yet. Try again later."
    retryable = True


class DatabaseUnavailable(ServerError):
    """The database is away, starting, or locked for too long."""

    status = 503
    code = "database_unavailable"
    default = "The server's database does not answer now. Try again later."
    retryable = True


class Draining(ServerError):
    """The server is shutting down."""

    status = 503
    code = "draining"
    default = "The server is shutting down. Try again later."
    retryable = True


class DeadlineExceeded(ServerError):
    """A generation took longer than the server allows."""

    status = 504
    code = "deadline_exceeded"
    default = "The answer took longer than the server allows. Ask for fewer tokens or steps."


class GenerationFailed(ServerError):
    """An exception inside one generation."""

    code = "generation_failed"
    default = "The model failed on this request. The server's log has this request's id."


class StorageFull(ServerError):
    """The server's disk has no room."""

    status = 507
    code = "storage_full"
    default = "The server has no room for this file. Delete files, or ask its operator."


class ClientDisconnected(ServerError):
    """The client went away before its answer was there."""

    status = 499
    code = "client_disconnected"
    type = "invalid_request_error"
    default = "The client went away."
