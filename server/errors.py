"""Every error the service answers with, in one tree.

    ServerError                     500 internal_error
    |-- InvalidRequest              422 a field is missing, unknown or out of range
    |   |-- InvalidSetting          422 a diffusion or defence setting
    |   |-- InvalidPrompt           422 the turns cannot be made into a prompt
    |   |-- ImageMissing            422 an image is spoken of and not there
    |   |-- ContextLengthExceeded   422 prompt and response are longer than the context
    |   |-- ImageDimensions         422 too small or too elongated
    |   |-- TooManyImages           413
    |   |-- ImageTooLarge           413 bytes or pixels
    |   |-- UnsupportedImage        415 not PNG, JPEG or WebP
    |   |-- ImageUndecodable        400 not base64, truncated or damaged
    |   |-- InvalidBody             400 not JSON
    |   |-- BodyTooLarge            413
    |   |-- ArchiveTooLarge         413 more members or bytes than are unpacked
    |   |-- ArchiveRefused          422 damaged, or with links or bad names
    |   |-- UnusableDataSet         422 an upload that no job could read
    |   |-- UnsupportedFile         415 neither a label file nor an archive
    |   `-- UnsupportedMediaType    415
    |-- MissingKey, InvalidKey      401
    |-- ScopeMissing, HostRefused   403
    |-- NotFound, ModelNotFound     404
    |-- JobNotFound                 404
    |-- DataFileNotFound            404 no such upload or data set
    |-- MethodNotAllowed            405
    |-- JobStateConflict            409 the job's status does not allow it
    |-- DataFileInUse               409 an unfinished job reads it
    |-- CheckpointNotFound        404
    |-- CheckpointConflict        409 the checkpoint's state does not allow it
    |   |-- CheckpointDamaged     409 a file is missing, altered or not readable
    |   |-- GateFailed            409 its evaluation failed; an administrator may force it
    |   `-- CanaryFailed          409 it does not answer the question that every one must
    |-- IdempotencyConflict         422 the key was used for another request
    |-- QueueFull                   429 with Retry-After
    |-- NotReady, Draining          503 with Retry-After
    |-- DeadlineExceeded            504
    |-- GenerationFailed            500
    |-- StorageFull                 507
    `-- ClientDisconnected          499 nobody is there to read it

Messages reach the client: they name the field and the remedy, and never contain the text
of a foreign exception. `retryable` false sends `x-should-retry: false`, because OpenAI's
clients repeat every 408, 409, 429 and 5xx unless told not to.
"""

from __future__ import annotations

from typing import ClassVar

from server.schemas.errors import ErrorBody, ErrorCode, ErrorEnvelope, ErrorType


class ServerError(Exception):
    """Base of all errors of the service.

    Attributes:
        message: What is wrong and what to do about it; safe to show to a client.
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
        self.message = self.default if message is None else message
        self.param = param
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
        body = ErrorBody(message=self.message, type=self.type, param=self.param, code=self.code)
        return ErrorEnvelope(error=body)


class InvalidRequest(ServerError):
    """A field is missing, unknown or out of range."""

    status: ClassVar[int] = 422
    code: ClassVar[ErrorCode] = "invalid_request"
    type: ClassVar[ErrorType] = "invalid_request_error"
    default: ClassVar[str] = "The request is not valid."


class InvalidSetting(InvalidRequest):
    """A diffusion or defence setting is out of range."""

    code = "invalid_setting"


class InvalidPrompt(InvalidRequest):
    """The turns cannot be made into a prompt."""

    code = "invalid_prompt"


class ImageMissing(InvalidRequest):
    """A turn speaks of an image that is not there."""

    code = "image_missing"


class ContextLengthExceeded(InvalidRequest):
    """Prompt and response together are longer than the model's context."""

    code = "context_length_exceeded"


class ImageDimensions(InvalidRequest):
    """An image is too small or too elongated."""

    code = "image_dimensions"


class TooManyImages(InvalidRequest):
    """A request has more images than are allowed."""

    status = 413
    code = "too_many_images"


class ImageTooLarge(InvalidRequest):
    """An image has too many bytes or pixels."""

    status = 413
    code = "image_too_large"


