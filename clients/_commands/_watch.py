"""Watches a job: a live bar on a terminal, plain lines elsewhere; server restarts are survived."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from clients._client import Client
from clients._commands._common import printable
from clients._exceptions import ConnectionFailed, NotReady
from clients._job_calls import awaits_approval, is_finished
from server.schemas.jobs import Job, JobEvent

POLL_SECONDS = 1.0
PATIENCE = 120.0
LINE_SECONDS = 10.0
"""Between two plain lines about the progress."""

_PAGE = 1000
_STYLES = {"info": "", "warn": "yellow", "error": "bold red"}
_ROUTINE = ("step", "shard")
"""Keys of events that the progress tells better."""


class Display(Protocol):
    """Shows how a job goes on."""

    def event(self, event: JobEvent) -> None:
        """Something happened."""

    def state(self, job: Job) -> None:
        """The job as it is now."""

    def __enter__(self) -> Display:
        """Begins to show."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends it."""


def watch(
    client: Client,
    job_id: str,
    display: Display,
    *,
    poll: float = POLL_SECONDS,
    patience: float = PATIENCE,
) -> Job:
    """Shows a job until it has finished, or stands still until somebody approves it.

    Args:
        client: Asks.
        job_id: The job.
        display: Shows.
        poll: Seconds between two looks.
        patience: Seconds that the server may be away.

    Returns:
        The job as it is then.

    Raises:
        DispError: If the server refuses, or does not come back.
    """
    last: str | None = None
    answered = time.monotonic()
    with display:
        while True:
            try:
                # The job first: one that has ended by then has no further events.
                job = client.jobs.get(job_id)
                for event in _events_after(client, job_id, last):
                    display.event(event)
                    last = event.id
            except (ConnectionFailed, NotReady):
                if time.monotonic() - answered > patience:
                    raise
            else:
                answered = time.monotonic()
                display.state(job)
                if is_finished(job) or awaits_approval(job):
                    return job
            time.sleep(poll)


def display_for(console: Console) -> Display:
    """A live bar if the console is a terminal, else lines."""
    return Bars(console) if console.is_terminal else Lines(console)


class Lines:
    """One line for everything that happens, and now and then one about the progress."""

    def __init__(self, console: Console, *, every: float = LINE_SECONDS) -> None:
        self._console = console
        self._every = every
        self._last = ""
        self._told = -every

    def __enter__(self) -> Lines:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def event(self, event: JobEvent) -> None:
        """Prints it."""
        if is_routine(event):
            return
        moment = datetime.fromtimestamp(event.created_at).strftime("%H:%M:%S")
        self._print(f"{moment} {event.message}", _STYLES[event.level])

    def state(self, job: Job) -> None:
        """Prints the progress, if it is new and the last line is old enough."""
        text = progress_text(job)
        now = time.monotonic()
        if text and text != self._last and now - self._told >= self._every:
            self._last, self._told = text, now
            self._print(f"{job.stage}: {text}", "dim")

    def _print(self, text: str, style: str) -> None:
        self._console.print(Text(printable(text), style), soft_wrap=True)


class Bars:
    """A bar that moves below what has happened."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[told]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._lines = Lines(self._progress.console)
        self._task: TaskID | None = None

    def __enter__(self) -> Bars:
        self._progress.start()
        self._task = self._progress.add_task("waiting", total=None, told="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def event(self, event: JobEvent) -> None:
        """Prints it above the bar."""
        self._lines.event(event)

    def state(self, job: Job) -> None:
        """Moves the bar."""
        assert self._task is not None
        done, total = amounts(job)
        if job.status == "succeeded":
            done = total = 1
        name = job.status if is_finished(job) or job.status == "paused" else job.stage
        self._progress.update(
            self._task,
            description=printable(name or job.status),
            completed=done,
            total=total,
            told=progress_text(job),
        )


def is_routine(event: JobEvent) -> bool:
    """Whether an event tells no more than the progress does."""
    return event.type == "metrics" and any(name in event.data for name in _ROUTINE)


def amounts(job: Job) -> tuple[int, int | None]:
    """How much of the stage in progress is done, and of how much; None where that is unknown."""
    progress = job.progress
    if job.stage == "tune" and progress.steps_total:
        return progress.steps_done or 0, progress.steps_total
    if job.stage == "relabel" and progress.rows_total:
        return progress.rows_done, progress.rows_total
    return 0, None


def progress_text(job: Job) -> str:
    """How much is done, how fast, and when the stage ends at this pace; empty if unknown."""
    done, total = amounts(job)
    if total is None:
        return ""
    if job.stage == "tune":
        parts = [f"{done} of {total} steps"]
    else:
        parts = [f"{done} of {total} rows"]
        if job.progress.rows_per_second:
            parts.append(f"{job.progress.rows_per_second:.2f} rows/s")
    if done < total and not is_finished(job):
        stage, whole = job.progress.estimated_finish, job.estimated_finish
        parts += [f"until about {_clock(stage)}"] if stage is not None else []
        parts += [f"whole job until about {_clock(whole)}"] if whole is not None else []
    return ", ".join(parts)


def _clock(seconds: int) -> str:
    return datetime.fromtimestamp(seconds).strftime("%H:%M:%S")


def _events_after(client: Client, job_id: str, last: str | None) -> Iterator[JobEvent]:
    """Every event behind one, in order, that has happened by now."""
    while True:
        page = client.jobs.events(job_id, after=last, limit=_PAGE, order="asc")
        yield from page.data
        if not page.has_more:
            return
        last = page.data[-1].id
