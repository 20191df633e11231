"""What the commands share: options, printing, opening a client."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from clients._client import Client
from clients._exceptions import DispError, InvalidInput, StatusError
from clients._settings import DEFAULT_BASE_URL

OK = 0
FAILED = 1
USAGE = 2


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Every command can answer to a program."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def add_connection_options(parser: argparse.ArgumentParser) -> None:
    """Options of commands that talk to a server."""
    group = parser.add_argument_group("connection")
    group.add_argument(
        "--base-url", metavar="URL", help=f"the server (DISP_BASE_URL, or {DEFAULT_BASE_URL})"
    )
    group.add_argument(
        "--api-key", metavar="KEY", help="the key (better: DISP_API_KEY, which `ps` does not show)"
    )
    group.add_argument("--timeout", type=float, default=600.0, help="seconds (default 600)")


def finish(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int]) -> None:
    """Gives a command that talks to a server its common options and what it does."""
    add_connection_options(parser)
    add_json_option(parser)
    parser.set_defaults(run=run)


def texts(cells: Sequence[str | None]) -> list[Text]:
    """Cells of a table, from texts that the server sent."""
    return [Text(printable(cell or "")) for cell in cells]


def moment(seconds: int) -> str:
    """Unix seconds for a reader, in local time."""
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")


def open_client(args: argparse.Namespace) -> Client:
    """A client as the options say."""
    if not args.timeout > 0:
        raise InvalidInput("--timeout must be above 0.")
    return Client(args.base_url, args.api_key, timeout=args.timeout)


def print_json(value: dict[str, Any]) -> None:
    """Prints one object for a program."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def printable(text: str) -> str:
    """The text without control characters: a model's answer must not drive the terminal."""
    return "".join(mark if mark.isprintable() or mark in "\n\t" else "\ufffd" for mark in text)


def notes() -> Console:
    """Where remarks for the reader go; standard output keeps the answer alone."""
    return Console(stderr=True, highlight=False)


def report(error: DispError, as_json: bool) -> None:
    """Prints an error, for a program or a reader."""
    if not as_json:
        print(f"disp: {printable(error.message)}", file=sys.stderr)
        return
    body: dict[str, Any] = {"message": error.message}
    if isinstance(error, StatusError):
        body |= {
            "status": error.status,
            "type": error.type,
            "code": error.code,
            "param": error.param,
            "request_id": error.request_id,
        }
    print_json({"error": body})


def write_file(path: Path, data: bytes) -> None:
    """Writes a result where the user wants it.

    Raises:
        InvalidInput: If that is not possible.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError:
        raise InvalidInput(f"{str(path)!r} cannot be written.") from None
