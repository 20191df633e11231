"""`disp health`: whether the server is up and ready; exit code 0 only if both."""

from __future__ import annotations

import argparse

from clients._commands._common import (
    FAILED,
    OK,
    add_connection_options,
    add_json_option,
    open_client,
    print_json,
)


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "health", help="ask whether the server is ready", description=__doc__
    )
    add_connection_options(parser)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Asks and prints."""
    with open_client(args) as client:
        client.health()
        ready = client.ready()
    if args.json:
        print_json({"up": True, "ready": ready})
    else:
        print("up and ready" if ready else "up, but not ready: no model answers yet")
    return OK if ready else FAILED
