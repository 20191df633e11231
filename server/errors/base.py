"""The root of the tree."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from server.schemas.errors import ErrorCode, ErrorEnvelope, ErrorType

# Nothing is imported here that keys and the audit log do without: their commands start at once.


class ServerError(Exception):
    """Something went wrong in the server; the base of all errors of the service.

    Attributes:
        message: What is wrong and what to do about it; safe to show to a client, and bounded
            whatever it repeats of a request.
        param: Path of the field at fault, if there is one.
        retry_after: Seconds after which a repetition may succeed, if that is known.
    """

    status: ClassVar[int] = 500
    code: ClassVar[ErrorCode] = "internal_error"
    type: ClassVar[ErrorType] = "server_error"
    default: ClassVar[str] = "Something went wrong in the server. The log has this request's id."
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str | None = None,
        *,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        from purifier.messages import MOST_OF_A_PARAM, bounded  # noqa: PLC0415

        self.message = self.default if message is None else bounded(message)
        self.param = None if param is None else bounded(param, MOST_OF_A_PARAM)
        self.retry_after = retry_after
        super().__init__(self.message)

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the answer."""
        headers = {} if self.retryable else {"x-should-retry": "false"}
        if self.retry_after is not None:
            headers["retry-after"] = str(self.retry_after)
        return headers

    @property
    def envelope(self) -> ErrorEnvelope:
        """Body of the answer."""
        from server.schemas.errors import ErrorBody, ErrorEnvelope  # noqa: PLC0415

        body = ErrorBody(message=self.message, type=self.type, param=self.param, code=self.code)
        return ErrorEnvelope(error=body)
