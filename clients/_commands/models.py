"""`disp models`: every model the server answers with."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table
from rich.text import Text

from clients._commands._common import (
    OK,
    add_connection_options,
    add_json_option,
    open_client,
    print_json,
    printable,
)


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declares the command."""
    parser = subparsers.add_parser("models", help="list the models", description=__doc__)
    add_connection_options(parser)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Asks and prints."""
    with open_client(args) as client:
        cards = client.models()
    if args.json:
        print_json({"data": [card.model_dump(mode="json") for card in cards]})
        return OK
    table = Table("name", "checkpoint", "made from")
    for card in cards:
        table.add_row(*(Text(printable(cell)) for cell in (card.id, card.root, card.parent or "")))
    Console().print(table)
    return OK
