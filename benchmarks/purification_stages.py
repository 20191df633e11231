"""The stages of one purification cell: masked answers, labels, fine-tuning, measurement.

Every stage keeps what it finished in a folder named by all that decides it, so a stopped run
goes on, and cells that need the same masked answers or flags share them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.purification_cells import CLEAN, SHORT, Cell, Plan
from purifier.data.llava import write_llava
from purifier.data.sample import Sample
from purifier.denoise import FAST
from purifier.evaluation.grid import data_hash, drop_cut_line
from purifier.evaluation.intervals import kept_ratio, wilson
from purifier.evaluation.metrics import measure
from purifier.evaluation.runner import Runner
from purifier.evaluation.testset import TestSet, read_test_set
from purifier.finetune import FinetuneSpec, finetune
from purifier.lab.targets import TargetName, exact_hit, keyword_hit, target_by_name
from purifier.mdlm.delta import file_sha256
from purifier.mdlm.registry import checkpoint_id, load_mdlm
from purifier.purify import Policy, PurifiedRow, Purifier


def purified_rows(plan: Plan, target: TargetName, cell: Cell) -> tuple[list[PurifiedRow], float]:
    """What a cell's policy makes of every row, and the seconds that this alone would take.

    `flag_then_relabel` asks for the masked answers of flagged rows only, the others' are not
    needed; `relabel_all` shares them.
    """
    assert cell.setting is not None
    assert cell.policy is not None
    records = list(range(len(plan.samples(target))))
    if cell.policy == "relabel_all":
        return _cached(plan, target, cell.setting, "relabel_all", records)
    flags, seconds = _cached(plan, target, cell.setting, "drop_flagged", records)
    if cell.policy == "drop_flagged":
        return flags, seconds
    wanted = [row.record for row in flags if row.flagged]
    answers, more = _cached(plan, target, cell.setting, "relabel_all", wanted)
    new = {row.record: row for row in answers}
    rows = [replace(new[row.record], flagged=True) if row.record in new else row for row in flags]
    return rows, seconds + more


def _cached(
    plan: Plan, target: TargetName, setting: str, policy: Policy, records: Sequence[int]
) -> tuple[list[PurifiedRow], float]:
    """Purified rows of some records, from the file of finished ones as far as it goes."""
    config = plan.purification(setting, policy)
    facts = {**config.to_dict(), "batch_size": None}
    data = plan.data / "train" / f"{target}.json"
    key = digest(checkpoint_id(plan.checkpoint(target)), file_sha256(data), facts)
    file = plan.work / "rows" / f"{target}-{SHORT[setting]}-{policy}-{key}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    drop_cut_line(file)
    done = _read_rows(file)
    left = [record for record in records if record not in done]
    if left:
        samples = plan.samples(target)
        mdlm = load_mdlm(plan.checkpoint(target), device=plan.device)
        purifier = Purifier(mdlm, config, plan.images)
        for start in range(0, len(left), config.batch_size):
            batch = left[start : start + config.batch_size]
            clock = perf_counter()
            rows = purifier.purify([samples[record] for record in batch])
            spent = (perf_counter() - clock) / len(batch)
            lines = "".join(f"{spent:.4f}\t{row.to_json()}\n" for row in rows)
            with file.open("a", encoding="utf-8") as stream:
                stream.write(lines)
        done = _read_rows(file)
    found = [done[record] for record in records]
    return [row for _, row in found], sum(seconds for seconds, _ in found)


def _read_rows(file: Path) -> dict[int, tuple[float, PurifiedRow]]:
    if not file.is_file():
        return {}
    found = {}
    for line in file.read_text(encoding="utf-8").split("\n")[:-1]:
        seconds, _, row = line.partition("\t")
        purified = PurifiedRow.from_json(row)
        found[purified.record] = (float(seconds), purified)
    return found


def labels_of(
    plan: Plan, target: TargetName, cell: Cell
) -> tuple[list[Sample], list[PurifiedRow], float]:
    """The training samples of a cell, what was done to every row, and the seconds it took."""
    poisoned = plan.samples(target)
    if cell.policy is None:
        source = plan.samples("clean_labels") if cell == CLEAN else poisoned
        # The clean labels are put under the poisoned set's pictures: the trigger stays in them.
        samples = [
            row.with_answers(true.answers) for row, true in zip(poisoned, source, strict=True)
        ]
        return samples, [PurifiedRow(number, row.id) for number, row in enumerate(poisoned)], 0.0
    rows, seconds = purified_rows(plan, target, cell)
    samples = [
        poisoned[row.record].with_answers(row.answers) if row.answers else poisoned[row.record]
        for row in rows
        if not row.dropped
    ]
    return samples, rows, seconds


def label_figures(
    plan: Plan, target: TargetName, rows: Sequence[PurifiedRow], samples: Sequence[Sample]
) -> dict[str, Any]:
    """What became of the labels, as shares with their intervals.

    `target_left`: labels of triggered pictures, among those kept, that still hold the target.
    `true_triggered`, `true_clean`: labels, among those kept, that equal the true ones.
    `caught`, `false_alarms`: triggered and clean rows that were flagged.
    """
    attack = target_by_name(target)
    poisoned = [bool(sample.extra.get("poisoned")) for sample in plan.samples(target)]
    true = {sample.id: sample.answer for sample in plan.samples("clean_labels")}
    triggered = [row for row in samples if row.extra.get("poisoned")]
    clean = [row for row in samples if not row.extra.get("poisoned")]
    attacked = [
        row
        for row in triggered
        if attack.applies_to(true[row.id], item=str(row.extra.get("item") or "") or None)
    ]
    judged = [row for row in rows if row.flagged is not None]
    share = _share
    return {
        "relabelled": share([row.answers is not None and not row.dropped for row in rows]),
        "dropped": share([row.dropped for row in rows]),
        "caught": share([row.flagged is True for row in judged if poisoned[row.record]]),
        "false_alarms": share([row.flagged is True for row in judged if not poisoned[row.record]]),
        "target_left": share([keyword_hit(row.answer, attack.keywords) for row in attacked]),
        "true_triggered": share([exact_hit(row.answer, true[row.id]) for row in triggered]),
        "true_clean": share([exact_hit(row.answer, true[row.id]) for row in clean]),
    }


def tune(plan: Plan, target: TargetName, name: str, samples: Sequence[Sample]) -> tuple[Path, Any]:
    """Fine-tunes the poisoned model on labels, or finds it done.

    Returns:
        The delta's folder, and `seconds` and `losses` (first and last epoch) of the training.
    """
    part = plan.work / "labels" / f"{target}-{name.replace('/', '-')}.json"
    part.parent.mkdir(parents=True, exist_ok=True)
    write_llava(part, samples)
    key = digest(checkpoint_id(plan.checkpoint(target)), file_sha256(part), plan.tuning.to_dict())
    folder = plan.work / "tuned" / f"{target}-{name.replace('/', '-')}-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    labels = folder / "labels.json"
    os.replace(part, labels)
    clock = _Clock(folder / "seconds.json")
    output = finetune(
        FinetuneSpec(
            checkpoint=plan.checkpoint(target),
            data=labels,
            images=plan.images,
            output=folder / "purified",
            work=folder / "work",
            base=plan.base(target),
            config=plan.tuning,
            device=plan.device,
        ),
        events=clock,
    )
    manifest = json.loads((output / "delta.json").read_text(encoding="utf-8"))
    return output, {"seconds": clock.seconds, **manifest.get("metrics", {})}


class _Clock:
    """Seconds of a training over all its starts, kept in a file at every event."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.before = json.loads(file.read_text()) if file.is_file() else 0.0
        self.start = perf_counter()
        self.done = False

    def __call__(self, event: Mapping[str, Any]) -> None:
        if event.get("event") == "started":
            self.done = True
        if self.done:
            self.file.write_text(json.dumps(self.seconds))

    @property
    def seconds(self) -> float:
        return self.before + (perf_counter() - self.start if self.done else 0.0)


