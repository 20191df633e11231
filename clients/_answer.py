"""An answer as a program wants it."""

from __future__ import annotations

from dataclasses import dataclass

from server.schemas import ChatResponse, DefenseReport, SaliencyMap


@dataclass(frozen=True)
class Answer:
    """One answer and the evidence of how it came about.

    Attributes:
        response: The server's whole answer.
        request_id: Id under which the server has logged the request.
    """

    response: ChatResponse
    request_id: str | None = None

    @property
    def text(self) -> str:
        return self.response.choices[0].message.content

    @property
    def refusal(self) -> str | None:
        """Why there is no answer; None if there is one."""
        return self.response.choices[0].message.refusal

    @property
    def defense(self) -> DefenseReport:
        """What the defence did to this answer."""
        return self.response.defense

    @property
    def checkpoint(self) -> str:
        """The checkpoint that gave the answer."""
        return self.response.defense.checkpoint

    @property
    def saliency(self) -> list[SaliencyMap]:
        """Saliency and mask of every image; empty unless asked for and applied."""
        return self.response.defense.saliency or []
