"""A job's evaluation: the compromised and the purified model on the same questions.

    result = evaluate_job(spec)
    result["metrics"]["before"], ["after"]      rates of each model
    result["metrics"]["change"]                 drift, what is left of utility
    result["metrics"]["labels"]                 what purification did to the labels
    result["examples"]                          rows to look at; pictures in spec.output

A rate is {value, n, low, high}, the ends of its 95% interval. The training set needs no clean
data (`purifier.evaluation.drift`); a test set adds utility and, for a stated attack, its
success (`purifier.evaluation.utility`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from purifier.answer import check_length
from purifier.data.dataset import DataSet, open_dataset
from purifier.data.sample import Sample, open_image, question_messages
from purifier.defense.config import MaskingConfig
from purifier.denoise.config import GenerationConfig
from purifier.errors import DataError, InvalidPrompt, RowError
from purifier.evaluation.config import EvaluationConfig
from purifier.evaluation.drift import RowAnswers, answer_rows, disagreement, draw_rows, drift
from purifier.evaluation.examples import Evidence, write_examples
from purifier.evaluation.intervals import Rate, kept_mean, kept_ratio, wilson
from purifier.evaluation.labels import Labels, read_labels, record_number
from purifier.evaluation.utility import outcomes, rates
from purifier.mdlm.base import Mdlm
from purifier.mdlm.registry import checkpoint_id, load_mdlm

Check = Callable[[], None]
Figures = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class EvaluationSpec:
    """What is evaluated.

    Attributes:
        before: Checkpoint of the compromised model.
        after: Checkpoint of the purified model.
        data: Label file of the training set as it came in.
        output: Folder for the pictures of the examples; made if absent.
        base: The root base's folder, where a delta's is not beside it.
        images: Image folder of the training set; None: see `open_dataset`.
        labels: Purified rows, JSON lines of `PurifiedRow`; without them, rows count as flagged
            where the compromised model's masked and unmasked answers differ.
        test: Label file of a test set, if there is one.
        test_images: Its image folder.
        masking: The defence that masked answers are given under.
        generation: How answers are denoised.
        config: What is measured.
        device: Where the models run.
        dtype: Their dtype.
        mark_images: Whether rows with one image and no `<image>` mark get one.
    """

    before: Path
    after: Path
    data: Path
    output: Path
    base: Path | None = None
    images: Path | None = None
    labels: tuple[Path, ...] = ()
    test: Path | None = None
    test_images: Path | None = None
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    config: EvaluationConfig = field(default_factory=EvaluationConfig)
    device: str = "cpu"
    dtype: str = "float32"
    mark_images: bool = True


@dataclass(frozen=True)
class _Measured:
    """One model's answers."""

    rows: list[RowAnswers]
    tests: list[dict[str, float]]


def evaluate_job(spec: EvaluationSpec, check: Check | None = None) -> dict[str, Any]:
    """Measures a job's model before and after, one loaded at a time.

    Args:
        spec: What is evaluated.
        check: Called between batches and within; what it raises ends the work.

    Returns:
        JSON-ready: `metrics`, `examples`, `rows`, `test_rows`, `unusable` and `test_unusable`
        (rows drawn that have a bad image or do not fit the model), `checkpoints`, `flags`
        (`labels` or `answers`: what told which rows are suspected). The same inputs give the
        same result.

    Raises:
        DataError: If a data set cannot be read or has no row to ask about.
        CheckpointError: If a checkpoint is refused.
    """
    config = spec.config
    dataset = open_dataset(spec.data, images=spec.images, mark_images=spec.mark_images)
    drawn = draw_rows(_askable(dataset, images=True), config.rows, config.seed)
    drawn_tests, test_images = _test_rows(spec)
    mdlm = _loaded(spec, spec.before)
    rows = _usable(mdlm, drawn, dataset.images, spec.generation)
    if not rows:
        raise DataError("The training set has no usable row with an image.", param="training_file")
    tests = _usable(mdlm, drawn_tests, test_images, spec.generation)
    if drawn_tests and not tests:
        raise DataError("The test set has no usable row.", param="validation_file")
    labels = read_labels(spec.labels, {record_number(row) for row in rows})
    before = _measure(spec, mdlm, rows, dataset.images, tests, test_images, check)
    # One model at a time: memory may hold no two.
    del mdlm
    after = _measure(
        spec, _loaded(spec, spec.after), rows, dataset.images, tests, test_images, check
    )
    flagged, told = _flagged(rows, before.rows, labels)
    evidence = Evidence(rows, before.rows, after.rows, flagged)
    return {
        "metrics": _metrics(before, after, flagged, labels),
        "examples": write_examples(
            evidence, dataset.images, labels.rows, config.examples, spec.output
        ),
        "rows": len(rows),
        "test_rows": len(tests),
        "unusable": len(drawn) - len(rows),
        "test_unusable": len(drawn_tests) - len(tests),
        "flags": "labels" if told else "answers",
        "checkpoints": {"before": checkpoint_id(spec.before), "after": checkpoint_id(spec.after)},
    }


