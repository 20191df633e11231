"""`disp audit`: who changed what.

`ls` asks a server; `list` and `verify` read a data folder itself, while no server need run.
"""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

from clients._client import Client
from clients._commands._common import OK, finish, moment, notes, open_client, print_json, texts
from clients._commands.delegated import DELEGATES
from clients._exceptions import InvalidInput
from server.schemas.checkpoints import AuditEntry

_PAGE = 1000


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declares the command and its actions."""
    parser = subparsers.add_parser("audit", help=DELEGATES["audit"].help, description=__doc__)
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    listing = actions.add_parser("ls", help="list a server's log, oldest row first")
    listing.add_argument("--after", type=int, default=0, metavar="NUMBER", help="behind this row")
    listing.add_argument("--limit", type=int, help="at most this many rows (default: all)")
    finish(listing, run_ls)
    actions.add_parser("list", help="print the rows of a data folder", add_help=False)
    actions.add_parser("verify", help="check the chain of a data folder", add_help=False)


def run_ls(args: argparse.Namespace) -> int:
    """Lists and prints."""
    if args.limit is not None and args.limit < 1:
        raise InvalidInput("--limit must be at least 1.")
    with open_client(args) as client:
        rows, more = _rows(client, args.after, args.limit)
    if args.json:
        print_json({"data": [row.model_dump(mode="json") for row in rows], "has_more": more})
        return OK
    table = Table("row", "when", "who", "what", "to", "before", "after")
    for row in rows:
        when = moment(int(row.at))
        cells = (str(row.number), when, row.actor, row.action, row.target, row.before, row.after)
        table.add_row(*texts(cells))
    Console().print(table)
    if more:
        notes().print(f"more: --after {rows[-1].number}", style="dim", markup=False)
    return OK


def _rows(client: Client, after: int, limit: int | None) -> tuple[list[AuditEntry], bool]:
    """Rows behind one, and whether there are more."""
    rows: list[AuditEntry] = []
    while True:
        wanted = _PAGE if limit is None else min(_PAGE, limit - len(rows))
        page = client.audit.list(after=after, limit=wanted)
        rows += page.data
        if not page.has_more or len(rows) == limit:
            return rows, page.has_more
        after = rows[-1].number
