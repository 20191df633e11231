"""`python -m server.store`: looks at the data folder itself; no server need run.

`disp audit ...` is `python -m server.store audit ...`, and so is `disp schema ...`; `disp
checkpoints export ...` is `python -m server.store export ...`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from purifier.errors import PurifierError
from purifier.mdlm.export import DTYPES
from server.errors import ServerError
from server.store.audit import AuditLog
from server.store.blobs import open_store
from server.store.checkpoints import CheckpointStore
from server.store.database import Database, DatabaseError, explained, open_database
from server.store.export import export
from server.store.home import Home, HomeError, find_root
from server.store.schema import NEWEST, downgrade, require_version, upgrade, version_of

OK, FAILED, USAGE = 0, 1, 2
_PAGE = 1000


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status (1 if the log is not whole, 2 for wrong use)."""
    args = _parser().parse_args(arguments)
    try:
        home = Home.at(find_root(args.data_dir, demo=args.demo), args.database_url)
        if args.room == "schema":
            return _schema(args, home)
        database = _open(home)
        try:
            return _run(args, home, database)
        finally:
            database.close()
    except (HomeError, DatabaseError) as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE
    except (PurifierError, ServerError) as error:
        print(f"error: {error.message}", file=sys.stderr)
        return FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m server.store", description=__doc__)
    rooms = parser.add_subparsers(dest="room", required=True)
    audit = rooms.add_parser("audit", help="the audit log", prog="disp audit")
    acts = audit.add_subparsers(dest="act", required=True)
    verify = acts.add_parser("verify", help="check that no row was edited, removed or moved")
    verify.add_argument("--head", help="hash that an earlier verify printed, which must be there")
    shown = acts.add_parser("list", help="print every row as a line of JSON")
    add = rooms.add_parser("add", help="make a checkpoint folder known, where it lies")
    add.add_argument("path", type=Path, metavar="PATH")
    add.add_argument("--parent", metavar="ID", help="the checkpoint it was made from")
    exported = rooms.add_parser(
        "export", help="write a checkpoint for use elsewhere", prog="disp checkpoints export"
    )
    exported.add_argument("checkpoint", metavar="CHECKPOINT", help="its id, name@sha256:...")
    form = exported.add_mutually_exclusive_group(required=True)
    form.add_argument(
        "--merge", action="store_true", help="full weights, as the hub's folders have them"
    )
    form.add_argument(
        "--adapter", action="store_true", help="an adapter folder for peft, and the projector"
    )
    exported.add_argument(
        "--output", type=Path, metavar="FOLDER", help="where to; by default the checkpoint's name"
    )
    exported.add_argument(
        "--dtype",
        choices=DTYPES,
        help="of merged weights; by default bfloat16 if the base has no wider ones, else float32",
    )
    exported.add_argument("--store", metavar="URL", help="the store that all workers share")
    for command in (verify, shown, add, exported, *_schema_commands(rooms)):
        command.add_argument("--data-dir", type=Path, help="DISP_DATA_DIR; ./disp-data")
        command.add_argument("--database-url", help="postgresql+psycopg://...")
        command.add_argument("--demo", action="store_true", help="those of `serve --demo`")
    return parser


def _schema_commands(rooms: Any) -> tuple[argparse.ArgumentParser, ...]:
    schema = rooms.add_parser("schema", help="the version of the tables", prog="disp schema")
    acts = schema.add_subparsers(dest="act", required=True)
    shown = acts.add_parser("show", help="print the version of the tables, and this code's")
    up = acts.add_parser("upgrade", help="bring them to this code's, as a server does at its start")
    down = acts.add_parser("downgrade", help="bring them back to an older version; nothing may run")
    down.add_argument("version", metavar="VERSION", help="such as 0001")
    return shown, up, down


def _open(home: Home) -> Database:
    return open_database(_there(home).database_url)


def _there(home: Home) -> Home:
    """A command that looks makes no new data folder."""
    if not home.root.is_dir():
        raise HomeError(f"There is no data folder {home.root}: give it with --data-dir.")
    return home.create()


def _schema(args: argparse.Namespace, home: Home) -> int:
    with explained(), closing(Database(_there(home).database_url)) as database:
        if args.act == "upgrade":
            upgrade(database.engine)
        elif args.act == "downgrade":
            require_version(args.version)
            downgrade(database.engine, args.version)
        with database.reading() as connection:
            found = version_of(connection)
        print(f"version {found} of {NEWEST}" if found else f"no version yet, of {NEWEST}")
    return OK


def _run(args: argparse.Namespace, home: Home, database: Database) -> int:
    if args.room == "add":
        store = CheckpointStore(database, home.checkpoints)
        print(store.register(args.path, parent=args.parent).id)
        return OK
    if args.room == "export":
        known = CheckpointStore(database, home.checkpoints, store=open_store(home, args.store))
        print(export(known, args.checkpoint, args.output, adapter=args.adapter, dtype=args.dtype))
        return OK
    log = AuditLog(database)
    if args.act == "verify":
        return _verify(log, args.head)
    after = 0
    while rows := log.list(after=after, limit=_PAGE):
        for row in rows:
            print(json.dumps(asdict(row), ensure_ascii=False))
        after = rows[-1].number
    return OK


def _verify(log: AuditLog, head: str | None) -> int:
    verdict = log.verify(head)
    if verdict.problem is not None:
        print(f"broken after row {verdict.rows}: {verdict.problem}")
        return FAILED
    print(f"whole: {verdict.rows} rows, head {verdict.head}")
    return OK


if __name__ == "__main__":
    sys.exit(main())
