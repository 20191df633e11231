from __future__ import annotations

import hashlib
from pathlib import Path

from purifier.purification.row import PurifiedRow
from server.jobs.relabelling import shard_rows
from server.store.blobs import BlobStore


def test_an_answer_may_hold_any_line_separator(tmp_path: Path) -> None:
    rows = [
        PurifiedRow(record=n, id=n, answers=(f"one{end}two",))
        for n, end in enumerate(("\n", "\r", "\x85", "\u2028", "\u2029", "\x1c", "\f"))
    ]
    content = "".join(f"{row.to_json()}\n" for row in rows).encode()
    store = BlobStore(tmp_path)
    store.write("rows.jsonl", content)
    manifest = {"file": "rows.jsonl", "sha256": hashlib.sha256(content).hexdigest()}
    assert shard_rows(manifest, store) == rows
