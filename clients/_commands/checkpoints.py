"""`disp checkpoints`: what can serve, what does, and the way back.

`export` reads a data folder itself, while no server need run; the others ask a server.
"""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

from clients._commands._common import (
    OK,
    finish,
    moment,
    open_client,
    print_json,
    texts,
)
from clients._commands.delegated import DELEGATES
from server.schemas.checkpoints import Checkpoint, Gate


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declares the command and its actions."""
    parser = subparsers.add_parser(
        "checkpoints", help=DELEGATES["checkpoints"].help, description=__doc__
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    finish(actions.add_parser("ls", help="list checkpoints, the latest first"), run_ls)
    activating = actions.add_parser("activate", help="put a checkpoint into service")
    activating.add_argument("checkpoint", metavar="CHECKPOINT", help="its id, name@sha256:...")
    activating.add_argument(
        "--force", action="store_true", help="although its evaluation failed; goes into the audit"
    )
    finish(activating, run_activate)
    removing = actions.add_parser("rm", help="remove checkpoints that nothing needs any more")
    removing.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="its id")
    finish(removing, run_rm)
    finish(actions.add_parser("rollback", help="bring the previous one back"), run_rollback)
    actions.add_parser(
        "export", help="write one of a data folder for use elsewhere", add_help=False
    )


def run_ls(args: argparse.Namespace) -> int:
    """Lists and prints."""
    with open_client(args) as client:
        found = client.checkpoints.list()
    if args.json:
        print_json(found.model_dump(mode="json"))
        return OK
    table = Table("checkpoint", "state", "gate", "made from", "job", "created")
    for one in found.data:
        created = moment(one.created_at)
        cells = (one.id, one.state, _verdict(one.gate), one.parent, one.job_id, created)
        table.add_row(*texts(cells))
    Console().print(table)
    return OK


def run_activate(args: argparse.Namespace) -> int:
    """Activates and says what serves now."""
    with open_client(args) as client:
        return _told(client.checkpoints.activate(args.checkpoint, force=args.force), args.json)


def run_rm(args: argparse.Namespace) -> int:
    """Removes every checkpoint that is named, up to the first that is refused."""
    removed = []
    with open_client(args) as client:
        for name in args.checkpoints:
            removed.append(client.checkpoints.delete(name))
            if not args.json:
                print(f"{removed[-1].id} removed")
    if args.json:
        print_json({"data": [one.model_dump(mode="json") for one in removed]})
    return OK


def run_rollback(args: argparse.Namespace) -> int:
    """Rolls back and says what serves now."""
    with open_client(args) as client:
        return _told(client.checkpoints.rollback(), args.json)


def _told(checkpoint: Checkpoint, as_json: bool) -> int:
    if as_json:
        print_json(checkpoint.model_dump(mode="json"))
    else:
        print(f"{checkpoint.id} serves")
    return OK


def _verdict(gate: Gate | None) -> str:
    if gate is None:
        return ""
    return "passed" if gate.passed else "failed: " + " ".join(gate.reasons)
