"""Heals the model that serves on a data set that may be poisoned, and goes back again.

python examples/purify.py scenes.zip report.html

The archive holds a label file and its images; `demo` in its place names the demo server's own
poisoned set. The key needs the scopes `jobs:read`, `jobs:write` and `models:admin`.
"""

import sys
from pathlib import Path

from clients import Client

data, page = sys.argv[1], Path(sys.argv[2])

with Client() as client:
    training_file = client.files.upload(data).id if Path(data).is_file() else data
    job = client.jobs.create(training_file, settings={"activate": "never"})
    for event in client.jobs.follow(job.id):
        print(event.message)
    job = client.jobs.get(job.id)
    if job.fine_tuned_model is None:
        sys.exit(f"The job {job.status}: {job.error.message if job.error else 'see its events'}")
    page.write_bytes(client.jobs.report_page(job.id))

    serving = client.checkpoints.activate(job.fine_tuned_model)
    print(f"{serving.id} serves, made from {serving.parent}")
    print(f"{client.checkpoints.rollback().id} serves again")
