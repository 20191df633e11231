"""The first stages of a job: plan the shards, relabel them, merge them.

Plain functions over the shared store. Each looks first whether its output is there already,
and puts it there whole or not at all; what they compute depends on the job alone, not on the
worker, the shard's turn or how often it was begun.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

from purifier.data.audit import BadRowLimit, RowAudit
from purifier.data.dataset import BadRow, DataSet, check_row, open_dataset
from purifier.data.sample import Sample
from purifier.data.write_back import Change, write_changed
from purifier.errors import DataError
from purifier.purification.local import change_of
from purifier.purification.row import PurifiedRow
from server.jobs.job import Job
from server.store.blobs import BlobDamaged, BlobStore, is_key

Check = Callable[[], None]
"""Called between batches; raises `Interrupted` to end the work."""

_CHECK_ROWS = 64
_SLICE_BATCHES = 4
_SHOWN = 10
"""How many rows that could not be purified are named."""


class Relabels(Protocol):
    """What `relabel` needs of a `Purifier`."""

    def purify(self, samples: list[Sample], *, check: Check | None = None) -> list[PurifiedRow]: ...


class Rows:
    """Rows of a data set for shards that mostly come in order.

    A reader stays where the last shard ended, so that formats without random access are read
    once by a worker and not once for every shard.
    """

    def __init__(self, dataset: DataSet) -> None:
        self.dataset = dataset
        self._lock = threading.Lock()
        self._next = 0
        self._reader: Iterator[Sample | BadRow] = iter(())

    @cached_property
    def sha256(self) -> str:
        """Hash of the label file."""
        return self.dataset.fingerprint()

    def read(self, start: int, stop: int) -> list[Sample | BadRow]:
        """The rows numbered from `start` up to `stop`.

        Raises:
            DataError: If the file is damaged, or has fewer rows than it had.
        """
        with self._lock:
            if start != self._next or start == 0:
                self._reader = self.dataset.rows(start)
            self._next = -1
            rows = list(islice(self._reader, stop - start))
            self._next = stop
        if len(rows) < stop - start:
            raise DataError(
                f"{self.dataset.path.name} has become shorter since the job was planned.",
                param="training_file",
            )
        return rows


def plan(job: Job, store: BlobStore, check: Check) -> dict[str, Any]:
    """Goes through the data set once and cuts it into shards.

    Returns:
        The plan: `rows`, `format`, `sha256` of the label file, `bad` [[record, reason], ...],
        `audit` (counts and examples of bad rows), `shards` [[start, stop], ...], `test_rows`.

    Raises:
        DataError: If the data set cannot be read or has too many bad rows.
    """
    if store.exists(job.plan):
        return dict(store.read_json(job.plan))
    dataset = job.dataset()
    _require_keys(dataset)
    audit = RowAudit(BadRowLimit(share=job.spec.bad_rows))
    bad: list[tuple[int, str]] = []
    for number, row in enumerate(dataset.rows()):
        if number % _CHECK_ROWS == 0:
            check()
        broken = check_row(row, dataset.images) if isinstance(row, Sample) else row
        found = audit.see(broken or row)
        if found is not None:
            bad.append((number, found.reason))
    audit.finish()
    size = job.spec.shard_rows
    made = {
        "rows": audit.rows,
        "format": dataset.format,
        "sha256": dataset.fingerprint(),
        "bad": bad,
        "audit": audit.to_dict(),
        "shards": [[start, min(start + size, audit.rows)] for start in range(0, audit.rows, size)],
        "test_rows": _count(job),
    }
    store.write_json(job.plan, made)
    return dict(store.read_json(job.plan))


def _require_keys(dataset: DataSet) -> None:
    """Refuses names that the store does not take before anything is computed."""
    for path in dataset.file.paths:
        name = path.relative_to(dataset.path if dataset.path.is_dir() else path.parent)
        if not is_key(name.as_posix()):
            raise DataError(
                f"{name} must be renamed: use letters, digits, spaces and . _ - + = , @ ( ).",
                param="training_file",
            )


def _count(job: Job) -> int:
    """Rows of the test set; 0 without one."""
    if job.sources.test is None:
        return 0
    return sum(1 for _ in open_dataset(job.sources.test, images=job.sources.test_images).rows())


def finished_shards(job: Job, store: BlobStore) -> dict[int, dict[str, Any]]:
    """Manifests of the shards that lie in the store, by number."""
    names = [key.rpartition("/")[2] for key in store.list(job.shards)]
    numbers = [int(name[:5]) for name in names if len(name) == 10 and name.endswith(".json")]
    return {number: store.read_json(job.shard(number)) for number in numbers}


def relabel(
    job: Job,
    store: BlobStore,
    number: int,
    rows: Callable[[], Rows],
    purifier: Callable[[], Relabels],
    check: Check,
    progress: Callable[[int], None],
) -> tuple[dict[str, Any], bool]:
    """Relabels one shard, unless that was done.

    Args:
        job: The job.
        store: The shared store.
        number: The shard.
        rows: Opens the data set.
        purifier: Loads the model; not called for a finished shard.
        check: Called between batches.
        progress: Told how many rows of the shard are done.

    Returns:
        The shard's manifest `{shard, file, sha256, rows, relabelled, flagged, dropped,
        problems, further, seconds}`, and whether it was computed now.

    Raises:
        DataError: If the data set cannot be read any more.
    """
    if store.exists(job.shard(number)):
        return dict(store.read_json(job.shard(number))), False
    check()
    began = perf_counter()
    made = store.read_json(job.plan)
    start, stop = made["shards"][number]
    skipped = {record for record, _ in made["bad"]}
    opened = rows()
    _require_unchanged(opened.dataset, opened.sha256, made)
    samples = [row for row in opened.read(start, stop) if isinstance(row, Sample)]
    samples = [row for row in samples if _record(row) not in skipped]
    purified: list[PurifiedRow] = []
    size = job.settings.purify.batch_size * _SLICE_BATCHES
    for at in range(0, len(samples), size):
        check()
        purified += purifier().purify(samples[at : at + size], check=check)
        progress(len(purified))
    content = "".join(f"{row.to_json()}\n" for row in purified).encode()
    sha256 = hashlib.sha256(content).hexdigest()
    check()
    store.write(job.shard_rows(number, sha256), content)
    manifest = {
        "shard": number,
        "file": job.shard_rows(number, sha256),
        "sha256": sha256,
        "rows": stop - start,
        "relabelled": sum(row.answers is not None for row in purified),
        "flagged": sum(row.flagged is True for row in purified),
        "dropped": sum(row.dropped for row in purified),
        "problems": sum(row.problem is not None for row in purified),
        "further": sum(len(row.further) for row in purified),
        "problem_rows": [[row.record, row.problem] for row in purified if row.problem][:_SHOWN],
        "seconds": round(perf_counter() - began, 3),
    }
    store.write_json(job.shard(number), manifest)
    return manifest, True


def shard_rows(manifest: dict[str, Any], store: BlobStore) -> list[PurifiedRow]:
    """The rows of a finished shard.

    Raises:
        BlobDamaged: If its file is not the one that its manifest names.
    """
    try:
        content = store.read(manifest["file"])
    except FileNotFoundError:
        raise BlobDamaged(f"{manifest['file']} is missing.") from None
    if hashlib.sha256(content).hexdigest() != manifest["sha256"]:
        raise BlobDamaged(f"{manifest['file']} was altered or damaged.")
    # Split as bytes: text would also be split at line separators inside an answer.
    return [PurifiedRow.from_json(line.decode()) for line in content.splitlines()]


def merge(job: Job, store: BlobStore, scratch: Path, check: Check) -> dict[str, Any]:
    """Writes the purified data set in the original's format, and the side table.

    Returns:
        `{label_file, rows, relabelled, flagged, dropped, bad, problems, further}`.

    Raises:
        DataError: If the data set has changed, or too many rows could not be purified.
        BlobDamaged: If a shard's file is damaged.
    """
    if store.has_folder(job.merged):
        return dict(store.folder_manifest(job.merged)["facts"])
    made = store.read_json(job.plan)
    dataset = job.dataset()
    _require_unchanged(dataset, dataset.fingerprint(), made)
    manifests = [store.read_json(job.shard(n)) for n in range(len(made["shards"]))]
    facts: dict[str, Any] = {
        name: sum(manifest.get(name, 0) for manifest in manifests)
        for name in ("relabelled", "flagged", "dropped", "problems", "further")
    }
    facts |= {"rows": made["rows"], "bad": len(made["bad"])}
    _require_few_problems(job, facts, _named(manifests))
    folder = scratch / "merged"
    further = bool(job.settings.purify.further_prompts)
    changes = _changes(manifests, made, store, check)
    written = write_changed(dataset, changes, folder, further=further)
    facts["label_file"] = written.relative_to(folder).as_posix()
    check()
    store.put_folder(job.merged, folder, facts)
    shutil.rmtree(folder)
    return facts


def _changes(
    manifests: list[dict[str, Any]], made: dict[str, Any], store: BlobStore, check: Check
) -> Iterator[Change]:
    """One change for every usable row and every bad one, in the order of their records."""
    bad = [Change(record, dropped=True, side={"reason": reason}) for record, reason in made["bad"]]
    for manifest in manifests:
        check()
        _, stop = made["shards"][manifest["shard"]]
        changes = [change_of(row) for row in shard_rows(manifest, store)]
        while bad and bad[0].record < stop:
            changes.append(bad.pop(0))
        yield from sorted(changes, key=lambda change: change.record)


def _require_unchanged(dataset: DataSet, sha256: str, plan: dict[str, Any]) -> None:
    if sha256 != plan["sha256"]:
        raise DataError(
            f"{dataset.path.name} was changed since the job was planned, or is another one on this "
            "worker.",
            param="training_file",
        )


def problems(job: Job, store: BlobStore) -> str | None:
    """A sentence about the rows that could not be purified, naming the first; None without any."""
    count = len(store.read_json(job.plan)["shards"])
    manifests = [store.read_json(job.shard(number)) for number in range(count)]
    total = sum(manifest["problems"] for manifest in manifests)
    if not total:
        return None
    return f"Rows that could not be purified: {total}. They are left out.{_named(manifests)}"


def _named(manifests: list[dict[str, Any]]) -> str:
    """The first rows that could not be purified, with their reasons; empty if there are none."""
    # Manifests of older versions do not name them.
    rows = [row for manifest in manifests for row in manifest.get("problem_rows", [])][:_SHOWN]
    named = ", ".join(f"record {record} ({problem})" for record, problem in rows)
    return f" The first: {named}." if named else ""


def _require_few_problems(job: Job, facts: dict[str, Any], named: str) -> None:
    unusable = facts["bad"] + facts["problems"]
    if unusable > job.spec.bad_rows * facts["rows"]:
        raise DataError(
            f"{unusable} of {facts['rows']} rows cannot be used or purified, more than the "
            f"{job.spec.bad_rows:.2%} that are allowed.{named} Mend the rows or raise bad_rows.",
            param="training_file",
        )


def _record(row: Sample) -> int:
    assert row.source is not None
    return row.source.record
