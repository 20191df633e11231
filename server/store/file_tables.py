"""The table of files: uploads, and what jobs have made."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import BigInteger, Column, Float, Integer, String, Table

from server.store.database import metadata

UPLOAD = "fine-tune"
"""Purpose of an upload."""
RESULT = "fine-tune-results"
"""Purpose of what a job has made."""

files = Table(
    "files",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("created_at", Float, nullable=False),
    Column("filename", String(255), nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("key_id", String(128)),
    Column("content", String(64), nullable=False, index=True),
)


@dataclass(frozen=True)
class FileRecord:
    """A file.

    Attributes:
        id: `file-` and 24 hex digits.
        number: Grows with creation; the order of lists.
        created_at: Unix seconds.
        filename: What its sender called it; of a result its path in the purified data set.
        purpose: `fine-tune` for an upload, `fine-tune-results` for what a job has made.
        bytes: Its size; of an archive that of the archive.
        sha256: Hex digest of these bytes.
        key_id: Who sent it, or asked for the job.
        content: Of an upload the label file or unpacked folder in its own folder; of a result
            the folder in the shared store.
    """

    id: str
    number: int
    created_at: float
    filename: str
    purpose: str
    bytes: int
    sha256: str
    key_id: str | None
    content: str


def purified_folder(job_id: str) -> str:
    """Where the shared store has a job's purified data set and its side table."""
    return f"jobs/{job_id}/merged"
