"""Measures a defence: `python -m purifier.evaluate --target insertion --ratio 0.2 --json`.

Asks a poisoned checkpoint every held-out question about the clean and the triggered image,
under one defence, and prints attack success and utility with 95% Wilson intervals.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from purifier.defense.config import TOKEN_RANKER, Effort, Level, MaskingConfig, RankerName
from purifier.errors import PurifierError
from purifier.evaluation.metrics import Measurement, measure
from purifier.evaluation.report import evaluation_table
from purifier.evaluation.runner import Cut, Runner
from purifier.evaluation.testset import TestSet, read_test_set
from purifier.lab.demo import DATA_FOLDER, checkpoint_path
from purifier.lab.targets import Target, TargetName, target_by_name
from purifier.mdlm.base import Mdlm
from purifier.mdlm.registry import checkpoint_id, load_mdlm

SETTINGS = (
    *("level", "ranker", "ratio", "threshold"),
    *("probes", "pooling", "top_k", "temperature", "seed"),
)
"""Settings of the defence, as they are asked for and reported."""


def evaluate(
    mdlm: Mdlm,
    test_set: TestSet,
    target: Target,
    masking: MaskingConfig | None = None,
    *,
    batch_size: int = 64,
) -> Measurement:
    """Measures a poisoned model under one defence.

    Args:
        mdlm: The model.
        test_set: Held-out questions, the trigger and the generation settings.
        target: What the attack makes the model say.
        masking: The defence; None and ratio 0 leave the model undefended.
        batch_size: Requests denoised together.
    """
    runner = Runner(mdlm, test_set, batch_size=batch_size)
    if masking is None or masking.ratio == 0:
        answers = runner.undefended()
    else:
        cut = Cut(masking.ratio, masking.threshold)
        answers = runner.masked(masking, [cut])[cut]
    return measure(test_set.cases, answers, target)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = parse(arguments)
    try:
        result = run(options)
    except PurifierError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(result))
    else:
        print(_markdown(result))
    return 0


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Evaluates as asked: the settings, and every figure as {value, n, low, high}."""
    given = {name: getattr(options, name) for name in SETTINGS}
    masking = MaskingConfig().adjusted(effort=options.effort, **given)
    model = options.model or checkpoint_path(options.target)
    test_set = read_test_set(options.data or DATA_FOLDER, limit=options.limit)
    mdlm = load_mdlm(model, device=options.device, dtype=options.dtype)
    figures = evaluate(
        mdlm, test_set, target_by_name(options.target), masking, batch_size=options.batch_size
    )
    return {
        "target": options.target,
        "checkpoint": checkpoint_id(model),
        "records": len(test_set.cases),
        **{name: getattr(masking, name) for name in SETTINGS},
        **figures.to_dict(),
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line; defaults are the product's."""
    default = MaskingConfig()
    parser = argparse.ArgumentParser(prog="disp evaluate", description=__doc__)
    parser.add_argument("--target", choices=get_args(TargetName), required=True)
    parser.add_argument("--effort", choices=get_args(Effort), help="stands for those below")
    parser.add_argument("--level", choices=get_args(Level), help=f"default: {default.level}")
    parser.add_argument(
        "--ranker",
        choices=get_args(RankerName),
        help=f"default: {default.ranker}, or {TOKEN_RANKER} where that needs level patch",
    )
    parser.add_argument("--ratio", type=float, help=f"0 is undefended (default: {default.ratio:g})")
    parser.add_argument(
        "--threshold", type=float, help="least score that is masked (default: the ranker's)"
    )
    parser.add_argument("--probes", type=int, default=default.probes)
    parser.add_argument("--pooling", type=int, default=default.pooling)
    parser.add_argument("--top-k", type=int, default=default.top_k)
    parser.add_argument("--temperature", type=float, default=default.temperature)
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument(
        "--limit", type=_positive, help="records, drawn once for all runs (default: all)"
    )
    parser.add_argument("--batch-size", type=_positive, default=64)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--model", type=Path, help="poisoned checkpoint (default: the demo's)")
    parser.add_argument("--data", type=Path, help="data folder (default: the demo's)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _markdown(result: dict[str, Any]) -> str:
    figures = {name: value for name, value in result.items() if isinstance(value, dict)}
    settings = {name: value for name, value in result.items() if name not in figures}
    line = ", ".join(f"{name} {value}" for name, value in settings.items())
    return f"{line}\n\n{evaluation_table(figures)}"


if __name__ == "__main__":
    sys.exit(main())
