"""The one shape of every error answer, and every code it can carry."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

ErrorCode = Literal[
    "invalid_body",
    "invalid_request",
    "invalid_setting",
    "invalid_prompt",
    "image_missing",
    "context_length_exceeded",
    "image_undecodable",
    "image_too_large",
    "image_dimensions",
    "too_many_images",
    "unsupported_image",
    "missing_key",
    "invalid_key",
    "scope_missing",
    "host_refused",
    "origin_refused",
    "not_found",
    "model_not_found",
    "job_not_found",
    "file_not_found",
    "file_in_use",
    "archive_refused",
    "archive_too_large",
    "unusable_data_set",
    "unsupported_file",
    "storage_full",
    "job_state_conflict",
    "checkpoint_not_found",
    "checkpoint_conflict",
    "checkpoint_damaged",
    "gate_failed",
    "canary_failed",
    "idempotency_conflict",
    "method_not_allowed",
    "range_not_satisfiable",
    "body_too_large",
    "unsupported_media_type",
    "queue_full",
    "not_ready",
    "database_unavailable",
    "draining",
    "deadline_exceeded",
    "generation_failed",
    "client_disconnected",
    "http_error",
    "internal_error",
]

ErrorType = Literal[
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "not_found_error",
    "rate_limit_error",
    "server_error",
]


class ErrorBody(BaseModel):
    """What is wrong: `param` names the field at fault, `code` is for programs."""

    message: str
    type: ErrorType
    param: str | None = None
    code: ErrorCode


class ErrorEnvelope(BaseModel):
    """The body of every answer with a status of 400 or more."""

    error: ErrorBody
