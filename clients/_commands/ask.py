"""`disp ask`: one question about one image, several, or none."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

from clients._answer import Answer
from clients._calls import Generation
from clients._commands._common import (
    OK,
    add_connection_options,
    add_json_option,
    notes,
    open_client,
    print_json,
    printable,
    write_file,
)
from clients._exceptions import InvalidInput
from clients._images import image_bytes
from clients._overlay import draw_overlay
from server.schemas import (
    CacheName,
    DefenseReport,
    DetectionReport,
    Effort,
    Level,
    Ranker,
    Remasking,
)

DEFENSE_OPTIONS = (
    "effort",
    "level",
    "ratio",
    "ranker",
    "threshold",
    "probes",
    "pooling",
    "defense_seed",
)
GENERATION_OPTIONS = (
    "gen_length",
    "block_length",
    "steps",
    "temperature",
    "guidance_scale",
    "remasking",
    "cache",
    "prompt_interval",
    "parallel_threshold",
    "seed",
)


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declares the command."""
    parser = subparsers.add_parser("ask", help="ask a question about an image", description=__doc__)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="PNG, JPEG or WebP file")
    parser.add_argument("question", metavar="QUESTION")
    parser.add_argument("--model", default="default", help="a name that `disp models` lists")
    parser.add_argument("--system", metavar="TEXT", help="a system turn before the question")
    defense = parser.add_argument_group("defence")
    defense.add_argument(
        "--no-defense", action="store_true", help="answer undefended; needs a key that may"
    )
    defense.add_argument("--effort", choices=get_args(Effort), help="stands for those below")
    defense.add_argument("--level", choices=get_args(Level))
    defense.add_argument("--ratio", type=float, help="fraction that is masked, 0 to 1")
    defense.add_argument("--ranker", choices=get_args(Ranker), help="how saliency is measured")
    defense.add_argument(
        "--threshold", type=float, help="least score that is masked, in the ranker's unit"
    )
    defense.add_argument("--probes", type=int, help="Hutchinson probes of official and fisher")
    defense.add_argument("--pooling", type=int, help="side of the averaged neighbourhood")
    defense.add_argument("--defense-seed", type=int, help="seed of the probes")
    defense.add_argument(
        "--certified",
        action="store_true",
        help="an answer that no small part of an image decides, or none; needs a key that may",
    )
    defense.add_argument(
        "--window", type=float, metavar="SHARE", help="with --certified: largest trigger's side"
    )
    defense.add_argument(
        "--overlay", type=Path, metavar="FILE", help="save the saliency and mask as a PNG"
    )
    generation = parser.add_argument_group("generation")
    generation.add_argument("--gen-length", type=int, help="tokens of the answer")
    generation.add_argument("--block-length", type=int, help="tokens denoised together")
    generation.add_argument("--steps", type=int, help="denoising steps over all blocks")
    generation.add_argument("--temperature", type=float)
    generation.add_argument("--guidance-scale", type=float)
    generation.add_argument("--remasking", choices=get_args(Remasking))
    generation.add_argument("--cache", choices=get_args(CacheName), help="none: exact steps")
    generation.add_argument(
        "--prompt-interval", type=int, metavar="TOKENS", help="until the prompt is computed anew"
    )
    generation.add_argument(
        "--parallel-threshold", type=float, help="commit all that is surer; 1: one a step"
    )
    generation.add_argument("--seed", type=int)
    add_connection_options(parser)
    add_json_option(parser)
    parser.set_defaults(run=run, check=check)


def check(args: argparse.Namespace) -> str | None:
    """What is wrong with the options as a whole, if anything is."""
    given = [name for name in DEFENSE_OPTIONS if getattr(args, name) is not None]
    if args.no_defense and given:
        return f"--no-defense and --{given[0].replace('_', '-')} exclude each other"
    if args.certified and (args.no_defense or args.overlay or given):
        other = given[0] if given else "overlay" if args.overlay else "no_defense"
        return f"--certified and --{other.replace('_', '-')} exclude each other"
    if args.window is not None and not args.certified:
        return "--window needs --certified"
    if args.overlay and (args.no_defense or not args.images):
        return "--overlay needs an image and the defence"
    return None


