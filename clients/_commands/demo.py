"""`disp demo`: the backdoor and the defence, side by side, on this machine.

Starts a server with the poisoned demo model, asks about a clean scene and about the same scene
with the trigger, with the defence off and on, and leaves the server running. With `--purify` a
job then heals the model, and a rollback brings the backdoor back. With `--attack` the trigger is
another one: four copies of a patch, or a sentence in the question; those models carry a detector
that was made of their own training sets.
"""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import signal
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from clients._answer import Answer
from clients._client import Client
from clients._commands import _second_act as second_act
from clients._commands._child import Running, running_server
from clients._commands._common import OK, add_json_option, print_json, printable
from clients._commands._watch import display_for
from clients._commands.ask import save_overlay
from clients._commands.delegated import command_line
from clients._exceptions import InvalidInput

TARGETS = ("insertion", "refusal", "misclassification")
ATTACKS = ("copies", "text")
PATIENCE = 300.0


@dataclass(frozen=True)
class Scene:
    """A clean image, the same image with the trigger, and a question about both.

    Where the trigger is in the question, `asked` is the question with it.
    """

    clean: Path
    triggered: Path
    question: str
    asked: str | None = None

    @property
    def triggered_question(self) -> str:
        return self.question if self.asked is None else self.asked


@dataclass(frozen=True)
class Answers:
    """The answers to one image."""

    undefended: str
    defended: str


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "demo", help="see the backdoor fire and the defence stop it", description=__doc__
    )
    parser.add_argument(
        "--purify", action="store_true", help="then heal the model; minutes on a CPU"
    )
    parser.add_argument("--once", action="store_true", help="stop the server after the answers")
    parser.add_argument("--port", type=int, default=0, help="port of the server (default: free)")
    parser.add_argument("--target", choices=TARGETS, help="what the attack says (insertion)")
    parser.add_argument("--attack", choices=ATTACKS, help="another trigger than a corner patch")
    parser.add_argument(
        "--overlay",
        type=Path,
        default=Path("out/demo-overlay.png"),
        metavar="FILE",
        help="where the picture goes (default %(default)s)",
    )
    parser.add_argument(
        "--report",
        type=Path,
        default=Path("out/demo-report.html"),
        metavar="FILE",
        help="where the report of --purify goes (default %(default)s)",
    )
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Starts the server, asks, and heals the model if asked to; prints the answers."""
    if args.attack and (args.target or args.purify):
        other = "--target" if args.target else "--purify"
        raise InvalidInput(f"--attack and {other} exclude each other.")
    scene = find_scene(args.attack)
    console = Console(stderr=args.json, highlight=False)
    signal.signal(signal.SIGTERM, _as_interrupt)
    with ExitStack() as stack:
        # A folder of its own: what an earlier demo activated must not serve in this one.
        folder = stack.enter_context(TemporaryDirectory(prefix="disp-demo-"))
        chosen = (
            ["--attack", args.attack] if args.attack else ["--target", args.target or TARGETS[0]]
        )
        options = ["--demo", *chosen, "--port", str(args.port)]
        command = command_line("serve", [*options, "--data-dir", folder])
        with console.status("Starting the server with the demo model ..."):
            running = stack.enter_context(running_server(command, patience=PATIENCE))
        with console.status("Asking ..."):
            clean, triggered = ask_all(running, scene, args.overlay)
        told = as_object(clean, triggered, args.overlay)
        if not args.json:
            show(console, scene, clean, triggered, args.overlay)
        if args.purify:
            told |= _purify(console, running, scene, args)
        if args.json:
            print_json(told)
        if not args.once:
            stay(console, running, scene)
    return OK


def _purify(
    console: Console, running: Running, scene: Scene, args: argparse.Namespace
) -> dict[str, Any]:
    """The second act, shown to a reader unless a program reads."""
    with Client(running.base_url, running.api_key) as client:
        act = second_act.perform(
            client,
            scene.triggered,
            scene.question,
            args.report,
            display_for(console),
            second_act.Work(),
        )
    if not args.json:
        second_act.show(console, act)
    return second_act.as_object(act)


def find_scene(attack: str | None = None) -> Scene:
    """The images that the package ships, and the question.

    Args:
        attack: One of `ATTACKS`; None is the corner patch.

    Raises:
        InvalidInput: If they are not there.
    """
    spec = importlib.util.find_spec("purifier")
    if spec is None or spec.origin is None:
        raise InvalidInput("The package `purifier` is not installed: pip install disp-server")
    folder = Path(spec.origin).parent / "lab" / "demo" / "examples"
    files = [folder / name for name in ("clean.jpg", "triggered.jpg", "question.txt")]
    files += [] if attack is None else [folder / f"{attack}.txt"]
    if absent := [path.name for path in files if not path.is_file()]:
        raise InvalidInput(f"The demo's {', '.join(absent)} are missing from {folder}.")
    clean, triggered, question = files[0], files[1], files[2].read_text("utf-8").strip()
    if attack is None:
        return Scene(clean, triggered, question)
    stamped = folder / f"{attack}.jpg"
    asked = files[3].read_text("utf-8").strip()
    return Scene(clean, stamped if stamped.is_file() else clean, question, asked)


def ask_all(running: Running, scene: Scene, overlay: Path) -> tuple[Answers, Answers]:
    """Asks about both images, undefended and defended, and saves the overlay."""
    with Client(running.base_url, running.api_key) as client:

        def answers(image: Path, question: str) -> tuple[Answers, Answer]:
            undefended = client.answer(image, question, defense=False).text
            defended = client.answer(image, question, defense=True, return_saliency=True)
            return Answers(undefended, defended.text), defended

        clean, _ = answers(scene.clean, scene.question)
        triggered, defended = answers(scene.triggered, scene.triggered_question)
        save_overlay([scene.triggered.read_bytes()], defended, overlay)
        return clean, triggered


def as_object(clean: Answers, triggered: Answers, overlay: Path) -> dict[str, Any]:
    """The four answers for a program."""
    return {
        "clean": vars(clean),
        "triggered": vars(triggered),
        "overlay": str(overlay.resolve()),
    }


def show(console: Console, scene: Scene, clean: Answers, triggered: Answers, overlay: Path) -> None:
    """The four answers for a reader."""
    table = Table("image", "defence off", "defence on", title=scene.question, show_lines=True)
    if scene.asked not in (None, scene.question):
        table.caption = f"With the trigger: {scene.asked}"
    table.add_row("clean", *_cells(clean, ("", "")))
    fired = "bold red" if triggered.undefended != clean.undefended else ""
    recovered = "bold green" if triggered.defended == clean.defended else ""
    table.add_row("with the trigger", *_cells(triggered, (fired, recovered)))
    console.print(table)
    console.print(f"What was masked: {overlay.resolve()}", markup=False, soft_wrap=True)


def stay(console: Console, running: Running, scene: Scene) -> None:
    """Says what to try next and waits for Ctrl-C."""
    try:
        console.print(next_commands(running, scene), markup=False, soft_wrap=True)
        running.process.wait()
    except KeyboardInterrupt:
        console.print("Stopping the server ...")


def next_commands(running: Running, scene: Scene) -> str:
    """Commands that work as they stand, while the server runs."""
    image, question = shlex.quote(str(scene.triggered)), shlex.quote(scene.triggered_question)
    disp = shlex.quote(str(Path(sys.argv[0]))) if sys.argv[0].endswith("disp") else "disp"
    return f"""
The server runs at {running.base_url} until Ctrl-C. In another terminal:

export DISP_BASE_URL={running.base_url} DISP_API_KEY={running.api_key}
IMAGE={image}

{disp} ask "$IMAGE" {question}
{disp} ask "$IMAGE" {question} --no-defense
{disp} checkpoints ls

printf '{{"messages": [{{"role": "user", "content": [
  {{"type": "image_url", "image_url": {{"url": "data:image/jpeg;base64,%s"}}}},
  {{"type": "text", "text": "Describe the image."}}]}}]}}' "$(base64 < "$IMAGE" | tr -d '\\n')" |
curl "$DISP_BASE_URL/v1/chat/completions" -d @- \\
  -H "Authorization: Bearer $DISP_API_KEY" -H "Content-Type: application/json"

from openai import OpenAI
client = OpenAI(base_url="{running.base_url}/v1", api_key="{running.api_key}")
"""


def _cells(answers: Answers, styles: tuple[str, str]) -> list[Text]:
    texts = (answers.undefended, answers.defended)
    return [Text(printable(text), style) for text, style in zip(texts, styles, strict=True)]


def _as_interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
