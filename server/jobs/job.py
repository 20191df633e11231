"""One job as its stages see it: what is asked, and where its outputs go in the shared store."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from purifier.data.dataset import DataSet, open_dataset
from server.jobs.settings import JobSettings, settings_of
from server.jobs.spec import JobSpec, Sources
from server.store.checkpoint_fetch import tuned_folder
from server.store.file_tables import purified_folder
from server.store.jobs import JobRecord


@dataclass(frozen=True)
class Job:
    """One job.

    Attributes:
        id: The job's id.
        spec: What is asked.
        sources: Where its inputs lie.
        key_id: Who asked.
    """

    id: str
    spec: JobSpec
    sources: Sources
    key_id: str | None = None

    @classmethod
    def of(cls, record: JobRecord) -> Job:
        """The job of a row."""
        spec, sources = JobSpec.from_dict(record.spec), Sources.from_dict(record.sources)
        return cls(record.id, spec, sources, record.key_id)

    @cached_property
    def settings(self) -> JobSettings:
        """Checked settings."""
        return settings_of(self.spec)

    def dataset(self) -> DataSet:
        """The data set that is purified.

        Raises:
            DataError: If it cannot be read.
        """
        sources = self.sources
        return open_dataset(sources.data, images=sources.images, mark_images=self.spec.mark_images)

    @property
    def folder(self) -> str:
        """Everything that belongs to the job."""
        return f"jobs/{self.id}"

    @property
    def plan(self) -> str:
        """Row count, bad rows, shard ranges, hash of the data."""
        return f"jobs/{self.id}/plan.json"

    @property
    def detection(self) -> str:
        """Folder of the detector that the training set showed, if any."""
        return f"jobs/{self.id}/detection"

    def shard(self, number: int) -> str:
        """What a finished shard says of itself: its file, hash and counts."""
        return f"jobs/{self.id}/shards/{number:05d}.json"

    def shard_rows(self, number: int, sha256: str) -> str:
        """The purified rows of a shard, JSON lines; named by content."""
        return f"jobs/{self.id}/shards/{number:05d}.{sha256[:16]}.jsonl"

    @property
    def shards(self) -> str:
        return f"jobs/{self.id}/shards"

    @property
    def merged(self) -> str:
        """Folder of the purified data set and its side table."""
        return purified_folder(self.id)

    @property
    def tuning(self) -> str:
        """Folder of the state that a stopped fine-tuning goes on from."""
        return f"jobs/{self.id}/tuning"

    @property
    def tuned(self) -> str:
        """Folder of the fine-tuned checkpoint."""
        return tuned_folder(self.id)

    @property
    def evaluation(self) -> str:
        """Folder of `evaluation.json` and the pictures of its examples."""
        return f"jobs/{self.id}/evaluation"

    @property
    def staged(self) -> str:
        """Id of the staged checkpoint."""
        return f"jobs/{self.id}/staged.json"

    @property
    def verdict(self) -> str:
        """What the gate said."""
        return f"jobs/{self.id}/verdict.json"

    @property
    def report(self) -> str:
        return f"jobs/{self.id}/report"

    @property
    def result_name(self) -> str:
        """Name of the new checkpoint, before its hash."""
        name = self.spec.model.partition("@")[0]
        return f"{name}-{self.spec.suffix or 'purified'}"
