"""The blocking client."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Unpack

import httpx

from clients import _calls
from clients._answer import Answer
from clients._audit import Audit
from clients._calls import Defense, Generation
from clients._checkpoints import Checkpoints
from clients._files import Files
from clients._images import Images
from clients._jobs import Jobs
from clients._settings import DEFAULT_TIMEOUT, resolve
from clients._transport import Transport
from server.schemas import ChatRequest, ChatResponse, Effort, EngineStatus, Health, ModelCard
from server.schemas.inspection import Inspection


class Client:
    """Asks a DiSP server.

        with Client("http://127.0.0.1:8000", api_key="sk-...") as client:
            print(client.answer("scene.jpg", "Describe the image.").text)

    Attributes:
        files: Data sets on the server.
        jobs: Purification jobs.
        checkpoints: What can serve, and what does.
        audit: Who changed what.

    Safe to share between threads.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float | httpx.Timeout = DEFAULT_TIMEOUT,
        max_retries: int = 2,
        max_wait: float = 60.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Opens no connection yet.

        Args:
            base_url: The server; `DISP_BASE_URL`, or http://127.0.0.1:8000, by default.
            api_key: The key; `DISP_API_KEY` by default.
            timeout: Seconds, or httpx's finer settings.
            max_retries: Tries after the first one, where the server says 429 or 503 or no
                connection could be opened.
            max_wait: Longest pause in seconds that `Retry-After` may ask for.
            transport: Replaces the network: one method, `handle_request`.

        Raises:
            InvalidInput: If the base URL is not one, or the key cannot be sent.
        """
        settings = resolve(base_url, api_key, max_retries, max_wait)
        self._transport = Transport(settings, timeout, transport)
        self.files = Files(self._transport)
        self.jobs = Jobs(self._transport)
        self.checkpoints = Checkpoints(self._transport)
        self.audit = Audit(self._transport)

    def answer(
        self,
        image: Images,
        question: str,
        *,
        system: str | None = None,
        model: str = "default",
        defense: Defense = None,
        return_saliency: bool = False,
        **generation: Unpack[Generation],
    ) -> Answer:
        """Answers one question about one image, several, or none.

        Args:
            image: Path, data URL, file content or PIL image; a list of them; or None.
            question: The question.
            system: A system turn before it.
            model: A name from `models()`.
            defense: None for the server's setting, True, False (needs a key that may), or
                settings such as `{"ratio": 0.3, "level": "token"}`.
            return_saliency: Whether saliency and mask of every image come with the answer.
            **generation: Denoising settings; see `Generation`.

        Raises:
            InvalidInput: If an image or a setting cannot be sent.
            StatusError: If the server refuses.
            ConnectionFailed: If no answer comes.
        """
        call = _calls.answer(
            image,
            question,
            system=system,
            model=model,
            defense=defense,
            return_saliency=return_saliency,
            **generation,
        )
        return self._transport.run(call)

    def inspect(
        self,
        image: Images,
        question: str,
        *,
        system: str | None = None,
        model: str = "default",
        efforts: Sequence[Effort] | None = None,
        max_tokens: int | None = None,
        overlays: bool = True,
    ) -> Inspection:
        """Says what the detectors find in a question about one image or several.

        Args:
            image: As of `answer`.
            question: The question.
            system: A system turn before it.
            model: A name from `models()`.
            efforts: Levels of effort to look with; `fast` and `balanced` by default.
            max_tokens: Length of the answers; the server's by default.
            overlays: Whether a picture of every image comes with every finding.

        Raises:
            InvalidInput: If an image or a setting cannot be sent.
            StatusError: If the server refuses; the key needs the scope `infer:undefended`.
            ConnectionFailed: If no answer comes.
        """
        call = _calls.inspect(
            image,
            question,
            system=system,
            model=model,
            efforts=efforts,
            max_tokens=max_tokens,
            overlays=overlays,
        )
        return self._transport.run(call)

    def chat(self, request: ChatRequest) -> ChatResponse:
        """Answers a whole dialogue."""
        return self._transport.run(_calls.chat(request))

    def models(self) -> list[ModelCard]:
        """Every model the server answers with."""
        return self._transport.run(_calls.models()).data

    def status(self) -> EngineStatus:
        """Counters of the engine, and what it is doing now."""
        return self._transport.run(_calls.status())

    def health(self) -> Health:
        """Whether the process is up."""
        return self._transport.run(_calls.health())

    def ready(self) -> bool:
        """Whether a model is loaded and answers."""
        return self._transport.run(_calls.ready())

    def close(self) -> None:
        """Closes the connections."""
        self._transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
