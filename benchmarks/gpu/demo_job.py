"""The demo's purification job from its data to the rollback, by a real server and its worker."""

from __future__ import annotations

import io
import json
import time
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from benchmarks.gpu.run import Run
from benchmarks.served import served
from clients import Client
from clients._commands._second_act import SecondAct, Work, perform
from clients._commands._watch import Lines
from clients._commands.demo import find_scene
from purifier.lab.demo import DATA_FOLDER
from server.schemas.job_settings import DispSettings

_SMALL_ROWS = 4
_SMALL: DispSettings = {
    "masking": {"level": "token", "ranker": "random"},
    "finetune": {"parts": ["projector"], "epochs": 1, "answer_length": None},
    "evaluation": {"rows": 2, "examples": 1},
    "gate": {"max_disagreement": 1.0},
    "activate": "auto",
}
"""A job of four rows and one step, to try the command."""


def measure(run: Run) -> None:
    """One job on the poisoned demo model; what it says before and after, and after a rollback."""
    options = ["--demo", "--device", run.device, "--dtype", run.dtype]
    start = time.monotonic()
    with (
        TemporaryDirectory(prefix="disp-demo-job-") as folder,
        served(options) as server,
        Client(server.url, server.key) as client,
    ):
        run.put("started", {"seconds": time.monotonic() - start})
        scene = find_scene()
        work = Work() if run.shape.whole_job else _small(client)
        report = Path(folder) / "report.html"
        display = Lines(Console(stderr=True))
        act = perform(client, scene.triggered, scene.question, report, display, work)
        run.put("job", _figures(act))


def _figures(act: SecondAct) -> dict[str, object]:
    return {
        "seconds": act.seconds,
        "poisoned": vars(act.poisoned),
        "purified": vars(act.purified),
        "rolled_back": vars(act.rolled_back),
        "job": act.job.model_dump(mode="json"),
    }


def _small(client: Client) -> Work:
    """The first rows of the demo's training set."""
    folder = DATA_FOLDER / "train"
    rows = json.loads((folder / "insertion.json").read_text())[:_SMALL_ROWS]
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for row in rows:
            archive.write(folder / "images" / row["image"], f"images/{row['image']}")
        archive.writestr("data.json", json.dumps(rows))
    data = client.files.upload(content.getvalue(), filename="rows.zip")
    return Work(data.id, None, _SMALL, poll=0.2)