def _test_rows(spec: EvaluationSpec) -> tuple[list[Sample], Path]:
    if spec.test is None:
        return [], Path()
    dataset = open_dataset(spec.test, images=spec.test_images, mark_images=spec.mark_images)
    drawn = draw_rows(_askable(dataset, images=False), spec.config.test_rows, spec.config.seed)
    if not drawn:
        raise DataError("The test set has no usable row.", param="validation_file")
    return drawn, dataset.images


def _askable(dataset: DataSet, *, images: bool) -> Iterator[Sample]:
    """Rows with a question and an answer, on request only those with images."""
    for row in dataset.rows():
        if not isinstance(row, Sample) or (images and not row.images):
            continue
        if row.question and row.answer.strip():
            yield row


def _usable(
    mdlm: Mdlm, rows: Sequence[Sample], images: Path, generation: GenerationConfig
) -> list[Sample]:
    """The rows whose question the model can be asked."""
    return [row for row in rows if _fits(mdlm, row, images, generation)]


def _fits(mdlm: Mdlm, row: Sample, images: Path, generation: GenerationConfig) -> bool:
    try:
        opened = tuple(open_image(images, image, row.source) for image in row.images)
        check_length(mdlm, mdlm.prepare(question_messages(row, opened)), generation)
    except (RowError, InvalidPrompt):
        return False
    return True


def _loaded(spec: EvaluationSpec, checkpoint: Path) -> Mdlm:
    return load_mdlm(checkpoint, base=spec.base, device=spec.device, dtype=spec.dtype)


def _measure(
    spec: EvaluationSpec,
    mdlm: Mdlm,
    rows: Sequence[Sample],
    images: Path,
    tests: Sequence[Sample],
    test_images: Path,
    check: Check | None,
) -> _Measured:
    size = spec.config.batch_size
    answers = answer_rows(
        mdlm, rows, images, spec.generation, spec.masking, batch_size=size, check=check
    )
    attack = spec.config.attack()
    return _Measured(
        answers,
        outcomes(mdlm, tests, test_images, spec.generation, attack, batch_size=size, check=check),
    )


def _flagged(
    rows: Sequence[Sample], before: Sequence[RowAnswers], labels: Labels
) -> tuple[list[bool], bool]:
    """Which rows are suspected, and whether purification told so."""
    found = [labels.rows.get(record_number(row)) for row in rows]
    told = any(row is not None and row.flagged is not None for row in found)
    if told:
        return [row is not None and row.flagged is True for row in found], True
    return [row.disagree for row in before], False


def _metrics(
    before: _Measured, after: _Measured, flagged: Sequence[bool], labels: Labels
) -> dict[str, Figures]:
    change = drift(before.rows, after.rows, flagged)
    if before.tests:
        exact = ([row["clean_exact"] == 1.0 for row in side.tests] for side in (before, after))
        words = ([row["clean_words"] for row in side.tests] for side in (before, after))
        change["utility_kept"] = kept_ratio(*exact)
        change["words_kept"] = kept_mean(*words)
    of_labels = {"flagged": wilson(sum(flagged), len(flagged)), **labels.figures}
    return {
        "before": _figures({**disagreement(before.rows), **rates(before.tests)}),
        "after": _figures({**disagreement(after.rows), **rates(after.tests)}),
        "change": _figures(change),
        "labels": _figures(of_labels),
    }


def _figures(found: Mapping[str, Rate]) -> Figures:
    return {name: rate.to_dict() for name, rate in found.items()}