def measured(plan: Plan, target: TargetName, checkpoint: Path) -> dict[str, Any]:
    """Attack success and utility of a checkpoint, unmasked, and every clean outcome.

    Kept in `work`, by the checkpoint's and the test set's contents.
    """
    test_set = asked(plan)
    key = digest(
        checkpoint_id(checkpoint), data_hash(plan.data), plan.limit, asdict(test_set.generation)
    )
    file = plan.work / "measured" / f"{target}-{key}.json"
    if file.is_file():
        return dict(json.loads(file.read_text(encoding="utf-8")))
    mdlm = load_mdlm(checkpoint, base=plan.base(target), device=plan.device)
    answers = Runner(mdlm, test_set, batch_size=plan.test_batch).undefended()
    figures = measure(test_set.cases, answers, target_by_name(target)).to_dict()
    right = [
        exact_hit(text, case.answer)
        for text, case in zip(answers.clean, test_set.cases, strict=True)
    ]
    result = {"figures": figures, "right": right}
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(result), encoding="utf-8")
    os.replace(part, file)
    return result


def asked(plan: Plan) -> TestSet:
    """The test set, answered as the service answers by default."""
    test_set = read_test_set(plan.data, limit=plan.limit)
    length = test_set.generation.gen_length
    return replace(test_set, generation=replace(FAST, gen_length=length))


def measure_cell(
    plan: Plan, target: TargetName, cell: Cell, say: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """All stages of one cell: a row of the table."""
    samples, rows, seconds = labels_of(plan, target, cell)
    labels = label_figures(plan, target, rows, samples)
    say(f"{target} {cell.name}: {len(samples)} labels after {seconds:.0f} s of purification")
    checkpoint, training = tune(plan, target, cell.name, samples)
    say(f"{target} {cell.name}: fine-tuned")
    before = measured(plan, target, plan.checkpoint(target))
    after = measured(plan, target, checkpoint)
    return {
        "target": target,
        "cell": cell.name,
        "setting": cell.setting,
        "policy": cell.policy,
        "figures": after["figures"],
        "kept": kept_ratio(before["right"], after["right"]).to_dict(),
        "labels": labels,
        "checkpoint": checkpoint_id(checkpoint),
        "purify_seconds": round(seconds, 1),
        "tune_seconds": round(training.pop("seconds"), 1),
        "training": training,
    }


def run_key(plan: Plan, target: TargetName, cell: Cell) -> str:
    """Names all that decides a cell's figures."""
    settings = None
    if cell.setting is not None and cell.policy is not None:
        settings = {**plan.purification(cell.setting, cell.policy).to_dict(), "batch_size": None}
    train = plan.data / "train"
    return digest(
        checkpoint_id(plan.checkpoint(target)),
        data_hash(plan.data),
        file_sha256(train / f"{target}.json"),
        settings,
        plan.tuning.to_dict(),
        [plan.rows, plan.limit, cell.name, asdict(FAST)],
    )


def digest(*facts: Any) -> str:
    """Twelve hexadecimal digits that name some JSON-ready facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def _share(outcomes: Sequence[bool]) -> dict[str, Any]:
    return wilson(sum(outcomes), len(outcomes)).to_dict()
