"""What is wrong with a request."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from server.errors.base import ServerError

if TYPE_CHECKING:
    from server.schemas.errors import ErrorCode, ErrorType


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
    """An image is no data URL, or of a format, an animation or of colours that are not read."""

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


class IdempotencyConflict(InvalidRequest):
    """An idempotency key was used before, for another request."""

    code = "idempotency_conflict"
    default = "This Idempotency-Key was used for another request; send a new one."