class UnsupportedImage(InvalidRequest):
    """An image is neither PNG, JPEG nor WebP, or not a data URL."""

    status = 415
    code = "unsupported_image"
    default = "Images must be PNG, JPEG or WebP."


class ImageUndecodable(InvalidRequest):
    """An image is not base64, truncated or damaged."""

    status = 400
    code = "image_undecodable"
    default = "The image cannot be decoded: it is truncated or damaged."


class InvalidBody(InvalidRequest):
    """The body is not JSON."""

    status = 400
    code = "invalid_body"
    default = "The body is not valid JSON."


class BodyTooLarge(InvalidRequest):
    """The body is larger than the server reads."""

    status = 413
    code = "body_too_large"


class ArchiveTooLarge(InvalidRequest):
    """An archive has more members or bytes than the server unpacks."""

    status = 413
    code = "archive_too_large"


class ArchiveRefused(InvalidRequest):
    """An archive is damaged, or holds what the server does not unpack."""

    code = "archive_refused"


class UnusableDataSet(InvalidRequest):
    """An upload holds no data set that a job could read."""

    code = "unusable_data_set"


class UnsupportedFile(InvalidRequest):
    """An upload is neither a label file nor an archive."""

    status = 415
    code = "unsupported_file"
    default = "Send JSON, JSONL or parquet, or a zip, tar or tar.gz of one of them and its images."


class UnsupportedMediaType(InvalidRequest):
    """The body is not declared as JSON."""

    status = 415
    code = "unsupported_media_type"
    default = "Send the body as JSON with the header content-type: application/json."


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


class NotFound(ServerError):
    """There is nothing at this address."""

    status = 404
    code = "not_found"
    type = "not_found_error"
    default = "There is nothing at this address."


class ModelNotFound(ServerError):
    """No such model is served here."""

    status = 404
    code = "model_not_found"
    type = "not_found_error"


class JobNotFound(ServerError):
    """There is no such job."""

    status = 404
    code = "job_not_found"
    type = "not_found_error"
    default = "There is no job of this id."


class DataFileNotFound(ServerError):
    """There is no such upload or data set."""

    status = 404
    code = "file_not_found"
    type = "not_found_error"
    default = "There is no file of this id."


class DataFileInUse(ServerError):
    """An unfinished job reads the file."""

    status = 409
    code = "file_in_use"
    type = "invalid_request_error"
    default = "A job that has not finished reads this file; cancel it first."


class JobStateConflict(ServerError):
    """A job's status does not allow what was asked."""

    status = 409
    code = "job_state_conflict"
    type = "invalid_request_error"


class CheckpointNotFound(ServerError):
    """There is no such checkpoint."""

    status = 404
    code = "checkpoint_not_found"
    type = "not_found_error"
    default = "There is no checkpoint of this id; GET /v1/checkpoints lists them."


class CheckpointConflict(ServerError):
    """A checkpoint's state does not allow what was asked."""

    status: ClassVar[int] = 409
    code: ClassVar[ErrorCode] = "checkpoint_conflict"
    type: ClassVar[ErrorType] = "invalid_request_error"


class CheckpointDamaged(CheckpointConflict):
    """A checkpoint's file is missing, altered or not readable."""

    code = "checkpoint_damaged"


class GateFailed(CheckpointConflict):
    """A checkpoint's evaluation did not pass its limits."""

    code = "gate_failed"


class CanaryFailed(CheckpointConflict):
    """A checkpoint does not answer the question that every one is asked before it serves."""

    code = "canary_failed"
    default = "The checkpoint did not answer its first question. Nothing has changed."


class IdempotencyConflict(InvalidRequest):
    """An idempotency key was used before, for another request."""

    code = "idempotency_conflict"
    default = "This Idempotency-Key was used for another request; send a new one."


class MethodNotAllowed(ServerError):
    """The address exists, the method does not."""

    status = 405
    code = "method_not_allowed"
    type = "invalid_request_error"
    default = "This address does not take this method; the allow header names those it takes."


class HttpError(ServerError):
    """A protocol error that has no class of its own."""

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
