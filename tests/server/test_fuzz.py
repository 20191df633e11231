"""Generated requests to a running server: no 500, and no answer that is not described.

`python -m benchmarks.fuzz` sends thousands; these are some hundreds.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.fuzz import known_to, make_callers
from benchmarks.fuzz_cases import CHAT, JOBS, fuzz
from server.security.keys import SCOPES, create_key
from tests.support.described import operations
from tests.support.service import start_server, stop_server

CASES = 300


@pytest.mark.slow
def test_no_generated_request_is_answered_wrongly(tiny_checkpoint: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    secret, _ = create_key(keys, "all", SCOPES)
    process, url = start_server(
        ["--model", str(tiny_checkpoint), "--keys-file", str(keys), "--no-worker"]
    )
    try:
        callers = make_callers(keys, secret)
        tallies = dict(fuzz(url, callers, known_to(url, secret), cases=CASES, start=0))
    finally:
        stop_server(process)
    assert [failure for tally in tallies.values() for failure in tally.failures] == []
    labels = {f"{method} {path}" for method, path, _ in operations()}
    assert set(tallies) == {*labels, f"{CHAT}, questions", f"{JOBS}, jobs"}
    assert sum(tally.cases for tally in tallies.values()) >= 0.9 * CASES
    statuses = {status for tally in tallies.values() for status in tally.statuses}
    assert {200, 202, 400, 401, 403, 404, 415, 422} <= statuses
