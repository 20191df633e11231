"""Purification: rows a second of relabelling, and what an optimizer step of recovery costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu.run import Run
from benchmarks.peak_memory import peak_mib, reset_peak
from benchmarks.plain import plain_purify
from benchmarks.speed_settings import CHANGES
from purifier.data.dataset import open_dataset
from purifier.data.llava import read_llava, write_llava
from purifier.data.sample import Sample, Turn
from purifier.mdlm.llada_v import LladaV
from purifier.mdlm.parts import Part
from purifier.purification.config import PRESETS, PurifyConfig
from purifier.purification.purifier import Purifier
from purifier.tuning.config import FinetuneConfig
from purifier.tuning.examples import TrainingRows
from purifier.tuning.train import Trainer

_TOGETHER = 16
_PLAIN_ROWS = 2
_TRAINED_ROWS = 8
_QUESTION = "<image>\nWhat is this?"
_ANSWER = "A red boat on a blue background."
_RECOVERIES: dict[str, tuple[Part, ...]] = {
    "projector": ("projector",),
    "LoRA": ("projector", "language_model", "vision_tower"),
}


def measure(run: Run) -> None:
    """Relabelling first, by the product, the paper's recipe in bulk and the published loop."""
    labels = make_rows(run)
    samples = read_llava(labels)
    mdlm = run.load()
    own = replace(PRESETS["paper"], prompt=None)
    run.measure("rows, published loop", 20, partial(_plain_rows, run, mdlm, samples, own))
    for name, preset in (("product", "default"), ("paper's recipe", "paper")):
        config = PRESETS[preset]
        fast = replace(config, generation=replace(config.generation, **CHANGES))
        run.measure(f"rows, {name}", 20, partial(_bulk_rows, run, mdlm, samples, fast))
    del mdlm
    for checkpointing in (False, True):
        for name, parts in _RECOVERIES.items():
            suffix = ", gradient checkpointing" if checkpointing else ""
            make = partial(_step, run, labels, parts, checkpointing=checkpointing)
            run.measure(f"step, {name}{suffix}", 20, make)


def make_rows(run: Run) -> Path:
    """A label file with a picture for every row; returns it."""
    folder = run.work / f"rows-{run.shape_name}"
    folder.mkdir(parents=True, exist_ok=True)
    samples = []
    for number in range(run.shape.rows):
        name = f"{number}.png"
        run.picture(number).save(folder / name)
        turns = (Turn("user", _QUESTION), Turn("assistant", _ANSWER))
        samples.append(Sample(str(number), (name,), turns))
    write_llava(folder / "labels.json", samples)
    return folder / "labels.json"


def _plain_rows(
    run: Run, mdlm: LladaV, samples: Sequence[Sample], config: PurifyConfig
) -> dict[str, Any]:
    """The published loop, one row after another, on the rows' own questions."""
    rows = samples[:_PLAIN_ROWS]
    images = run.work / f"rows-{run.shape_name}"
    spent = run.bench.timed(lambda: list(plain_purify(mdlm, rows, images, config)))
    return {"rows": len(rows), "rows_per_second": len(rows) / spent}


def _bulk_rows(
    run: Run, mdlm: LladaV, samples: Sequence[Sample], config: PurifyConfig
) -> dict[str, Any]:
    """The product, some rows at a time, until all are done or the time is."""
    purifier = Purifier(mdlm, config, run.work / f"rows-{run.shape_name}")
    done, spent = 0, 0.0
    reset_peak(run.device)
    while done < len(samples) and run.left > 10:
        chunk = samples[done : done + _TOGETHER]
        spent += run.bench.timed(partial(purifier.purify, chunk))
        done += len(chunk)
    return {
        "rows": done,
        "of": len(samples),
        "rows_per_second": done / spent,
        "peak_mib": peak_mib(run.device),
    }


def _step(
    run: Run, labels: Path, parts: tuple[Part, ...], *, checkpointing: bool
) -> dict[str, Any]:
    """Seconds of the second optimizer step, and the peak of memory of both."""
    mdlm = run.load()
    config = FinetuneConfig(
        parts=parts,
        epochs=2,
        batch_size=4,
        micro_batch_size=1,
        gradient_checkpointing=checkpointing,
    )
    rows = TrainingRows(mdlm, open_dataset(labels), config)
    before = reset_peak(run.device)
    trainer = Trainer(mdlm, rows, config)
    times: list[float] = []
    for _ in range(2):
        # Asked after every step, so it ends after one.
        times.append(run.bench.timed(lambda: trainer.train(lambda event: None, lambda: True)))
    return {
        "seconds": times[1],
        "first_seconds": times[0],
        "rows": config.batch_size,
        "memory_mib_before": before,
        "memory_mib_peak": peak_mib(run.device),
        "trained_parameters": sum(p.numel() for p in trainer.opened.values()),
        "loss": trainer.losses[-1],
    }
