"""Fine-tunes a compromised checkpoint on purified data.

    disp finetune labels.json --model compromised --out healed      # the whole run, supervised
    accelerate launch -m purifier.finetune --spec spec.json         # one training process

The result is a delta on the root base. A run that was stopped or killed goes on where it was
when it is started again, and ends with the same result. With --spec the exit status is 0 for
done, 75 for stopped on SIGTERM with the state saved, 1 for failed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from purifier.data.dataset import DataSet, open_dataset
from purifier.errors import PurifierError
from purifier.mdlm.registry import checkpoint_id, load_mdlm
from purifier.tuning.adapters import collect
from purifier.tuning.config import PRESETS, FinetuneConfig
from purifier.tuning.events import EVENTS_FILE, Emit, EventFile
from purifier.tuning.examples import TrainingRows
from purifier.tuning.locks import hold, orphaned
from purifier.tuning.processes import Processes, join
from purifier.tuning.result import finished, write_result
from purifier.tuning.spec import FinetuneSpec
from purifier.tuning.supervise import supervise
from purifier.tuning.train import Trainer

__all__ = ["PRESETS", "FinetuneConfig", "FinetuneSpec", "Stopped", "finetune", "main"]

DONE, FAILED, USAGE, STOPPED = 0, 1, 2, 75
STATE_FILE = "state.safetensors"
_REPORTED_BAD_ROWS = 20


class Stopped(Exception):
    """The training was asked to stop; its state is saved."""


def finetune(
    spec: FinetuneSpec,
    *,
    events: Emit | None = None,
    should_stop: Callable[[], bool] | None = None,
    processes: Processes | None = None,
) -> Path:
    """Fine-tunes as a spec says, or goes on where it was stopped.

    Args:
        spec: Paths and settings.
        events: Gets every event, in the first process.
        should_stop: Asked after every step.
        processes: This process and its fellows; alone by default.

    Returns:
        The result's folder.

    Raises:
        Stopped: If `should_stop` said so; the state is saved.
        PurifierError: If the checkpoint, the data or a setting cannot be used.
    """
    processes = processes or Processes(device=spec.device)
    emit: Emit = events if events is not None and processes.first else lambda event: None
    dataset = open_dataset(spec.data, images=spec.images, mark_images=spec.mark_images)
    run = run_hash(spec, dataset)
    if finished(spec.output, run):
        (spec.work / STATE_FILE).unlink(missing_ok=True)
        emit({"event": "done", "checkpoint": checkpoint_id(spec.output)})
        return spec.output
    mdlm = load_mdlm(spec.checkpoint, base=spec.base, device=processes.device, dtype=spec.dtype)
    rows = TrainingRows(mdlm, dataset, spec.config)
    spec.work.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(
        mdlm,
        rows,
        spec.config,
        processes=processes,
        state=spec.work / STATE_FILE,
        run=run,
        save_seconds=spec.save_seconds,
    )
    emit(
        {
            "event": "started",
            "rows": len(rows),
            "bad_rows": len(rows.bad),
            "remarks": rows.remarks,
            "first_bad_rows": [row.message for row in rows.bad[:_REPORTED_BAD_ROWS]],
            "steps": trainer.course.steps,
            "step": trainer.step,
            "processes": processes.count,
            "trained_parameters": sum(p.numel() for p in trainer.opened.values()),
        }
    )
    if not trainer.train(emit, should_stop or (lambda: False)):
        emit({"event": "stopped", "step": trainer.step})
        raise Stopped
    if processes.first:
        _write(spec, trainer, dataset, run)
        (spec.work / STATE_FILE).unlink(missing_ok=True)
        emit({"event": "done", "checkpoint": checkpoint_id(spec.output)})
    processes.wait()
    return spec.output


def run_hash(spec: FinetuneSpec, dataset: DataSet) -> str:
    """SHA-256 of all that decides the result: checkpoint, data, settings, dtype."""
    facts = [
        checkpoint_id(spec.checkpoint),
        dataset.fingerprint(),
        spec.config.to_dict(),
        spec.dtype,
    ]
    if not spec.mark_images:
        facts.append("unmarked images refused")
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = _parse(arguments)
    try:
        if options.spec is not None:
            return _one_process(FinetuneSpec.read(options.spec))
        return _supervised(_spec(options), options)
    except PurifierError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return FAILED


def _write(spec: FinetuneSpec, trainer: Trainer, dataset: DataSet, run: str) -> None:
    config, course, losses = spec.config, trainer.course, trainer.losses
    a_epoch = course.steps_per_epoch
    metrics = {
        "rows": course.rows,
        "bad_rows": len(trainer.rows.bad),
        "steps": course.steps,
        "trained_tokens": course.epochs * trainer.rows.trained_tokens,
        "loss_first_epoch": sum(losses[:a_epoch]) / a_epoch,
        "loss_last_epoch": sum(losses[-a_epoch:]) / a_epoch,
    }
    write_result(
        spec.output,
        collect(trainer.mdlm, trainer.opened, config.alpha / config.rank),
        checkpoint=spec.checkpoint,
        base=spec.base,
        stored_dtype=config.stored_dtype,
        details={
            "run_sha256": run,
            "data_sha256": dataset.fingerprint(),
            "settings": config.to_dict() | {"dtype": spec.dtype},
            "seed": config.seed,
            "metrics": metrics,
        },
    )


def _one_process(spec: FinetuneSpec) -> int:
    """One of the training's processes, under a launcher or alone."""
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    if spec.device.startswith("cuda"):
        torch.use_deterministic_algorithms(True, warn_only=True)
    processes = join(spec.device)
    emit: Emit = EventFile(spec.work / EVENTS_FILE) if processes.first else lambda event: None
    try:
        with hold(spec.work / "training.lock", wanted=processes.first):
            # Until the first process has the lock, another training may still save its state.
            processes.wait()
            finetune(
                spec,
                events=emit,
                should_stop=lambda: bool(asked) or orphaned(spec.work),
                processes=processes,
            )
    except Stopped:
        return STOPPED
    except PurifierError as error:
        emit({"event": "failed", "message": error.message, "param": error.param})
        raise
    except Exception as error:
        # What a foreign exception says may hold paths; its traceback goes to the log.
        kind = type(error).__name__
        emit({"event": "failed", "message": f"The training failed ({kind}); see its log."})
        raise
    finally:
        processes.leave()
    return DONE


