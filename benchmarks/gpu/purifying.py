"""Purification: rows a second of relabelling, and what an optimizer step of recovery costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.gpu.run import Run
from benchmarks.peak_memory import peak_mib, reset_peak
from benchmarks.speed_answers import plain_seconds
from benchmarks.speed_settings import CHANGES
from purifier.data.dataset import open_dataset
from purifier.data.llava import read_llava, write_llava
from purifier.data.sample import Sample, Turn, open_image
from purifier.mdlm.llada_v import LladaV
from purifier.mdlm.parts import Part
from purifier.purification.config import PRESETS, PurifyConfig
from purifier.purification.dialogue import answer_prompt
from purifier.purification.purifier import Purifier
from purifier.tuning.config import FinetuneConfig
from purifier.tuning.examples import TrainingRows
from purifier.tuning.train import Trainer

_TOGETHER = 16
_BUDGET = 20.0
"""Seconds for the rows of a cell; no rows are begun that would end later."""

_PLAIN_ROWS = 3
_QUESTION = "<image>\nWhat is this?"
_ANSWER = "A red boat on a blue background."
_RECOVERIES: dict[str, tuple[Part, ...]] = {
    "projector": ("projector",),
    "LoRA": ("projector", "language_model", "vision_tower"),
}


def measure(run: Run) -> None:
    """The published loop and the product, the optimizer steps, and the paper's recipe in bulk.

    Rows and steps are measured on models of their own: a training takes the memory for itself.
    """
    labels = make_rows(run)
    samples = read_llava(labels)
    mdlm = run.load()
    own = replace(PRESETS["paper"], prompt=None)
    run.measure("rows, published loop", 10, partial(_plain_rows, run, mdlm, samples, own))
    run.measure("rows, product", 10, partial(_bulk_rows, run, mdlm, samples, "default"))
    del mdlm
    for checkpointing in (False, True):
        for name, parts in _RECOVERIES.items():
            suffix = ", gradient checkpointing" if checkpointing else ""
            make = partial(_step, run, labels, parts, checkpointing=checkpointing)
            run.measure(f"step, {name}{suffix}", 15, make)

    def recipe() -> dict[str, Any]:
        return _bulk_rows(run, run.load(), samples, "paper")

    run.measure("rows, paper's recipe", 20, recipe)


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
    """The published loop, one row after another, on the rows' own questions.

    A few denoising steps of every answer are timed; all of its steps cost the same. The first row,
    which chooses kernels, is not counted.
    """
    rows = samples[:_PLAIN_ROWS]
    images = run.work / f"rows-{run.shape_name}"
    steps = min(run.shape.plain_steps, config.generation.n_steps)

    def row(sample: Sample) -> float:
        start = perf_counter()
        picture = open_image(images, sample.images[0], sample.source)
        inputs = mdlm.prepare(answer_prompt(sample, [picture], 0, (), config.prompt))
        prepared = perf_counter() - start
        return prepared + plain_seconds(mdlm, inputs, config.generation, steps, config.masking)

    counted = [row(sample) for sample in rows][1:]
    return {
        "rows": len(counted),
        "rows_per_second": len(counted) / sum(counted),
        "plain_steps_timed": steps,
    }


def _bulk_rows(run: Run, mdlm: LladaV, samples: Sequence[Sample], preset: str) -> dict[str, Any]:
    """The product, some rows at a time, until all are done or the cell's time is.

    The first rows, which choose kernels, are not counted if others follow.
    """
    config = PRESETS[preset]
    config = replace(config, generation=replace(config.generation, **CHANGES))
    purifier = Purifier(mdlm, config, run.work / f"rows-{run.shape_name}")
    chunks = [samples[at : at + _TOGETHER] for at in range(0, len(samples), _TOGETHER)]
    times: list[float] = []
    reset_peak(run.device)
    for chunk in chunks:
        # The next one is not begun unless it would end in time.
        if times and sum(times) + times[-1] > _BUDGET:
            break
        times.append(run.bench.timed(partial(purifier.purify, chunk)))
    counted = list(zip(chunks, times, strict=False))[min(1, len(times) - 1) :]
    return {
        "rows": sum(len(chunk) for chunk in chunks[: len(times)]),
        "of": len(samples),
        "rows_per_second": sum(len(chunk) for chunk, _ in counted) / sum(t for _, t in counted),
        "together": _TOGETHER,
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
