"""Wire types of a streamed answer, in OpenAI's shape."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from server.schemas.chat import FinishReason, Usage
from server.schemas.defense import DefenseReport


class Delta(BaseModel):
    """What a chunk adds to the answer's turn."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(BaseModel):
    """The one answer of a chunk."""

    index: int = 0
    delta: Delta
    finish_reason: FinishReason | None = None
    logprobs: None = None


class ChatChunk(BaseModel):
    """A piece of an answer.

    The first chunk has the role, those after it the text of finished blocks, and the last one
    `finish_reason`, `defense` and `warnings`. If it was asked for, one more has `usage` and no
    choice.
    """

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    defense: DefenseReport | None = None
    warnings: list[str] | None = None
