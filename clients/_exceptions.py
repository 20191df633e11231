"""Every error the clients raise, in one tree.

    DispError
    |-- InvalidInput             an image, file or setting cannot be sent; nothing was sent
    |-- ConnectionFailed         no answer came from the server
    |   `-- RequestTimedOut      none came in time
    |-- WaitTimedOut             a job did not end in the time that was given to it
    |-- UnexpectedResponse       an answer came that is not of this service
    `-- StatusError              the server refused: status, type, code, param, request_id
        |-- BadRequest           400  the body, base64 or image cannot be decoded
        |-- Unauthorized         401  no key, or a wrong one
        |-- Forbidden            403  the key's scopes do not allow it
        |-- NotFound             404  unknown path, model or id
        |-- MethodNotAllowed     405  wrong method
        |-- Conflict             409  the object's state does not allow it
        |-- TooLarge             413  body, file, pixels or number of images over a limit
        |-- UnsupportedMedia     415  an image, file or body of a kind that is not taken
        |-- Unprocessable        422  a field is missing, unknown or out of range
        |-- Overloaded           429  the queue is full; retry_after says when to come back
        `-- ServerError          5xx  the request failed inside the server
            |-- NotReady         503  no model is loaded yet, or the server is draining
            |-- DeadlineExceeded 504  the answer took longer than the server allows
            `-- StorageFull      507  the server's disk has no room

Messages of `StatusError` are the server's own words.
"""

from __future__ import annotations


class DispError(Exception):
    """Base of all errors raised by `clients`.

    Attributes:
        message: What is wrong and what to do about it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidInput(DispError):
    """An image, file or setting cannot be sent. Nothing was sent."""


class ConnectionFailed(DispError):
    """No answer came from the server."""


class RequestTimedOut(ConnectionFailed):
    """No answer came in time."""


class WaitTimedOut(DispError):
    """A job did not end in the time that was given to it; it goes on."""


class UnexpectedResponse(DispError):
    """An answer came that is not of this service; the base URL is probably wrong."""


class StatusError(DispError):
    """The server refused the request.

    Attributes:
        status: HTTP status.
        type: Class of the error, as the server names it.
        code: The server's code of the error.
        param: Field at fault, if there is one.
        request_id: Id under which the server has logged the request.
        retry_after: Seconds to wait before the next try, if the server named them.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        type: str | None = None,
        code: str | None = None,
        param: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.type = type
        self.code = code
        self.param = param
        self.request_id = request_id
        self.retry_after = retry_after


class BadRequest(StatusError):
    """The body, the base64 text or the image cannot be decoded (400)."""


class Unauthorized(StatusError):
    """No key, or a wrong one (401)."""


class Forbidden(StatusError):
    """The key's scopes do not allow it (403)."""


class NotFound(StatusError):
    """Unknown path, model or id (404)."""


class MethodNotAllowed(StatusError):
    """Wrong method (405)."""


class Conflict(StatusError):
    """The object's state does not allow it (409)."""


class TooLarge(StatusError):
    """Body, file, pixels or number of images over a limit (413)."""


class UnsupportedMedia(StatusError):
    """An image, file or body of a kind that is not taken (415)."""


class Unprocessable(StatusError):
    """A field is missing, unknown or out of range (422)."""


class Overloaded(StatusError):
    """The queue is full (429)."""


class ServerError(StatusError):
    """The request failed inside the server (5xx)."""


class NotReady(ServerError):
    """No model is loaded yet, or the server is draining (503)."""


class DeadlineExceeded(ServerError):
    """The answer took longer than the server allows (504)."""


class StorageFull(ServerError):
    """The server's disk has no room (507)."""


_BY_STATUS: dict[int, type[StatusError]] = {
    400: BadRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    405: MethodNotAllowed,
    409: Conflict,
    413: TooLarge,
    415: UnsupportedMedia,
    422: Unprocessable,
    429: Overloaded,
    503: NotReady,
    504: DeadlineExceeded,
    507: StorageFull,
}


def error_class(status: int) -> type[StatusError]:
    """The class of errors with this HTTP status."""
    return _BY_STATUS.get(status, ServerError if status >= 500 else StatusError)
