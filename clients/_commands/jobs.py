"""`disp jobs`: purification jobs, from their creation to their report."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.table import Table

from clients._client import Client
from clients._commands._common import (
    FAILED,
    OK,
    finish,
    moment,
    notes,
    open_client,
    print_json,
    printable,
    texts,
    write_file,
)
from clients._commands._watch import display_for, progress_text, watch
from clients._exceptions import InvalidInput
from clients._job_calls import Action, awaits_approval
from server.schemas.job_settings import Activation, Policy, Preset
from server.schemas.jobs import Job

_ACTIONS: dict[Action, str] = {
    "cancel": "end a job for good",
    "pause": "stop a job; what is finished is kept",
    "resume": "continue a paused or failed job",
    "approve": "let a waiting job put its checkpoint into service",
}
_SHORT = ("preset", "policy", "activate")
"""Settings with an option of their own."""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declares the command and its actions."""
    parser = subparsers.add_parser(
        "jobs", help="purify data and heal the model", description=__doc__
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    _add_create(actions)
    listing = actions.add_parser("ls", help="list jobs, newest first")
    listing.add_argument("--limit", type=int, default=20, help="at most this many (default 20)")
    listing.add_argument("--after", metavar="JOB", help="behind this job")
    finish(listing, run_ls)
    finish(_on_job(actions, "show", "show one job"), run_show)
    watching = _on_job(actions, "watch", "follow a job until it ends")
    finish(watching, run_watch)
    for action, text in _ACTIONS.items():
        steering = _on_job(actions, action, text)
        steering.set_defaults(action=action)
        finish(steering, run_action)
    reporting = _on_job(actions, "report", "save a job's report")
    reporting.add_argument(
        "--output", type=Path, metavar="FILE", help="where the page goes (default JOB.html)"
    )
    finish(reporting, run_report)


def run_create(args: argparse.Namespace) -> int:
    """Creates a job, and watches it if asked to."""
    settings = settings_from(args)
    with open_client(args) as client:
        job = client.jobs.create(
            args.training_file,
            validation_file=args.validation_file,
            model=args.model,
            settings=settings,
            seed=args.seed,
            suffix=args.suffix,
            metadata=dict(_pair(text, "--metadata") for text in args.metadata) or None,
            idempotency_key=args.idempotency_key,
        )
        if args.watch:
            return _watch(client, job.id, args.json)
    if args.json:
        print_json(job.model_dump(mode="json"))
        return OK
    print(job.id)
    notes().print(f"follow it: disp jobs watch {job.id}", style="dim", markup=False)
    return OK


def run_ls(args: argparse.Namespace) -> int:
    """Lists and prints."""
    with open_client(args) as client:
        page = client.jobs.list(after=args.after, limit=args.limit)
    if args.json:
        print_json(page.model_dump(mode="json"))
        return OK
    table = Table("job", "created", "status", "stage", "training file", "checkpoint")
    for job in page.data:
        cells = (job.id, moment(job.created_at), job.status, job.stage, job.training_file)
        table.add_row(*texts((*cells, job.fine_tuned_model)))
    Console().print(table)
    if page.has_more:
        notes().print(f"more: --after {page.data[-1].id}", style="dim", markup=False)
    return OK


def run_show(args: argparse.Namespace) -> int:
    """Shows one job."""
    with open_client(args) as client:
        job = client.jobs.get(args.job)
    if args.json:
        print_json(job.model_dump(mode="json"))
        return OK
    table = Table("what", "value")
    for name, value in _facts(job):
        table.add_row(*texts((name, value)))
    Console().print(table)
    return OK


def run_watch(args: argparse.Namespace) -> int:
    """Follows a job; 0 if it succeeded or waits for approval, else 1."""
    with open_client(args) as client:
        return _watch(client, args.job, args.json)


def run_action(args: argparse.Namespace) -> int:
    """Steers a job."""
    action: Action = args.action
    with open_client(args) as client:
        steer = {
            "cancel": client.jobs.cancel,
            "pause": client.jobs.pause,
            "resume": client.jobs.resume,
            "approve": client.jobs.approve,
        }
        job = steer[action](args.job)
    if args.json:
        print_json(job.model_dump(mode="json"))
    else:
        print(f"{job.id} is {job.status}")
    return OK


def run_report(args: argparse.Namespace) -> int:
    """Saves the page; with `--json` prints the report's facts."""
    target: Path | None = args.output
    if target is None and not args.json:
        target = Path(f"{Path(args.job).name}.html")
    with open_client(args) as client:
        facts = client.jobs.report(args.job) if args.json else {}
        if target is not None:
            write_file(target, client.jobs.report_page(args.job))
    if args.json:
        print_json(facts)
    else:
        print(target)
    return OK


def settings_from(args: argparse.Namespace) -> dict[str, Any]:
    """The settings of `jobs create`: the file's, then `--set`, then the short options.

    Raises:
        InvalidInput: If the file or a `--set` cannot be read.
    """
    settings: dict[str, Any] = {} if args.settings is None else _read_settings(args.settings)
    for text in args.set:
        name, value = _pair(text, "--set")
        _put(settings, name.split("."), _value(value), text)
    short = {name: getattr(args, name) for name in _SHORT}
    return settings | {name: value for name, value in short.items() if value is not None}


def _add_create(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = actions.add_parser("create", help="create a job")
    parser.add_argument(
        "training_file", metavar="DATA", help="id of an upload, dataset:NAME, or demo"
    )
    parser.add_argument("--validation-file", metavar="DATA", help="a test set, likewise")
    parser.add_argument(
        "--model", default="default", help="the compromised checkpoint (default: what serves)"
    )
    parser.add_argument("--seed", type=int, help="of every random choice")
    parser.add_argument("--suffix", metavar="TEXT", help="part of the new checkpoint's name")
    parser.add_argument(
        "--metadata", action="append", default=[], metavar="NAME=TEXT", help="kept with the job"
    )
    parser.add_argument(
        "--idempotency-key", metavar="KEY", help="a second request with it makes no second job"
    )
    parser.add_argument("--watch", action="store_true", help="follow the job until it ends")
    how = parser.add_argument_group("settings", "see docs/jobs.md; each overrides those before it")
    how.add_argument("--settings", type=Path, metavar="FILE", help="JSON, the object method.disp")
    how.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="one setting, such as finetune.epochs=2; VALUE is JSON or a text",
    )
    how.add_argument("--preset", choices=get_args(Preset))
    how.add_argument("--policy", choices=get_args(Policy), help="what is relabelled")
    how.add_argument(
        "--activate", choices=get_args(Activation), help="what follows if the gate is passed"
    )
    finish(parser, run_create)


def _on_job(
    actions: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str
) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=text)
    parser.add_argument("job", metavar="JOB", help="its id")
    return parser


