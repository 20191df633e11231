"""The running batch: responses on their way, moved on together one denoising step at a time."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from purifier.answer import Begun, finish
from purifier.denoise import denoising_step
from purifier.denoise.cache import ResponseCache, ResponseFeatures
from purifier.denoise.noise import Noise
from purifier.numeric import seconds
from server.engine.block_text import BlockText
from server.engine.counters import Counting
from server.engine.frames import free_frames
from server.engine.job import Serving, Ticket
from server.engine.outcomes import Outcomes
from server.engine.pace import Load, Pace, Room

_log = logging.getLogger("disp.engine")

_AGAIN_SECONDS = 60.0
"""Least time between two log entries about steps that are made again."""


@dataclass(eq=False)
class Running:
    """A request of the running batch.

    Attributes:
        ticket: The request.
        begun: Its response.
        text: What can be told of the response before it is whole; None if nobody listens.
    """

    ticket: Ticket
    begun: Begun
    text: BlockText | None


class Batch:
    """Requests that are denoised together; they join and leave between steps.

    Requests of one checkpoint share a pass of its model; those of another one, and each with the
    cache `dllm`, make a pass of their own in the same step. What goes wrong with one of them
    ends that one alone. For the engine's thread alone.

    Args:
        room: How many run together.
        check: Raises if a request has to end.
        outcomes: Ends them.
        counting: Where steps are counted.
        pace: Where steps are timed.
    """

    def __init__(
        self,
        room: Room,
        check: Callable[[Ticket], None],
        outcomes: Outcomes,
        counting: Counting,
        pace: Pace,
    ) -> None:
        self._room = room
        self._check = check
        self._outcomes = outcomes
        self._counting = counting
        self._pace = pace
        self._running: list[Running] = []
        self._next_complaint = 0.0
        self.loads: tuple[Load, ...] = ()
        """What runs and how long yet; may be read by other threads."""

    def __len__(self) -> int:
        return len(self._running)

    def fits(self, ticket: Ticket) -> bool:
        """Whether a request has room beside those that run."""
        running = [item.ticket.job.positions for item in self._running]
        return self._room.takes(ticket.job.positions, running)

    def join(self, ticket: Ticket, begun: Begun) -> None:
        """Takes a request in; it is moved on from the next step."""
        self._pace.joins(alone=not self._running)
        text = None
        if ticket.progress is not None:
            text = BlockText(ticket.serving.mdlm, begun.state)
            ticket.progress("")
        self._running.append(Running(ticket, begun, text))
        self._publish()

    def step(self) -> None:
        """Moves every request on by one step; those that are done or have to end leave.

        Raises nothing: an error ends the request whose it is.
        """
        for item in list(self._running):
            try:
                self._check(item.ticket)
            except Exception as error:
                self._leave(item, error)
        groups = self._groups()
        for group in groups:
            self._step_group(group[0].ticket.serving, group)
        if groups:
            self._pace.steps()
        for item in list(self._running):
            self._tell(item)
        self._publish()

    def _groups(self) -> list[list[Running]]:
        """Who shares a pass: all of one checkpoint, except those that store features.

        Features are written in place, so a step of them cannot be made again; they gain nothing
        from company anyway.
        """
        groups: dict[Serving | Running, list[Running]] = {}
        for item in self._running:
            alone = isinstance(item.begun.state.cache, ResponseFeatures)
            groups.setdefault(item if alone else item.ticket.serving, []).append(item)
        return list(groups.values())

    def _step_group(self, serving: Serving, group: Sequence[Running]) -> None:
        """Steps requests of one checkpoint together; if that fails, one by one.

        The second try begins when the error of the first is gone, and with it the tensors of the
        pass that failed: short of memory, it would fail for want of theirs.
        """
        if not self._stepped(serving, group):
            for item in group:
                self._step_group(serving, [item])

    def _stepped(self, serving: Serving, group: Sequence[Running]) -> bool:
        """Steps requests together; False if each of them has to be stepped alone."""
        before: list[_Kept] = []
        try:
            before += [_Kept.of(item) for item in group]
            self._move(serving, group)
        except Exception as error:
            if len(group) == 1:
                self._leave(group[0], error)
                return True
            self._complain(error, len(group))
            free_frames(error)
            for kept in before:
                kept.restore()
            return False
        return True

    def _complain(self, error: Exception, size: int) -> None:
        """Logs a step that is made again; not every one, for the next ones may fail alike."""
        if time.monotonic() >= self._next_complaint:
            self._next_complaint = time.monotonic() + _AGAIN_SECONDS
            _log.warning(
                "A step of %d requests failed and is made again one by one.", size, exc_info=error
            )

    def _move(self, serving: Serving, group: Sequence[Running]) -> None:
        start = seconds(serving.mdlm.device)
        denoising_step(serving.mdlm, [item.begun.state for item in group])
        share = (seconds(serving.mdlm.device) - start) / len(group)
        for item in group:
            item.begun.denoise_seconds += share
        self._counting.add_step(len(group))

    def _tell(self, item: Running) -> None:
        """Says what is new: the answer, or the text of a finished block."""
        state = item.begun.state
        try:
            if not state.done:
                piece = "" if item.text is None else item.text.advance()
                if piece and item.ticket.progress is not None:
                    item.ticket.progress(piece)
                return
            answer = finish(item.ticket.serving.mdlm, item.begun)
            self._outcomes.answered(item.ticket, answer)
        except Exception as error:
            self._leave(item, error)
            return
        self._running.remove(item)
        self._pace.ends(state.steps_run, state.config.n_steps)

    def _leave(self, item: Running, error: Exception) -> None:
        self._running.remove(item)
        self._outcomes.failed(item.ticket, error)

    def _publish(self) -> None:
        self.loads = tuple(
            Load(
                item.ticket.job.positions,
                self._pace.steps_left(item.begun.state.steps_run, item.begun.state.config.n_steps),
            )
            for item in self._running
        )


@dataclass(frozen=True)
class _Kept:
    """What a denoising step that fails may have used up: random draws, and the cache's age."""

    item: Running
    noise: Noise
    cache: ResponseCache | ResponseFeatures | None

    @classmethod
    def of(cls, item: Running) -> _Kept:
        state = item.begun.state
        draws = state.config.temperature > 0 or state.config.remasking == "random"
        noise = copy.deepcopy(state.noise) if draws else state.noise
        return cls(item, noise, copy.copy(state.cache))

    def restore(self) -> None:
        """Lets the step be made again with the same result."""
        state = self.item.begun.state
        state.noise, state.cache = self.noise, self.cache
