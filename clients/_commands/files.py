"""`disp files`: data sets on the server, and what jobs have made."""

from __future__ import annotations

import argparse
from pathlib import Path

import rich.progress
from rich.console import Console
from rich.table import Table

from clients._client import Client
from clients._commands._common import (
    OK,
    finish,
    moment,
    notes,
    open_client,
    print_json,
    texts,
    write_file,
)
from clients._exceptions import InvalidInput
from server.schemas.files import FileObject


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declares the command and its actions."""
    parser = subparsers.add_parser(
        "files", help="upload, list, save and remove files", description=__doc__
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    uploading = actions.add_parser("upload", help="upload a label file, or an archive with images")
    uploading.add_argument(
        "path", type=Path, metavar="FILE", help=".json, .jsonl, .parquet, .zip, .tar.gz"
    )
    uploading.add_argument("--name", help="what the server shall call it")
    finish(uploading, run_upload)
    listing = actions.add_parser("ls", help="list files, newest first")
    listing.add_argument("--limit", type=int, default=100, help="at most this many (default 100)")
    listing.add_argument("--after", metavar="FILE", help="behind this file")
    finish(listing, run_ls)
    getting = actions.add_parser("get", help="save a file, such as a job's result")
    getting.add_argument("file", metavar="FILE", help="its id")
    getting.add_argument("--output", type=Path, metavar="PATH", help="default: under its own name")
    finish(getting, run_get)
    removing = actions.add_parser("rm", help="remove files")
    removing.add_argument("files", nargs="+", metavar="FILE", help="id of a file")
    finish(removing, run_rm)


def run_upload(args: argparse.Namespace) -> int:
    """Uploads and prints the id."""
    with open_client(args) as client:
        uploaded = _upload(client, args.path, args.name)
    if args.json:
        print_json(uploaded.model_dump(mode="json"))
    else:
        print(uploaded.id)
    return OK


def run_ls(args: argparse.Namespace) -> int:
    """Lists and prints."""
    with open_client(args) as client:
        page = client.files.list(after=args.after, limit=args.limit)
    if args.json:
        print_json(page.model_dump(mode="json"))
        return OK
    table = Table("file", "name", "purpose", "bytes", "made")
    for one in page.data:
        created = moment(one.created_at)
        cells = (one.id, one.filename, one.purpose, f"{one.bytes:,}", created)
        table.add_row(*texts(cells))
    Console().print(table)
    if page.has_more:
        notes().print(f"more: --after {page.last_id}", style="dim", markup=False)
    return OK


def run_get(args: argparse.Namespace) -> int:
    """Saves a file and says where."""
    with open_client(args) as client:
        found = client.files.get(args.file)
        content = client.files.content(args.file)
    # The server's name for it must not lead out of this folder.
    target: Path = args.output or Path(Path(found.filename).name or found.id)
    if args.output is None and target.exists():
        raise InvalidInput(f"{str(target)!r} is there already; choose another --output.")
    write_file(target, content)
    if args.json:
        print_json(found.model_dump(mode="json") | {"path": str(target)})
    else:
        print(target)
    return OK


def run_rm(args: argparse.Namespace) -> int:
    """Removes every file that is named."""
    with open_client(args) as client:
        removed = [client.files.delete(name) for name in args.files]
    if args.json:
        print_json({"data": [one.model_dump(mode="json") for one in removed]})
    else:
        for one in removed:
            print(f"{one.id} removed")
    return OK


def _upload(client: Client, path: Path, name: str | None) -> FileObject:
    """Uploads, with a bar on a terminal."""
    console = notes()
    if not (console.is_terminal and path.is_file()):
        return client.files.upload(path, filename=name)
    with rich.progress.open(path, "rb", console=console, description="uploading") as file:
        return client.files.upload(file, filename=name or path.name)
