"""`python -m server.security`: makes, lists and revokes keys. Needs nothing but Python."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from server.security.keys import SCOPES, KeyFileError, create_key, list_keys, revoke_key


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
    for command in (create, listing, revoke):
        command.add_argument("--file", type=Path, required=True, help="the keys file")
    return parser


def _keep(args: argparse.Namespace) -> int:
    if args.command == "create":
        secret, record = create_key(args.file, args.name, args.scope or ["infer"])
        print(f"{record.id}: {', '.join(record.scopes)}", file=sys.stderr)
        print(secret)
    elif args.command == "list":
        for record in list_keys(args.file):
            print(f"{record.id}\t{record.name}\t{','.join(record.scopes)}")
    else:
        print(f"revoked {revoke_key(args.file, args.key_id).id}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
