"""The second act of `disp demo`: the model is healed, and the backdoor can be brought back.

A job purifies the shipped poisoned set with the poisoned model itself, fine-tunes on the result
and puts the new checkpoint into service. Then the triggered image is asked about without any
masking, before and after a rollback.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from clients._client import Client
from clients._commands._common import printable, write_file
from clients._commands._watch import POLL_SECONDS, Display, watch
from clients._exceptions import DispError
from server.schemas.job_settings import DispSettings
from server.schemas.jobs import Job

SETTINGS: DispSettings = {
    "policy": "flag_then_relabel",
    "detectors": [],
    "finetune": {"epochs": 2},
    "evaluation": {"rows": 24, "test_rows": 60},
    "gate": {"max_asr": 0.05, "min_utility": 0.95},
    "activate": "auto",
}
"""Of the demo's job: the product's masking without a search of the training set, half the epochs
and a small evaluation, so that two CPU cores are done in minutes."""


class JobFailed(DispError):
    """The job did not end with a checkpoint that serves."""


@dataclass(frozen=True)
class Work:
    """What the job works on and how.

    Attributes:
        training_file: Id of the poisoned data.
        validation_file: Id of the test data, or None.
        settings: The object `method.disp`.
        poll: Seconds between two looks at its progress.
    """

    training_file: str = "demo"
    validation_file: str | None = "demo"
    settings: DispSettings | None = None
    poll: float = POLL_SECONDS


@dataclass(frozen=True)
class Reply:
    """An answer without any masking, and which checkpoint gave it."""

    answer: str
    checkpoint: str


@dataclass(frozen=True)
class SecondAct:
    """What happened.

    Attributes:
        job: The job at its end.
        seconds: How long it took.
        poisoned: The answer to the triggered image before the job.
        purified: The answer of the new checkpoint.
        rolled_back: The answer after the rollback.
        report: The job's report.
    """

    job: Job
    seconds: float
    poisoned: Reply
    purified: Reply
    rolled_back: Reply
    report: Path


def perform(
    client: Client, image: Path, question: str, report: Path, display: Display, work: Work
) -> SecondAct:
    """Heals the model, asks, rolls back, asks again.

    Raises:
        JobFailed: If no new checkpoint serves in the end.
        DispError: If the server refuses.
    """

    def ask() -> Reply:
        answer = client.answer(image, question, defense=False)
        return Reply(answer.text, answer.checkpoint)

    poisoned = ask()
    started = time.monotonic()
    settings = SETTINGS if work.settings is None else work.settings
    job = client.jobs.create(
        work.training_file, validation_file=work.validation_file, settings=settings
    )
    job = watch(client, job.id, display, poll=work.poll)
    seconds = time.monotonic() - started
    if job.status != "succeeded":
        reason = job.status if job.error is None else job.error.message
        raise JobFailed(f"The job did not succeed: {reason}")
    write_file(report, client.jobs.report_page(job.id))
    purified = ask()
    if purified.checkpoint != job.fine_tuned_model:
        raise JobFailed(why_not_serving(client, job, report))
    client.checkpoints.rollback()
    return SecondAct(job, seconds, poisoned, purified, ask(), report)


def as_object(act: SecondAct) -> dict[str, Any]:
    """The second act for a program."""
    return {
        "purified": vars(act.purified),
        "rolled_back": vars(act.rolled_back),
        "job": act.job.model_dump(mode="json") | {"seconds": round(act.seconds, 1)},
        "report": str(act.report.resolve()),
    }


def show(console: Console, act: SecondAct) -> None:
    """The second act for a reader."""
    table = Table(
        Column("checkpoint", no_wrap=True),
        "answer",
        title="The image with the trigger, without any masking",
        show_lines=True,
    )
    clean = act.purified.answer
    rows = (
        ("poisoned", act.poisoned),
        (f"purified in {act.seconds:.0f} s", act.purified),
        ("rolled back", act.rolled_back),
    )
    for name, reply in rows:
        style = "bold green" if reply is act.purified else "bold red"
        if reply.answer == clean and reply is not act.purified:
            style = ""
        label = Text(f"{name}\n{printable(reply.checkpoint)}")
        table.add_row(label, Text(printable(reply.answer), style))
    console.print(table)
    console.print(f"The job's report: {act.report.resolve()}", markup=False, soft_wrap=True)


def why_not_serving(client: Client, job: Job, report: Path) -> str:
    """What the gate said about a checkpoint that was not put into service."""
    made = client.jobs.checkpoints(job.id).data
    reasons = " ".join(made[0].gate_reasons) if made else ""
    return f"The new checkpoint does not serve. {reasons} The report: {report.resolve()}"
