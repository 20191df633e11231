"""Wire types of `/v1/files` and `/v1/datasets`, in OpenAI's shape."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

Purpose = Literal["fine-tune"]
"""What an upload may be for."""


class FileObject(BaseModel):
    """An uploaded data set, or with the purpose `fine-tune-results` what a job has made.

    `sha256` is of the bytes that were sent or made.
    """

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: Literal["fine-tune", "fine-tune-results"]
    status: Literal["processed"] = "processed"
    sha256: str


class FileList(BaseModel):
    """A page of uploads; `has_more` tells whether `after` the last one there are more."""

    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(BaseModel):
    """Says that an upload is gone."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class DataSetCard(BaseModel):
    """A data set of the server's machine, or the demo's; a job names it by `id`."""

    id: str
    object: Literal["dataset"] = "dataset"


class DataSetList(BaseModel):
    """Every data set besides the uploads."""

    object: Literal["list"] = "list"
    data: list[DataSetCard]
