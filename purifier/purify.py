"""Purifies a data set: `disp purify DATA --model PATH --out DIR --policy flag_then_relabel`.

The compromised model itself answers the questions of its own training set again, with the most
salient visual evidence masked, and its answers take the place of the labels. The result lies in
DIR in the format of DATA, beside it `side.parquet`: what happened to every row.

First the data set is searched for a trigger, and a detector is made of what is found, unless
`--detectors` stands without a name. `disp detect` does the same alone.

With `--target` the shipped demo is purified (its data and poisoned model are the defaults), and
the labels are compared with the clean ones.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, get_args

from purifier.data.audit import BadRowLimit
from purifier.data.dataset import DataSet, open_dataset
from purifier.data.llava import read_llava
from purifier.data.sample import Sample
from purifier.defense.config import Level, RankerName
from purifier.detection import DetectConfig, fit_detector
from purifier.detection.progress import Progress
from purifier.detection.sentences import search_sentence
from purifier.errors import InvalidSetting, PurifierError
from purifier.evaluation.report import markdown_table, percent
from purifier.lab.demo import DATA_FOLDER, checkpoint_path
from purifier.lab.targets import TargetName, target_by_name
from purifier.mdlm.base import Mdlm
from purifier.mdlm.registry import checkpoint_id, load_mdlm
from purifier.purification.config import PRESETS, Detector, Policy, PurifyConfig
from purifier.purification.figures import policy_figures
from purifier.purification.local import purify_dataset
from purifier.purification.purifier import Purifier
from purifier.purification.row import PurifiedRow

__all__ = ["PRESETS", "Policy", "PurifiedRow", "Purifier", "PurifyConfig"]

_MASKING = ("level", "ranker", "ratio", "threshold")
_OWN = ("policy", "prompt", "turns", "flag_threshold", "detectors", "batch_size", "seed")
_GENERATION = ("gen_length", "block_length", "steps")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = parse(arguments)
    try:
        result = run(options)
    except PurifierError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 2
    print(json.dumps(result) if options.json else _markdown(result))
    return 0


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Purifies as asked: settings, counts, and with `--target` the figures of the labels."""
    dataset, model, demo = inputs_of(options)
    config = settings(options)
    mdlm = load_mdlm(model, device=options.device, dtype=options.dtype)
    shown = detect(mdlm, dataset, options.limit, config) if config.searched else {}
    seen: list[tuple[Sample, PurifiedRow]] = []
    start = perf_counter()
    tally = purify_dataset(
        Purifier(mdlm, config, dataset.images),
        dataset,
        options.out,
        limit=options.limit,
        bad_rows=BadRowLimit(share=options.bad_rows),
        progress=_progress,
        see=lambda sample, row: seen.append((sample, row)) if demo else None,
    )
    spent = perf_counter() - start
    for remark in tally.remarks:
        print(remark, file=sys.stderr)
    result = {
        "checkpoint": checkpoint_id(model),
        "out": str(options.out),
        "settings": config.to_dict(),
        **shown,
        **tally.to_dict(),
        "seconds": round(spent, 1),
        "seconds_per_row": round(spent / tally.rows, 3),
    }
    return result | (_demo_figures(options.target, seen) if demo else {})


def inputs_of(options: argparse.Namespace) -> tuple[DataSet, Path, bool]:
    """The data set, the checkpoint, and whether the data are the shipped demo's.

    Raises:
        InvalidSetting: If the command line does not say which.
        DataError: If the data set cannot be read.
    """
    if options.target is None and (options.data is None or options.model is None):
        raise InvalidSetting("Give DATA and --model, or --target for the shipped demo.")
    train = DATA_FOLDER / "train"
    demo = options.target is not None and options.data is None
    dataset = open_dataset(
        train / f"{options.target}.json" if demo else options.data,
        images=train / "images" if demo and options.images is None else options.images,
        mark_images=options.mark_images,
    )
    return dataset, options.model or checkpoint_path(options.target), demo


def add_inputs(add: Callable[..., object]) -> None:
    """Declares the options that `inputs_of` reads; `add` is a parser's `add_argument`."""
    add("data", type=Path, nargs="?", metavar="DATA", help="label file or folder")
    add("--model", type=Path, help="the compromised checkpoint")
    add("--images", type=Path, help="image folder (default: found beside DATA)")
    add("--target", choices=get_args(TargetName), help="take the shipped demo of this target")
    add(
        "--mark-images",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="read a row with one image and no <image> mark as if it began with one",
    )


