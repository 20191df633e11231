"""A certified answer: the question is answered once for every mask, each in the engine's batch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import anyio.to_thread

from purifier.answer import Answer
from purifier.certified.answers import Mask, certifying, masked
from purifier.certified.config import CertifyConfig
from server.certifying import certified_response
from server.config import ServerConfig
from server.engine import Engine, Job, Serving, Ticket
from server.errors import DeadlineExceeded
from server.metrics import Trace
from server.routes.admission import admitted
from server.routes.waiting import Gone, awaited, while_there
from server.schemas import ChatRequest, ChatResponse

Prepare = Callable[[Serving], Job]


async def certified(
    body: ChatRequest,
    engine: Engine,
    prepare: Prepare,
    certify: CertifyConfig,
    config: ServerConfig,
    preparing: anyio.CapacityLimiter,
    gone: Gone,
    trace: Trace,
) -> ChatResponse:
    """Asks about the masked images, a batch at a time, until they agree or cannot.

    Args:
        body: What was asked.
        engine: Where answers come from.
        prepare: Makes the question, nothing masked and nothing defended, for a checkpoint.
        certify: The settings of the certificate.
        config: Of the server.
        preparing: How many requests are prepared at once.
        gone: Ends when the client goes away.
        trace: Where the checkpoint is noted.

    Raises:
        ServerError: If an answer fails, there is no place for it, or the time is over.
        ClientDisconnected: If the client goes away.
    """
    start = time.monotonic()
    together = max(1, min(config.max_batch, config.queue_size))
    asking = _Asking(engine, prepare, preparing, gone, together, start + config.deadline)
    with while_there(gone):
        question = await anyio.to_thread.run_sync(
            asking.question, engine.serving(), limiter=preparing
        )
    steps = certifying(question.inputs, certify)
    choices = next(steps)
    while True:
        answers = await asking.answers(choices)
        trace.checkpoint = asking.given[-1][0].serving.checkpoint
        try:
            choices = steps.send(answers)
        except StopIteration as end:
            spent = time.monotonic() - start
            return certified_response(body, certify, end.value, asking.given, spent)


@dataclass
class _Asking:
    """The masked images of one request on their way through the engine.

    Attributes:
        together: How many are in the engine at the same time.
        deadline: Monotonic seconds at which the request's time is over.
        given: All answers so far.
        known: The question as it was prepared last, and for which checkpoint.
    """

    engine: Engine
    prepare: Prepare
    preparing: anyio.CapacityLimiter
    gone: Gone
    together: int
    deadline: float
    given: list[tuple[Ticket, Answer]] = field(default_factory=list)
    known: tuple[Serving, Job] | None = None

    def question(self, serving: Serving) -> Job:
        """The question with nothing masked, prepared once for a checkpoint."""
        known = self.known
        if known is None or known[0] is not serving:
            known = self.known = serving, self.prepare(serving)
        return known[1]

    async def answers(self, choices: Sequence[Sequence[Mask]]) -> list[Answer]:
        """The answers under some choices of masks, in their order."""
        found: list[Answer] = []
        for at in range(0, len(choices), self.together):
            if time.monotonic() > self.deadline:
                raise DeadlineExceeded
            found += await self._together(choices[at : at + self.together])
        return found

    async def _together(self, choices: Sequence[Sequence[Mask]]) -> list[Answer]:
        tickets: list[Ticket] = []
        try:
            for masks in choices:
                tickets.append(await self._ticket(masks))
            answers = [
                await awaited(asyncio.wrap_future(ticket.future), ticket, self.gone)
                for ticket in tickets
            ]
        finally:
            for ticket in tickets:
                if not ticket.future.done():
                    self.engine.cancel(ticket)
        self.given += zip(tickets, answers, strict=True)
        return answers

    async def _ticket(self, masks: Sequence[Mask]) -> Ticket:
        def prepare(serving: Serving) -> Job:
            question = self.question(serving)
            inputs = masked(serving.mdlm, question.inputs, masks)
            return replace(question, inputs=inputs, again=prepare)

        return await admitted(self.engine, prepare, None, self.preparing, self.gone)
