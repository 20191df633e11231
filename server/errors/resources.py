"""What is not there, or not in the state that a request needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from server.errors.base import ServerError

if TYPE_CHECKING:
    from server.schemas.errors import ErrorCode, ErrorType


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
    default = "The checkpoint did not answer its first question."


class RangeNotSatisfiable(ServerError):
    """The range that was asked for begins behind the file's end."""

    status = 416
    code = "range_not_satisfiable"
    type = "invalid_request_error"
    default = "The file ends before this range begins."


class MethodNotAllowed(ServerError):
    """The address exists, the method does not."""

    status = 405
    code = "method_not_allowed"
    type = "invalid_request_error"
    default = "This address does not take this method; the allow header names those it takes."
