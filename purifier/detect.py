"""Makes a detector: `disp detect DATA --model PATH --out DIR`.

The compromised model is run over its own training set, two passes a row. DIR becomes the same
checkpoint with a detector of the rows whose answers a backdoor forces. A server that loads DIR
masks a request until the detector's score is below its threshold, whatever the trigger looks like.
Nothing but the data set is needed: no clean data, no correct labels, no other model.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from purifier.data.sample import Sample
from purifier.detection import DETECTOR_FILE, DetectConfig, fit_detector
from purifier.detection.progress import Progress
from purifier.detection.sentences import search_sentence
from purifier.errors import InvalidSetting, PurifierError
from purifier.mdlm.delta import is_delta, root_of, write_delta
from purifier.mdlm.detector import Detector
from purifier.mdlm.registry import base_hash, checkpoint_id, load_mdlm
from purifier.purify import add_inputs, inputs_of


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0 whether or not something was found."""
    options = parse(arguments)
    try:
        result = run(options)
    except PurifierError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 2
    print(json.dumps(result) if options.json else _sentences(result))
    return 0


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Searches the training set, and writes the checkpoint if something was found."""
    dataset, given, _ = inputs_of(options)
    model = given.resolve()
    _check_place(options.out, model)
    config = DetectConfig(rows=options.rows, batch_size=options.batch_size, seed=options.seed)
    mdlm = load_mdlm(model, device=options.device, dtype=options.dtype)
    start = perf_counter()
    samples = [row for row in dataset.rows() if isinstance(row, Sample)]
    found = fit_detector(mdlm, samples, dataset.images, config, check=Progress())
    result: dict[str, Any] = {
        "checkpoint": None,
        "out": None,
        "rows": found.looked_at,
        "groups": [group.to_dict() for group in found.groups],
        "seconds": round(perf_counter() - start, 1),
    }
    if found.detector is not None and options.out is not None:
        write_guarded(model, found.detector, options.out)
        result |= {"checkpoint": checkpoint_id(options.out), "out": str(options.out)}
    return result


def write_guarded(model: Path, detector: Detector, out: Path) -> None:
    """Writes a checkpoint with a detector: a delta on the same base, its weights unchanged.

    Args:
        model: The checkpoint: full weights, or a delta whose base is in the same parent folder.
        detector: Made of its training set.
        out: A new folder; a link to the base is made in its parent folder unless the base is there.

    Raises:
        CheckpointError: If the checkpoint is refused.
    """
    base, name = root_of(model)
    out.mkdir(parents=True)
    if is_delta(model):
        for file in sorted(model.iterdir()):
            if file.suffix == ".safetensors" and file.name != DETECTOR_FILE:
                shutil.copyfile(file, out / file.name)
    detector.save(out)
    beside = out.parent / name
    if not beside.exists():
        beside.symlink_to(base, target_is_directory=True)
    if is_delta(model):
        shutil.copyfile(model / "delta.json", out / "delta.json")
    else:
        write_delta(
            out,
            base=name,
            base_sha256=base_hash(base),
            projector={},
            adapter={},
            lora_scale=1.0,
            details={"parent": checkpoint_id(model)},
        )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    defaults = DetectConfig()
    parser = argparse.ArgumentParser(
        prog="disp detect",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add_inputs(add)
    add("--out", type=Path, metavar="DIR", help="folder of the checkpoint with its detector")
    add("--rows", type=int, default=defaults.rows, help="rows that are looked at, at most")
    add("--batch-size", type=int, default=defaults.batch_size)
    add("--seed", type=int, default=defaults.seed)
    add("--device", default="cpu")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--json", action="store_true", help="print one JSON object")
    return parser.parse_args(arguments)


def _check_place(out: Path | None, model: Path) -> None:
    """Refuses before the work what could not be written after it."""
    if out is None:
        return
    if out.exists():
        raise InvalidSetting(f"{out} is there already; give a new folder.", param="out")
    base, name = root_of(model)
    beside = out.absolute().parent / name
    if beside == out.absolute() or (beside.exists() and beside.resolve() != base):
        raise InvalidSetting(
            f"{name} is the name of the checkpoint's base, which must lie beside {out.name}; give "
            "another name, in a folder where nothing else is called so.",
            param="out",
        )


def _sentences(result: dict[str, Any]) -> str:
    lines = [f"{search_sentence(result)} It took {result['seconds']} s."]
    if result["out"] is not None:
        lines.append(f"Wrote {result['checkpoint']}; serve it: disp serve --model {result['out']}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