def _watch(client: Client, job_id: str, as_json: bool) -> int:
    console = notes()
    job = watch(client, job_id, display_for(console))
    waits = awaits_approval(job)
    if as_json:
        print_json(job.model_dump(mode="json"))
    elif waits:
        print(f"{job.id} waits for approval: disp jobs approve {job.id}")
    else:
        reason = "" if job.error is None else f": {job.error.message}"
        print(printable(f"{job.id} {job.status}{reason}"))
    return OK if waits or job.status == "succeeded" else FAILED


def _facts(job: Job) -> list[tuple[str, str | None]]:
    """What a reader wants to know about a job, in order."""
    error = None if job.error is None else f"{job.error.message} ({job.error.code})"
    facts = [
        ("job", job.id),
        ("status", "waits for approval" if awaits_approval(job) else job.status),
        ("stage", job.stage),
        ("progress", progress_text(job)),
        ("error", error),
        ("model", job.model),
        ("training file", job.training_file),
        ("validation file", job.validation_file),
        ("new checkpoint", job.fine_tuned_model),
        ("created", moment(job.created_at)),
        ("finished", None if job.finished_at is None else moment(job.finished_at)),
        ("seed", str(job.seed)),
        ("policy", str(job.method.disp.get("policy", ""))),
        *((f"metadata {name}", text) for name, text in job.metadata.items()),
    ]
    return [(name, value) for name, value in facts if value]


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        raise InvalidInput(f"{str(path)!r} cannot be read as JSON.") from None
    if not isinstance(settings, dict):
        raise InvalidInput(f"{str(path)!r} must hold one JSON object, the settings method.disp.")
    return settings


def _pair(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise InvalidInput(f"{option} needs NAME=VALUE, not {text!r}.")
    return name, value


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _put(settings: dict[str, Any], path: Sequence[str], value: Any, text: str) -> None:
    """Sets one value inside nested settings."""
    *outer, last = path
    for name in outer:
        settings = settings.setdefault(name, {})
        if not isinstance(settings, dict):
            raise InvalidInput(f"--set {text}: {name} is not an object of settings.")
    settings[last] = value