def run(args: argparse.Namespace) -> int:
    """Asks and prints."""
    files = [image_bytes(path) for path in args.images]
    with open_client(args) as client:
        answer = client.answer(
            files,
            args.question,
            system=args.system,
            model=args.model,
            defense=_defense(args),
            return_saliency=args.overlay is not None,
            **_generation(args),
        )
    if args.overlay is not None:
        save_overlay(files, answer, args.overlay)
    if args.json:
        print_json(as_object(answer) | {"overlay": args.overlay and str(args.overlay)})
        return OK
    print(printable(answer.refusal or answer.text))
    remarks = notes()
    remarks.print(summary(answer.defense), style="dim", markup=False)
    for warning in answer.response.warnings:
        remarks.print(f"warning: {printable(warning)}", style="yellow", markup=False)
    if args.overlay is not None:
        remarks.print(f"overlay: {args.overlay}", style="dim", markup=False)
    return OK


def save_overlay(files: list[bytes], answer: Answer, path: Path) -> None:
    """Draws and saves the overlay of an answer.

    Raises:
        InvalidInput: If the answer came without saliency, or the file cannot be written.
    """
    if not answer.saliency:
        raise InvalidInput("There is no overlay: the defence was not applied to this answer.")
    picture = draw_overlay(
        files,
        [grid.saliency for grid in answer.saliency],
        [grid.masked for grid in answer.saliency],
    )
    write_file(path, picture)


def as_object(answer: Answer) -> dict[str, Any]:
    """An answer for a program: the text, and everything the server said about it."""
    response = answer.response
    return {
        "answer": answer.text,
        "refusal": answer.refusal,
        "finish_reason": response.choices[0].finish_reason,
        "model": response.model,
        "checkpoint": answer.checkpoint,
        "usage": response.usage.model_dump(mode="json"),
        "defense": response.defense.model_dump(mode="json"),
        "warnings": response.warnings,
        "request_id": answer.request_id,
    }


def summary(report: DefenseReport) -> str:
    """The defence block in one line."""
    total = report.timings.get("total", sum(report.timings.values())) / 1000
    if not report.applied:
        return f"undefended ({report.reason}), checkpoint {report.checkpoint}, {total:.2f} s"
    if report.certified is not None:
        certified = report.certified
        return (
            f"{report.verdict} against triggers of {certified.window:.0%} of each side: "
            f"{certified.answers} answers, {certified.agreement:.0%} of the first round alike, "
            f"checkpoint {report.checkpoint}, {total:.2f} s"
        )
    unit = "patches" if report.level == "patch" else "visual tokens"
    return (
        f"defended: {report.masked} of {report.total} {unit} masked by {report.ranker}, "
        f"{_detected(report.detection)}checkpoint {report.checkpoint}, {total:.2f} s"
    )


def _detected(found: DetectionReport | None) -> str:
    """What the checkpoint's detector said; empty without one."""
    if found is None:
        return ""
    if found.score < found.threshold:
        return f"detector silent ({found.score:.2f}), "
    without = f" and without {found.left_out!r}" if found.left_out else ""
    left = "" if found.left is None else f", {found.left:.2f} as answered"
    return f"detector {found.score:.2f}{left}{without}, "


def _defense(args: argparse.Namespace) -> dict[str, Any] | None:
    if args.no_defense:
        return {"enabled": False}
    if args.certified:
        certify = {} if args.window is None else {"certify": {"window": args.window}}
        return {"method": "certified", **certify}
    given = {name: getattr(args, name) for name in DEFENSE_OPTIONS}
    given["seed"] = given.pop("defense_seed")
    return {name: value for name, value in given.items() if value is not None} or None


def _generation(args: argparse.Namespace) -> Generation:
    settings = Generation()
    for name in GENERATION_OPTIONS:
        if (value := getattr(args, name)) is not None:
            settings[name] = value  # type: ignore[literal-required]
    return settings