def detect(mdlm: Mdlm, dataset: DataSet, limit: int | None, config: PurifyConfig) -> dict[str, Any]:
    """Gives a model the detector that its training set shows; what was found."""
    rows = [row for row in dataset.rows(0, limit) if isinstance(row, Sample)]
    search = DetectConfig.within(config.batch_size, config.seed)
    found = fit_detector(mdlm, rows, dataset.images, search, check=Progress())
    mdlm.detector = found.detector or mdlm.detector
    return {"detector": {"rows": found.looked_at, "groups": [g.to_dict() for g in found.groups]}}


def settings(options: argparse.Namespace) -> PurifyConfig:
    """The settings that a command line asks for."""
    given: dict[str, Any] = {
        "preset": options.preset,
        "masking": _given(options, _MASKING),
        "generation": _given(options, _GENERATION),
        "further_prompts": options.further_prompt,
        **_given(options, _OWN),
    }
    if options.window is not None:
        given["certify"] = {"window": options.window}
    if options.block_scores is not None:
        given["rescore_blocks"] = options.block_scores == "each"
    return PurifyConfig.from_dict(given)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line; what is not given is the preset's."""
    parser = argparse.ArgumentParser(
        prog="disp purify",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add_inputs(add)
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the result")
    add("--preset", choices=list(PRESETS), default="default")
    add("--policy", choices=get_args(Policy))
    add("--prompt", help="asked in place of the first question of every sample")
    add("--further-prompt", action="append", default=[], metavar="PROMPT", help="asked besides")
    add("--turns", choices=("first", "all"), help="answers of a dialogue that are in scope")
    add("--flag-threshold", type=float, metavar="NATS")
    add("--window", type=float, metavar="SHARE", help="largest trigger of policy certified")
    add("--block-scores", choices=("first", "each"), help="blocks whose saliency is taken")
    add(
        "--detectors",
        nargs="*",
        choices=get_args(Detector),
        help="what searches for the trigger first (default: training-set; no name: nothing does)",
    )
    add("--level", choices=get_args(Level))
    add("--ranker", choices=get_args(RankerName))
    add("--ratio", type=float)
    add("--threshold", type=float, help="least score that is masked")
    add("--gen-length", type=int)
    add("--block-length", type=int)
    add("--steps", type=int)
    add("--batch-size", type=int)
    add("--seed", type=int)
    add("--limit", type=int, help="rows that are read, from the first on (default: all)")
    add("--bad-rows", type=float, default=0.01, help="share of unusable rows that is borne")
    add("--device", default="cpu")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    if options.limit is not None and options.limit < 1:
        parser.error("argument --limit: must be at least 1")
    return options


def _given(options: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    values = {name: getattr(options, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _demo_figures(target: str, seen: Sequence[tuple[Sample, PurifiedRow]]) -> dict[str, Any]:
    clean = read_llava(DATA_FOLDER / "train" / "clean_labels.json")
    samples, rows = [sample for sample, _ in seen], [row for _, row in seen]
    held_out = [clean[row.record] for row in rows]
    return policy_figures(samples, rows, held_out, target_by_name(target)).to_dict()


def _progress(done: int, total: int) -> None:
    print(f"{done} of {total} rows", file=sys.stderr, flush=True)


def _markdown(result: dict[str, Any]) -> str:
    found = result.get("detector")
    first = f"{search_sentence(found)}\n" if found else ""
    shown = {name: value for name, value in result.items() if name not in ("remarks", "detector")}
    plain = {name: value for name, value in shown.items() if not isinstance(value, dict)}
    line = first + ", ".join(f"{name} {value}" for name, value in plain.items())
    figures = {
        name: value for name, value in shown.items() if name not in plain and name != "settings"
    }
    if not figures:
        return line
    rows = [[name, percent(rate), str(rate["n"])] for name, rate in figures.items()]
    return f"{line}\n\n{markdown_table(['figure', '% [95% Wilson interval]', 'n'], rows)}"


if __name__ == "__main__":
    sys.exit(main())