def _supervised(spec: FinetuneSpec, options: argparse.Namespace) -> int:
    file = spec.work / "spec.json"
    spec.write(file)
    show = _print_json if options.json else _print_line
    status = supervise(file, processes=options.processes, listen=show)
    if status == STOPPED:
        print("stopped; the same command goes on", file=sys.stderr)
    return status


def _spec(options: argparse.Namespace) -> FinetuneSpec:
    config = PRESETS[options.preset].to_dict()
    for name in ("epochs", "batch_size", "learning_rate", "visual_mask", "seed"):
        value = getattr(options, name)
        if value is not None:
            config[name] = value
    if options.parts:
        config["parts"] = options.parts.split(",")
    work = options.work or options.out.with_name(options.out.name + ".work")
    # Absolute, for the processes may be started elsewhere.
    return FinetuneSpec(
        checkpoint=options.model.resolve(),
        data=options.data.resolve(),
        images=options.images and options.images.resolve(),
        output=Path(os.path.abspath(options.out)),
        work=work.resolve(),
        config=FinetuneConfig.from_dict(config),
        device=options.device,
        dtype=options.dtype,
        mark_images=options.mark_images,
    )


def _print_json(event: Mapping[str, Any]) -> None:
    print(json.dumps(event), flush=True)


def _print_line(event: Mapping[str, Any]) -> None:
    shown = {key: value for key, value in event.items() if key not in ("event", "time")}
    print(event["event"], *(f"{key}={value}" for key, value in shown.items()), flush=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="disp finetune", description=__doc__)
    parser.add_argument("--spec", type=Path, help="run one training process of this spec")
    parser.add_argument("data", type=Path, nargs="?", help="label file of the purified data")
    parser.add_argument("--images", type=Path, help="image folder (default: beside the labels)")
    parser.add_argument("--model", type=Path, help="compromised checkpoint")
    parser.add_argument("--out", type=Path, help="folder of the result")
    parser.add_argument("--work", type=Path, help="folder of the state (default: OUT.work)")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="default")
    parser.add_argument("--parts", help="projector,language_model,vision_tower")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--visual-mask", type=float, help="share of visual tokens hidden at most")
    parser.add_argument("--seed", type=int)
    parser.add_argument(
        "--mark-images",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="read a row with one image and no <image> mark as if it began with one",
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print events as JSON lines")
    options = parser.parse_args(arguments)
    if options.spec is None and None in (options.data, options.model, options.out):
        parser.error("give DATA, --model and --out, or --spec")
    return options


if __name__ == "__main__":
    sys.exit(main())
