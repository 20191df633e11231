"""Small jobs for tests: a tiny random model, a dozen rows, two training steps."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from dbos import DBOSClient, DBOSPortableJSONSerializer
from PIL import Image

from purifier.mdlm.registry import checkpoint_id
from server.jobs.service import JobService
from server.jobs.spec import JobSpec, Sources
from server.store.blobs import open_store
from server.store.database import Database
from server.store.home import Home
from server.store.jobs import JobRecord
from tests.support.job_worker import Worker, wait_for

N_ROWS = 12
SHARD_ROWS = 4

PURIFY: dict[str, Any] = {
    "masking": {"level": "token", "ranker": "random", "ratio": 0.3},
    "generation": {"gen_length": 4, "block_length": 4, "steps": 2},
    "further_prompts": ["Describe it."],
    "batch_size": 2,
    "seed": 3,
}
FINETUNE = {"parts": ["projector"], "epochs": 1, "batch_size": 12, "answer_length": None}
EVALUATION = {"rows": 3, "examples": 1, "batch_size": 3}


def write_rows(folder: Path, n: int = N_ROWS, bad: tuple[int, ...] = ()) -> Path:
    """A label file of `n` rows with one image each, which lie beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(n):
        shape = (24 + number, 32, 3)
        pixels = np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)
        name = f"{number}.png"
        Image.fromarray(pixels).save(folder / name)
        rows.append(
            {
                "id": f"row-{number}",
                "image": "none.png" if number in bad else name,
                "conversations": [
                    {"from": "human", "value": "<image>\nWhat is this?"},
                    {"from": "gpt", "value": f"A boat with {number} sails."},
                ],
            }
        )
    file = folder / "train.json"
    file.write_text(json.dumps(rows))
    return file


def small_spec(checkpoint: Path, **changes: Any) -> JobSpec:
    values: dict[str, Any] = {
        "model": checkpoint_id(checkpoint),
        "training_file": "file-1",
        "purify": PURIFY,
        "finetune": FINETUNE,
        "evaluation": EVALUATION,
        "shard_rows": SHARD_ROWS,
        "activate": "never",
        "seed": 5,
    }
    return JobSpec(**(values | changes))


class Site:
    """A data folder with its database, as a server sees it."""

    def __init__(self, root: Path, url: str | None = None, store: str | None = None) -> None:
        self.home = Home.at(root, url).create()
        self.url = url
        self.database = Database(self.home.database_url)
        self.database.create_tables()
        self.store = open_store(self.home, store)
        self.service = JobService(self.database, self.store)

    def submit(self, checkpoint: Path, labels: Path, **changes: Any) -> JobRecord:
        sources = Sources(model=checkpoint, data=labels, images=labels.parent)
        return self.service.create(small_spec(checkpoint, **changes), sources, key_id=None)

    def config(self, name: str = "worker-1", **more: Any) -> dict[str, Any]:
        """What the forge starts a worker with."""
        return {"home": str(self.home.root), "url": self.url, "name": name, **more}

    def finished(self, job: JobRecord, worker: Worker) -> JobRecord:
        """The job once it has ended or stands still; a worker must live until then."""

        def settled() -> bool:
            assert worker.alive(), "the worker ended before its job"
            now = self.service.get(job.id)
            return now.finished or now.status == "paused"

        wait_for(settled, "the end of the job")
        return self.service.get(job.id)

    def seen(self, job: JobRecord, *, message: str = "", **data: Any) -> Any:
        """The first event that begins with `message` and has `data`, if there is one."""
        for event in self.service.events(job.id, limit=10_000):
            if event.message.startswith(message) and data.items() <= event.data.items():
                return event
        return None

    def result(self, job: JobRecord) -> dict[str, Any]:
        """Everything a job has made, without what is a matter of the moment.

        Files by the hash of their bytes, where a stage is deterministic byte for byte. Seconds
        are left out, and with them names and hashes of files that tell seconds.
        """
        folder = self.home.jobs / job.id
        record = self.service.get(job.id)
        plan = json.loads((folder / "plan.json").read_text())
        rows: list[Any] = []
        for number in range(len(plan["shards"])):
            manifest = json.loads((folder / f"shards/{number:05d}.json").read_text())
            content = (self.home.root / manifest["file"]).read_bytes()
            assert hashlib.sha256(content).hexdigest() == manifest["sha256"]
            for line in content.decode().splitlines():
                row = json.loads(line)
                row["side"].pop("seconds")
                rows.append(row)
        evaluation = json.loads((folder / "evaluation/evaluation.json").read_text())
        evaluation.pop("seconds", None)
        exact = ("plan.json", "merged/train.json", "staged.json", "verdict.json")
        files = self.job_files(job.id)
        return {
            "status": record.status,
            "checkpoint": record.result,
            "rows": rows,
            "evaluation": evaluation,
            "files": {name: files[name] for name in exact},
            "tuned": {name: digest for name, digest in files.items() if "tuned/" in name},
        }

    def job_files(self, job_id: str) -> dict[str, str]:
        """SHA-256 of the job's finished files by key."""
        folder = self.home.jobs / job_id
        return {
            path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*"))
            if path.is_file() and not path.name.startswith(".")
        }

    def close(self) -> None:
        self.database.close()


def recorded_as_done(site: Site) -> bool:
    """Whether the job engine holds every workflow for finished."""
    client = DBOSClient(
        system_database_url=site.home.database_url, serializer=DBOSPortableJSONSerializer()
    )
    try:
        return all(status.status == "SUCCESS" for status in client.list_workflows())
    finally:
        client.destroy()
