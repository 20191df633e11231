"""What goes through the engine."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field

from purifier.answer import Answer
from purifier.defense.config import MaskingConfig
from purifier.denoise.config import GenerationConfig
from purifier.denoise.state import stop_ids
from purifier.mdlm.base import Inputs, Mdlm, Message
from purifier.mdlm.variant import drop_weights
from server.errors import DeadlineExceeded, NotReady


@dataclass(frozen=True)
class Serving:
    """A loaded model and its names.

    Attributes:
        mdlm: The model; its weights are used by the engine thread alone.
        checkpoint: Immutable id, `name@sha256:` and 12 hex digits.
        created: Unix seconds of its loading.
        parent: Id of the checkpoint it was made from.
        tokenizing: Held while its tokenizer encodes, which other models may share.
    """

    mdlm: Mdlm
    checkpoint: str
    created: int
    parent: str | None = None
    tokenizing: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _released: threading.Event = field(default_factory=threading.Event, repr=False)

    @property
    def name(self) -> str:
        """The checkpoint's name without its hash."""
        return self.checkpoint.partition("@")[0]

    @property
    def released(self) -> bool:
        """Whether its weights are gone; it can still prepare requests."""
        return self._released.is_set()

    def release(self) -> None:
        """Gives the memory of the weights back; for the engine thread alone."""
        self._released.set()
        drop_weights(self.mdlm)

    def prepare(self, messages: Sequence[Message]) -> Inputs:
        """`mdlm.prepare`, one at a time: tokenizers keep state while they encode."""
        with self.tokenizing:
            return self.mdlm.prepare(messages)

    def check_stops(self, generation: GenerationConfig) -> None:
        """Checks that the stop sequences can end a response of this model.

        Raises:
            InvalidSetting: If one cannot.
        """
        with self.tokenizing:
            stop_ids(self.mdlm, generation)


@dataclass(frozen=True)
class Job:
    """A request as the engine takes it: valid, and nothing left to do on the host.

    Attributes:
        inputs: Ids and pixels.
        generation: Denoising settings.
        masking: The defence; None answers undefended.
        request_id: For the log.
        content: Digest of all that decides what the defence does with it on a given model;
            None does not share the defence's work with others.
        again: Makes the job anew for another model, should this one's weights be gone when its
            turn comes.
    """

    inputs: Inputs
    generation: GenerationConfig
    masking: MaskingConfig | None
    request_id: str = "-"
    content: bytes | None = None
    again: Callable[[Serving], Job] | None = field(default=None, repr=False)

    @property
    def positions(self) -> int:
        """Sequence positions it takes of a denoising step.

        Guidance takes them twice. So does the cache `dllm`: it stores four tensors a position
        where the others store keys and values.
        """
        length = self.inputs.length + self.generation.gen_length
        if self.generation.guidance_scale > 0:
            length *= 2
        return length * 2 if self.generation.cache == "dllm" else length


Progress = Callable[[str], None]
"""Hears of text that is certain; on the engine's thread, so it must not wait."""


@dataclass(eq=False)
class Ticket:
    """A job in the engine.

    Attributes:
        job: What is asked.
        serving: The checkpoint that answers, pinned at admission; another one only if its
            weights have left the memory before the answer was begun.
        future: Ends in the answer or in the error.
        submitted: Monotonic seconds of its admission.
        started: Monotonic seconds at which the engine took it up; None before.
        deadline: Monotonic seconds after which it ends in an error, wherever it is.
        cancelled: Set once nobody waits for it any more.
        progress: Hears "" when the answer is begun, defended and bound to its checkpoint for
            good, then the text of every finished block. What it heard is the beginning of the
            answer's text.
    """

    job: Job
    serving: Serving
    future: Future[Answer] = field(default_factory=Future)
    submitted: float = field(default_factory=time.monotonic)
    started: float | None = None
    deadline: float = math.inf
    cancelled: threading.Event = field(default_factory=threading.Event)
    progress: Progress | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        # A running future cannot be cancelled from outside: only the engine ends it.
        self.future.set_running_or_notify_cancel()

    def succeed(self, answer: Answer) -> None:
        """Ends in an answer, unless it has ended already."""
        with suppress(InvalidStateError):
            self.future.set_result(answer)

    def fail(self, error: Exception) -> None:
        """Ends in an error, unless it has ended already."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)

    def move(self, serving: Serving) -> None:
        """Binds a job that has not been begun to another model.

        Raises:
            ServerError: If it cannot be made for that one.
        """
        if self.job.again is None:
            raise NotReady(retry_after=1)
        self.job, self.serving = self.job.again(serving), serving

    @property
    def seconds_left(self) -> float:
        """Seconds to its deadline; negative behind it."""
        return self.deadline - time.monotonic()

    @property
    def overdue(self) -> DeadlineExceeded:
        """The error that it ends in behind its deadline."""
        if self.started is not None:
            return DeadlineExceeded()
        return DeadlineExceeded(
            "The request has waited for longer than the server allows. Try later."
        )

    @property
    def queue_seconds(self) -> float:
        """Seconds it waited."""
        return 0.0 if self.started is None else self.started - self.submitted
