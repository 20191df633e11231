"""A streamed answer, chunk by chunk."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from server.answering import completion_id
from server.engine import Ticket
from server.errors import GenerationFailed
from server.schemas import ChatRequest, ChatResponse
from server.schemas.chat_chunks import ChatChunk, ChunkChoice, Delta

DONE = "[DONE]"


class Chunks:
    """Writes the chunks of one answer, as JSON.

    Their contents make up exactly the text of the answer that is not streamed.

    Args:
        request: What was asked.
        ticket: The answer on its way, bound to its checkpoint.
        sends_text: Hears of every chunk with text before it is sent.
    """

    def __init__(
        self, request: ChatRequest, ticket: Ticket, sends_text: Callable[[], None]
    ) -> None:
        self._request = request
        self._sends_text = sends_text
        self._common: dict[str, Any] = {
            "id": completion_id(ticket),
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": request.model,
            "system_fingerprint": ticket.serving.checkpoint,
        }
        if request.include_usage:
            self._common["usage"] = None
        self._sent = ""

    def opening(self) -> str:
        """The first chunk: whose turn it is."""
        return self._choice(Delta(role="assistant", content=""))

    def piece(self, text: str) -> str:
        """A chunk of text."""
        self._sent += text
        self._sends_text()
        return self._choice(Delta(content=text))

    def closing(self, response: ChatResponse) -> Iterator[str]:
        """The rest of the text, the end of the answer, and what is told about it.

        Raises:
            GenerationFailed: If the answer does not begin with what was sent.
        """
        choice = response.choices[0]
        text = choice.message.content
        if not text.startswith(self._sent):
            raise GenerationFailed
        if rest := text[len(self._sent) :]:
            yield self.piece(rest)
        yield self._choice(
            Delta(),
            finish_reason=choice.finish_reason,
            # Every field counts as set: what is null is told as in an answer that is not streamed.
            defense=response.defense.model_copy(update=dict(response.defense)),
            warnings=response.warnings,
        )
        if self._request.include_usage:
            yield self._write(choices=[], usage=response.usage)
        yield DONE

    def _choice(self, delta: Delta, finish_reason: Any = None, **told: Any) -> str:
        choice = ChunkChoice(index=0, delta=delta, finish_reason=finish_reason)
        return self._write(choices=[choice], **told)

    def _write(self, **fields: Any) -> str:
        chunk = ChatChunk(**{**self._common, **fields})
        return chunk.model_dump_json(exclude_unset=True)
