"""Requests that are taken up: encoded, scored and masked, so that they can join the batch."""

from __future__ import annotations

from collections.abc import Callable

from purifier.answer import Begun, begin, begin_batch
from purifier.numeric import seconds
from server.engine.counters import Counting
from server.engine.fairness import Alternation
from server.engine.job import Ticket
from server.engine.shared import SharedDefences


class Newcomers:
    """Begins one request after the other; the running batch steps in between.

    Args:
        shared: Where the defences of identical requests are found.
        turns: Whose pass comes next.
        counting: Where it is counted who shared.
    """

    def __init__(self, shared: SharedDefences, turns: Alternation, counting: Counting) -> None:
        self._shared = shared
        self._turns = turns
        self._counting = counting

    def begin(self, ticket: Ticket, check: Callable[[], None]) -> Begun:
        """Begins a request on its checkpoint.

        Its timings are those of its own passes: the clock stands still while others step.

        Args:
            ticket: The request.
            check: Raises if the request has to end; called around every pass.

        Raises:
            PurifierError, ServerError: As `begin_batch`, or from `check`.
        """
        job, serving = ticket.job, ticket.serving
        check()
        known = self._shared.get(serving, job)
        if known is not None:
            self._counting.add("shared")
            return begin(serving.mdlm, known, job.generation)
        device, elsewhere = serving.mdlm.device, 0.0

        def between() -> None:
            nonlocal elsewhere
            check()
            left = seconds(device)
            self._turns.passed()
            elsewhere += seconds(device) - left
            check()

        [begun] = begin_batch(
            serving.mdlm,
            [job.inputs],
            job.generation,
            job.masking,
            check=between,
            clock=lambda: seconds(device) - elsewhere,
        )
        if self._shared.takes(job):
            self._counting.add("not_shared")
            self._shared.put(serving, job, begun.defended)
        return begun
