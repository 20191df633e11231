"""`disp doctor`: what is installed here, which device there is, and how much memory."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from clients._commands._common import OK, add_json_option, print_json
from clients._commands.delegated import missing_packages

PACKAGES = (
    "disp-server",
    "httpx",
    "pydantic",
    "pillow",
    "torch",
    "transformers",
    "peft",
    "fastapi",
    "uvicorn",
)

DEVICE_PROBE = """
import json, torch
cuda = torch.cuda.is_available()
print(json.dumps({
    "cpu_threads": torch.get_num_threads(),
    "cuda": [
        {"name": torch.cuda.get_device_name(i), "free_bytes": f, "total_bytes": t}
        for i in range(torch.cuda.device_count()) for f, t in [torch.cuda.mem_get_info(i)]
    ] if cuda else [],
    "mps": torch.backends.mps.is_available(),
}))
"""
"""Asked in a process of its own, for clients do not import torch."""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "doctor", help="show versions, device and memory", description=__doc__
    )
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Looks and prints."""
    findings = examine()
    if args.json:
        print_json(findings)
        return OK
    table = Table("what", "found", title="DiSP Server")
    table.add_row("python", findings["python"])
    table.add_row("platform", findings["platform"])
    for name, version in findings["packages"].items():
        table.add_row(name, version or "not installed")
    table.add_row("memory", _gigabytes(findings["memory_bytes"]))
    table.add_row("device", _device(findings["device"]))
    console = Console()
    console.print(table)
    if missing_packages():
        console.print("The server's packages are missing: pip install 'disp-server\\[server]'")
    return OK


def examine() -> dict[str, Any]:
    """Everything the command tells."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "memory_bytes": _memory(),
        "device": _probe_device(),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _memory() -> int | None:
    """Memory of this machine in bytes; None where the system does not tell."""
    names = getattr(os, "sysconf_names", {})
    if not {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= set(names):
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _probe_device() -> dict[str, Any] | None:
    """What PyTorch sees; None if it is not installed or does not start."""
    if _version("torch") is None:
        return None
    probe = subprocess.run(
        [sys.executable, "-P", "-c", DEVICE_PROBE], capture_output=True, text=True, check=False
    )
    if probe.returncode:
        return None
    found: dict[str, Any] = json.loads(probe.stdout)
    return found


def _gigabytes(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 1e9:.1f} GB"


def _device(device: dict[str, Any] | None) -> str:
    if device is None:
        return "unknown: PyTorch is not installed or does not start"
    if device["cuda"]:
        return "\n".join(
            f"cuda:{index} {card['name']}, {_gigabytes(card['free_bytes'])} of "
            f"{_gigabytes(card['total_bytes'])} free"
            for index, card in enumerate(device["cuda"])
        )
    return "mps" if device["mps"] else f"cpu, {device['cpu_threads']} threads"
