"""Small jobs for tests: a tiny random model, a dozen rows, two training steps."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from purifier.mdlm.registry import checkpoint_id
from server.jobs.service import JobService
from server.jobs.spec import JobSpec, Sources
from server.jobs.worker import open_store
from server.store.database import Database
from server.store.home import Home
from server.store.jobs import JobRecord

N_ROWS = 12
SHARD_ROWS = 4

PURIFY = {
    "masking": {"level": "token", "ranker": "random", "ratio": 0.3},
    "generation": {"gen_length": 4, "block_length": 4, "steps": 2},
    "batch_size": 2,
    "seed": 3,
}
FINETUNE = {"parts": ["projector"], "epochs": 1, "batch_size": 6, "answer_length": None}
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

    def __init__(self, root: Path, url: str | None = None) -> None:
        self.home = Home.at(root, url).create()
        self.url = url
        self.database = Database(self.home.database_url)
        self.database.create_tables()
        self.store = open_store(self.home, None)
        self.service = JobService(self.database, self.store)

    def submit(self, checkpoint: Path, labels: Path, **changes: Any) -> JobRecord:
        sources = Sources(model=checkpoint, data=labels, images=labels.parent)
        return self.service.create(small_spec(checkpoint, **changes), sources, key_id=None)

    def config(self, name: str = "worker-1", **more: Any) -> dict[str, Any]:
        """What the forge starts a worker with."""
        return {"home": str(self.home.root), "url": self.url, "name": name, **more}

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
