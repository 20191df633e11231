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
    |-- ScopeMissing                403
    |-- HostRefused, OriginRefused  403 of a server without keys
    |-- NotFound, ModelNotFound     404
    |-- JobNotFound                 404
    |-- DataFileNotFound            404 no such upload or data set
    |-- MethodNotAllowed            405
    |-- RangeNotSatisfiable         416 of a file, behind its end
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
    |-- DatabaseUnavailable         503 with Retry-After
    |-- DeadlineExceeded            504
    |-- GenerationFailed            500
    |-- StorageFull                 507
    `-- ClientDisconnected          499 nobody is there to read it

Messages reach the client: they name the field and the remedy, and never contain the text
of a foreign exception. `retryable` false sends `x-should-retry: false`, because OpenAI's
clients repeat every 408, 409, 429 and 5xx unless told not to.
"""

from __future__ import annotations

from server.errors.access import (
    HostRefused,
    InvalidKey,
    MissingKey,
    OriginRefused,
    ScopeMissing,
)
from server.errors.bad_input import (
    ArchiveRefused,
    ArchiveTooLarge,
    BodyTooLarge,
    ContextLengthExceeded,
    IdempotencyConflict,
    ImageDimensions,
    ImageMissing,
    ImageTooLarge,
    ImageUndecodable,
    InvalidBody,
    InvalidPrompt,
    InvalidRequest,
    InvalidSetting,
    TooManyImages,
    UnsupportedFile,
    UnsupportedImage,
    UnsupportedMediaType,
    UnusableDataSet,
)
from server.errors.base import (
    ServerError,
)
from server.errors.resources import (
    CanaryFailed,
    CheckpointConflict,
    CheckpointDamaged,
    CheckpointNotFound,
    DataFileInUse,
    DataFileNotFound,
    GateFailed,
    JobNotFound,
    JobStateConflict,
    MethodNotAllowed,
    ModelNotFound,
    NotFound,
    RangeNotSatisfiable,
)
from server.errors.service import (
    ClientDisconnected,
    DatabaseUnavailable,
    DeadlineExceeded,
    Draining,
    GenerationFailed,
    HttpError,
    NotReady,
    QueueFull,
    StorageFull,
)

__all__ = [
    "ArchiveRefused",
    "ArchiveTooLarge",
    "BodyTooLarge",
    "CanaryFailed",
    "CheckpointConflict",
    "CheckpointDamaged",
    "CheckpointNotFound",
    "ClientDisconnected",
    "ContextLengthExceeded",
    "DataFileInUse",
    "DataFileNotFound",
    "DatabaseUnavailable",
    "DeadlineExceeded",
    "Draining",
    "GateFailed",
    "GenerationFailed",
    "HostRefused",
    "HttpError",
    "IdempotencyConflict",
    "ImageDimensions",
    "ImageMissing",
    "ImageTooLarge",
    "ImageUndecodable",
    "InvalidBody",
    "InvalidKey",
    "InvalidPrompt",
    "InvalidRequest",
    "InvalidSetting",
    "JobNotFound",
    "JobStateConflict",
    "MethodNotAllowed",
    "MissingKey",
    "ModelNotFound",
    "NotFound",
    "NotReady",
    "OriginRefused",
    "QueueFull",
    "RangeNotSatisfiable",
    "ScopeMissing",
    "ServerError",
    "StorageFull",
    "TooManyImages",
    "UnsupportedFile",
    "UnsupportedImage",
    "UnsupportedMediaType",
    "UnusableDataSet",
]
