"""`disp inspect`: what the detectors find in a question about an image."""

from __future__ import annotations

import argparse
import base64
from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.table import Table

from clients._commands._common import (
    OK,
    add_connection_options,
    add_json_option,
    open_client,
    print_json,
    printable,
    texts,
    write_file,
)
from clients._images import image_bytes
from server.schemas import Effort
from server.schemas.inspection import EFFORTS, Finding, Inspection, Region


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "inspect", help="look for a trigger in a question about an image", description=__doc__
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="PNG, JPEG or WebP file")
    parser.add_argument("question", metavar="QUESTION")
    parser.add_argument("--model", default="default", help="a name that `disp models` lists")
    parser.add_argument("--system", metavar="TEXT", help="a system turn before the question")
    parser.add_argument(
        "--effort",
        action="append",
        choices=get_args(Effort),
        help=f"level to look with, several times (default: {', '.join(EFFORTS)})",
    )
    parser.add_argument("--gen-length", type=int, help="tokens of the answers")
    parser.add_argument(
        "--overlays", type=Path, metavar="DIR", help="save a picture of every image and level"
    )
    add_connection_options(parser)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Asks and prints."""
    files = [image_bytes(path) for path in args.images]
    with open_client(args) as client:
        found = client.inspect(
            files,
            args.question,
            system=args.system,
            model=args.model,
            efforts=args.effort,
            max_tokens=args.gen_length,
            overlays=args.overlays is not None,
        )
    if args.overlays is not None:
        save_overlays(found, args.overlays)
    if args.json:
        print_json(found.model_dump(mode="json", exclude={"findings": {"__all__": {"overlays"}}}))
        return OK
    screen = Console(highlight=False)
    screen.print(f"{found.verdict}, checkpoint {found.checkpoint}", markup=False)
    screen.print(f"undefended: {printable(found.undefended)}", markup=False)
    screen.print(table(found.findings))
    return OK


def table(findings: list[Finding]) -> Table:
    """One row a level."""
    shown = Table("effort", "verdict", "score", "threshold", "masked", "where", "answer")
    for each in findings:
        cells = [each.effort, each.verdict, f"{each.score:.1f}", f"{each.threshold:g}"]
        places = "; ".join(map(place, each.regions))
        shown.add_row(*texts([*cells, f"{each.masked:.0%}", places, printable(each.answer)]))
    return shown


def place(region: Region) -> str:
    """Where on which image something was masked, in percent from the left and the top."""
    across = f"{region.left:.0%} to {region.right:.0%} from the left"
    down = f"{region.top:.0%} to {region.bottom:.0%} from the top"
    return f"image {region.image}: {across}, {down}"


def save_overlays(found: Inspection, folder: Path) -> None:
    """Saves every picture as EFFORT-IMAGE.png.

    Raises:
        InvalidInput: If a file cannot be written.
    """
    for each in found.findings:
        for number, url in enumerate(each.overlays or []):
            content = base64.b64decode(url.partition(",")[2])
            write_file(folder / f"{each.effort}-{number}.png", content)
