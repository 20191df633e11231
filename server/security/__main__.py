"""`python -m server.security`: makes, lists and revokes keys.

Where a server's data folder is given, its audit log has a row of it. Loads no model package.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from server.security.keys import (
    SCOPES,
    KeyFileError,
    KeyRecord,
    create_key,
    list_keys,
    revoke_key,
)
from server.store.audit import AuditLog
from server.store.database import DatabaseError, open_database
from server.store.home import DATA_DIR_VARIABLE, Home, HomeError, find_root


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status (2 for a wrong use)."""
    try:
        return _keep(_parser().parse_args(arguments))
    except KeyFileError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="disp keys", description="Keeps keys.")
    commands = parser.add_subparsers(dest="command", required=True)
    create = commands.add_parser("create", help="make a key and print it, once")
    create.add_argument("--name", default="unnamed", help="what to call it")
    create.add_argument(
        "--scope", action="append", choices=SCOPES, help="repeatable (default: infer)"
    )
    listing = commands.add_parser("list", help="show what keys there are")
    revoke = commands.add_parser("revoke", help="take a key away; works at once")
    revoke.add_argument("key_id", metavar="ID")
    for command in (create, revoke):
        command.add_argument(
            "--data-dir", type=Path, help="a server's, for its audit log (DISPDATA_DIR_VARIABLE)"
        )
        command.add_argument("--database-url", help="of a server, for its audit log")
    for command in (create, listing, revoke):
        command.add_argument("--file", type=Path, required=True, help="the keys file")
    return parser


def _keep(args: argparse.Namespace) -> int:
    if args.command == "create":
        with _audited(args) as note:
            secret, record = create_key(args.file, args.name, args.scope or ["infer"])
            note("create_key", record)
        print(f"{record.id}: {', '.join(record.scopes)}", file=sys.stderr)
        print(secret)
    elif args.command == "list":
        for record in list_keys(args.file):
            print(f"{record.id}\t{record.name}\t{','.join(record.scopes)}")
    else:
        with _audited(args) as note:
            record = revoke_key(args.file, args.key_id)
            note("revoke_key", record)
        print(f"revoked {record.id}")
    return 0


@contextmanager
def _audited(args: argparse.Namespace) -> Iterator[Callable[[str, KeyRecord], None]]:
    """Opens the audit log before anything is done, if the command names one."""
    if (
        args.data_dir is None
        and args.database_url is None
        and not os.environ.get(DATA_DIR_VARIABLE)
    ):
        yield lambda action, record: None
        return
    try:
        home = Home.at(find_root(args.data_dir), args.database_url).create()
        database = open_database(home.database_url)
    except (HomeError, DatabaseError) as error:
        raise KeyFileError(str(error)) from None

    def note(action: str, record: KeyRecord) -> None:
        after = " ".join(record.scopes) if action == "create_key" else None
        AuditLog(database).append("command line", None, action, record.id, after=after)

    try:
        yield note
    finally:
        database.close()


if __name__ == "__main__":
    sys.exit(main())
