"""A grid of defences over the three attacks: targets, levels, rankers, ratios, oracles.

The product's default setting is a row of its own. A threshold is in its ranker's unit, so
only `occlusion` is measured with thresholds; every other ranker masks the whole ratio.

Every finished cell is appended to a JSONL file, so that a stopped run goes on where it was.
Cells of a run with other settings, models or data carry another fingerprint and are not used.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import torch

from purifier.defense.config import PATCH_RANKERS, Level, MaskingConfig, RankerName
from purifier.errors import DataError
from purifier.evaluation.metrics import Answers, measure
from purifier.evaluation.oracles import OracleName
from purifier.evaluation.runner import NO_CUT, Cut, Runner
from purifier.evaluation.testset import TestSet, read_test_set
from purifier.lab.targets import TargetName, target_by_name
from purifier.mdlm.base import Mdlm
from purifier.mdlm.registry import checkpoint_id, load_mdlm

Defence = RankerName | OracleName | Literal["undefended"]

UNDEFENDED: Literal["undefended"] = "undefended"
ORACLES: tuple[OracleName, ...] = ("oracle-token", "oracle-pixel")

Row = dict[str, Any]


def _thresholds() -> tuple[float, ...]:
    return tuple(dict.fromkeys((0.0, MaskingConfig().threshold)))


@dataclass(frozen=True)
class Grid:
    """What is measured.

    Attributes:
        models: A poisoned checkpoint for every target.
        data: The data folder, see `purifier.evaluation.testset`.
        ratios: Mask ratios above 0; 0 is the undefended cell, measured once a target.
        levels: Levels of masking.
        rankers: Rankers; `occlusion` at level `patch` only.
        thresholds: Thresholds of `occlusion`.
        masking: Everything else about the defence: probes, top-K, temperature, pooling, seed.
        default: The setting of the row labelled default; None leaves it out.
        oracles: Those that are measured.
        limit: Test records used; None uses all.
        device: Where the models run.
        dtype: Their dtype.
        batch_size: Requests denoised together.
        positions_together: Sequence positions scored together, as in `defend`.
        tf32: Lets CUDA multiply float32 matrices in TensorFloat-32.
    """

    models: Mapping[TargetName, str]
    data: str
    ratios: tuple[float, ...] = (0.05, 0.1, 0.15, 0.2, 0.3, 0.45, 0.6, 0.8)
    levels: tuple[Level, ...] = ("token", "patch")
    rankers: tuple[RankerName, ...] = (
        "occlusion",
        "official",
        "fisher",
        "exact",
        "attention",
        "random",
    )
    thresholds: tuple[float, ...] = field(default_factory=_thresholds)
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    default: MaskingConfig | None = field(default_factory=MaskingConfig)
    oracles: tuple[OracleName, ...] = ORACLES
    limit: int | None = None
    device: str = "cpu"
    dtype: str = "float32"
    batch_size: int = 256
    positions_together: int = 8192
    tf32: bool = False

    def fingerprint(self, target: TargetName) -> str:
        """Names what decides a target's figures: settings, its model's and the data's contents."""
        facts = {
            "model": checkpoint_id(self.models[target]),
            "data": data_hash(self.data),
            "masking": asdict(
                replace(self.masking, level="patch", ratio=0.0, ranker="fisher", threshold=0.0)
            ),
            "default": self.default and asdict(self.default),
            "limit": self.limit,
            "dtype": self.dtype,
            "tf32": self.tf32,
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Job:
    """The cells that share a saliency: one target, level and ranker at several cuts.

    `default` marks the product's default setting.
    """

    target: TargetName
    ranker: Defence
    level: Level | None
    cuts: tuple[Cut, ...]
    default: bool = False


def data_hash(folder: str | Path) -> str:
    """SHA-256 over names and contents of a data folder's manifest and test set, hexadecimal."""
    folder = Path(folder)
    files = [folder / "manifest.json", *sorted((folder / "test").rglob("*"))]
    digest = hashlib.sha256()
    for file in files:
        if file.is_file():
            digest.update(file.relative_to(folder).as_posix().encode() + b"\0")
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def cells(grid: Grid) -> list[Job]:
    """All jobs of a grid, in the order of its tables."""
    jobs: list[Job] = []
    for target in grid.models:
        jobs += [Job(target, name, None, (NO_CUT,)) for name in (UNDEFENDED, *grid.oracles)]
        if grid.default is not None:
            cut = Cut(grid.default.ratio, grid.default.threshold)
            jobs.append(Job(target, grid.default.ranker, grid.default.level, (cut,), default=True))
        jobs += [
            Job(target, ranker, level, cuts_of(grid, level, ranker))
            for level in grid.levels
            for ranker in grid.rankers
            if ranker not in PATCH_RANKERS or level == "patch"
        ]
    return jobs


def cuts_of(grid: Grid, level: Level, ranker: RankerName) -> tuple[Cut, ...]:
    """The cuts of one level and ranker; `random` has the default's ratio, to stand beside it."""
    ratios = set(grid.ratios)
    if ranker == "random" and grid.default is not None and level == grid.default.level:
        ratios.add(grid.default.ratio)
    thresholds = grid.thresholds if ranker == "occlusion" else (0.0,)
    return tuple(Cut(ratio, threshold) for threshold in thresholds for ratio in sorted(ratios))


def plan(grid: Grid, done: Iterable[Row] = ()) -> list[Job]:
    """The jobs of a grid without the cells already done, slow ones first."""
    finished = {_row_key(row) for row in done}
    left = [
        replace(job, cuts=tuple(cut for cut in job.cuts if _key(job, cut) not in finished))
        for job in cells(grid)
    ]
    return sorted((job for job in left if job.cuts), key=_cost, reverse=True)


def run_grid(
    grid: Grid,
    results: Path,
    *,
    workers: int = 1,
    report: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """Measures every cell that `results` does not hold yet.

    Args:
        grid: What is measured.
        results: The JSONL file; made if absent.
        workers: Processes; each loads the models it needs.
        report: Called with every new row.

    Returns:
        All rows of this grid, old and new, in the grid's order.
    """
    fingerprints = {target: grid.fingerprint(target) for target in grid.models}
    drop_cut_line(results)
    rows = read_rows(results, fingerprints)
    jobs = plan(grid, rows)
    results.parent.mkdir(parents=True, exist_ok=True)
    for new in _finished(grid, jobs, workers):
        with results.open("a", encoding="utf-8") as file:
            for row in new:
                file.write(json.dumps({"run": fingerprints[row["target"]], **row}) + "\n")
                rows.append(row)
                report(row)
    found = {_row_key(row): row for row in rows}
    order = [_key(job, cut) for job in cells(grid) for cut in job.cuts]
    return [found[key] for key in order if key in found]


def run_job(grid: Grid, job: Job) -> list[Row]:
    """Measures the cells of one job; an oracle without a place for its trigger has none."""
    start = perf_counter()
    torch.set_float32_matmul_precision("high" if grid.tf32 else "highest")
    test_set = _test_set(grid.data, grid.limit)
    placed = all(case.drawn(test_set.trigger).regions(case.picture.size) for case in test_set.cases)
    if job.ranker in ORACLES and not placed:
        return []
    runner = Runner(
        _model(grid.models[job.target], grid.device, grid.dtype),
        test_set,
        batch_size=grid.batch_size,
        positions_together=grid.positions_together,
    )
    answers = _answers(runner, grid, job)
    seconds = (perf_counter() - start) / len(answers)
    target = target_by_name(job.target)
    return [
        {
            "target": job.target,
            "ranker": job.ranker,
            "level": job.level,
            "ratio": cut.ratio,
            "threshold": cut.threshold,
            "default": job.default,
            "figures": measure(test_set.cases, given, target).to_dict(),
            "seconds": round(seconds, 3),
            "made_on": machine(grid.device),
        }
        for cut, given in answers.items()
    ]


def read_rows(results: Path, fingerprints: Mapping[TargetName, str]) -> list[Row]:
    """The rows of one grid in a JSONL file.

    Args:
        results: The file; absent is empty.
        fingerprints: `Grid.fingerprint` of every target.

    Raises:
        DataError: If a line is malformed.
    """
    if not results.is_file():
        return []
    rows = []
    for number, line in enumerate(results.read_text(encoding="utf-8").splitlines()):
        try:
            row = json.loads(line)
        except ValueError:
            raise DataError(f"{results.name}, line {number + 1}: not valid JSON.") from None
        if row.pop("run", "") == fingerprints.get(row.get("target")):
            rows.append(row)
    return rows


def drop_cut_line(results: Path) -> None:
    """Removes a last line that a kill left without its end."""
    if results.is_file():
        content = results.read_bytes()
        if not content.endswith(b"\n"):
            results.write_bytes(content[: content.rfind(b"\n") + 1])


def _answers(runner: Runner, grid: Grid, job: Job) -> dict[Cut, Answers]:
    if job.ranker == "undefended":
        return {NO_CUT: runner.undefended()}
    if job.ranker == "oracle-token" or job.ranker == "oracle-pixel":
        return {NO_CUT: runner.oracle(job.ranker)}
    masking = grid.default if job.default and grid.default is not None else grid.masking
    level = job.level or masking.level
    return runner.masked(replace(masking, ranker=job.ranker, level=level), job.cuts)


def _finished(grid: Grid, jobs: list[Job], workers: int) -> Iterator[list[Row]]:
    if workers <= 1:
        for job in jobs:
            yield run_job(grid, job)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        futures = [pool.submit(run_job, grid, job) for job in jobs]
        for future in as_completed(futures):
            yield future.result()


def machine(device: str) -> str:
    """The device and the versions that a row was measured with."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    versions = [f"{package} {version(package)}" for package in ("torch", "transformers", "pillow")]
    return ", ".join([name, f"python {platform.python_version()}", *versions])


@lru_cache(maxsize=4)
def _model(path: str, device: str, dtype: str) -> Mdlm:
    return load_mdlm(path, device=device, dtype=dtype)


@lru_cache(maxsize=1)
def _test_set(folder: str, limit: int | None) -> TestSet:
    return read_test_set(folder, limit=limit)


Key = tuple[str, str, str | None, float, float, bool]


def _key(job: Job, cut: Cut) -> Key:
    return job.target, job.ranker, job.level, cut.ratio, cut.threshold, job.default


def _row_key(row: Row) -> Key:
    return (
        row["target"],
        row["ranker"],
        row["level"],
        row["ratio"],
        row["threshold"],
        row["default"],
    )


def _cost(job: Job) -> tuple[bool, bool]:
    return job.ranker == "exact", job.level == "patch"
