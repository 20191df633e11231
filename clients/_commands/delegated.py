"""Commands that belong to the other rooms and run in a process of their own.

Clients never import the server or the defence: `disp serve --demo` becomes
`python -m server --demo`, and so on. Their options are theirs.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from clients._exceptions import InvalidInput

SERVER_EXTRA = ("torch", "transformers", "fastapi", "uvicorn")


@dataclass(frozen=True)
class Delegate:
    """A command and what does it.

    Attributes:
        words: Module, and its own first arguments.
        help: One line for the overview.
        actions: First arguments with which it is delegated; None: always.
    """

    words: tuple[str, ...]
    help: str
    actions: tuple[str, ...] | None = None


DELEGATES = {
    "serve": Delegate(("server",), "start the server"),
    "worker": Delegate(("server.jobs",), "run a worker that does the purification jobs"),
    "evaluate": Delegate(("purifier.evaluate",), "measure attack success and utility"),
    "detect": Delegate(("purifier.detect",), "make a detector of a model's training set"),
    "purify": Delegate(("purifier.purify",), "relabel a training set with the model it poisoned"),
    "finetune": Delegate(("purifier.finetune",), "fine-tune a compromised model on purified data"),
    "keys": Delegate(("server.security",), "create, list and revoke keys"),
    "schema": Delegate(("server.store", "schema"), "show and change the version of the tables"),
    "audit": Delegate(
        ("server.store", "audit"), "list and verify the audit log", ("list", "verify")
    ),
    "checkpoints": Delegate(
        ("server.store",), "list, activate, roll back, remove and export checkpoints", ("export",)
    ),
}


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declares the commands, for the overview of `disp --help`."""
    for name, delegate in DELEGATES.items():
        if delegate.actions is None:
            subparsers.add_parser(name, help=delegate.help, add_help=False)


def is_delegated(arguments: Sequence[str]) -> bool:
    """Whether a command line belongs to another room."""
    delegate = DELEGATES.get(arguments[0]) if arguments else None
    if delegate is None:
        return False
    return delegate.actions is None or (len(arguments) > 1 and arguments[1] in delegate.actions)


def missing_packages() -> list[str]:
    """Packages of the `[server]` extra that are not installed."""
    return [name for name in SERVER_EXTRA if importlib.util.find_spec(name) is None]


def command_line(name: str, arguments: Sequence[str]) -> list[str]:
    """The process that does a command.

    Raises:
        InvalidInput: If the `[server]` extra is not installed.
    """
    if missing := missing_packages():
        raise InvalidInput(
            f"`disp {name}` needs the server's packages ({', '.join(missing)} missing): "
            "pip install 'disp-server[server]'"
        )
    # -P: a folder of the same name in the working directory must not take the module's place.
    return [sys.executable, "-P", "-m", *DELEGATES[name].words, *arguments]


def run(name: str, arguments: Sequence[str]) -> int:
    """Becomes the process; returns only if that is impossible."""
    line = command_line(name, arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(line[0], line)
