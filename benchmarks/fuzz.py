"""Fuzzing of the HTTP API from its own OpenAPI document, with keys of every scope.

    python -m benchmarks.fuzz --cases 5000

Starts a server with a tiny random model and sends generated requests to every operation. The page
it writes, docs/results/fuzz.md (figures in fuzz.json), says when an answer is wrong;
the exit status is 1 if one was. `--database-url` does the same on PostgreSQL.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import requests

from benchmarks.fuzz_cases import Caller, Known, Tally, fuzz
from benchmarks.served import served
from purifier.evaluation.report import markdown_table
from purifier.lab.demo_model import write_random_checkpoint
from server.security.keys import SCOPES, create_key, new_secret

RESULTS = Path(__file__).parents[1] / "docs" / "results"
JOBS = "/v1/fine_tuning/jobs"
ROW = {"conversations": [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": "A."}]}
_FINISHED = ("events", "report", "checkpoints")
_SHOWN = ("command", "database", "python", "schemathesis", "hypothesis", "seconds")
_PAGE = """\
# Fuzzing of the HTTP API

{total:,} generated requests to a running server ({database}): {wrong} answers were wrong, and
the server logged {errors} errors. A request comes from the server's own OpenAPI document, valid or
invalid, half of them with ids that the server knows; *questions* are chat requests that mostly
reach the model. Half are sent with a key of all scopes, the others with none, an unknown one, or
one of a single scope.

An answer is wrong if its status is 500 or above, if the document does not describe its status,
headers, media type or body, if an invalid request is not refused, or if a key gets in without the
scope. An operation without parameters has few different requests. Python {python}, schemathesis
{schemathesis}, hypothesis {hypothesis}, {seconds} s. `{command}`

{table}"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--database-url", help="postgresql+psycopg://... (SQLite)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="disp-fuzz-") as folder:
        model = Path(folder) / "tiny"
        write_random_checkpoint(model, seed=0)
        options = ["--model", str(model), "--device", "cpu", "--no-worker"]
        options += ["--database-url", args.database_url] if args.database_url else []
        with served(options) as server:
            callers = make_callers(server.keys_file, server.key)
            tallies = {}
            known = known_to(server.url, server.key)
            for label, tally in fuzz(server.url, callers, known, cases=args.cases, start=args.seed):
                tallies[label] = tally
                print(f"{label}: {tally.cases} {tally.statuses}", flush=True)
            errors = server.errors()
    facts = {
        "command": f"python -m benchmarks.fuzz --cases {args.cases} --seed {args.seed}",
        "database": "PostgreSQL" if args.database_url else "SQLite",
        "python": platform.python_version(),
        "schemathesis": version("schemathesis"),
        "hypothesis": version("hypothesis"),
        "seconds": round(time.monotonic() - begun),
        "logged_errors": errors,
    }
    write(facts, tallies, args.out)
    wrong = [failure for tally in tallies.values() for failure in tally.failures]
    print("\n".join([*wrong, *errors]))
    return 1 if wrong or errors else 0


def make_callers(keys_file: Path, all_scopes: str) -> dict[str, Caller]:
    """A key of every scope alone, one of all, an unknown one and none."""
    callers = {"none": Caller(None, frozenset()), "unknown": Caller(new_secret(), frozenset())}
    for scope in SCOPES:
        callers[scope] = Caller(create_key(keys_file, scope, [scope])[0], frozenset({scope}))
    callers["all"] = Caller(all_scopes, frozenset(SCOPES))
    return callers


def known_to(url: str, secret: str) -> Known:
    """Makes an upload and a job for an operation; a finished one where its end is waited for."""
    session = requests.Session()
    session.trust_env = False
    session.headers["authorization"] = f"Bearer {secret}"

    def sent(method: str, path: str, **body: Any) -> Any:
        answer = session.request(method, url + path, timeout=60, **body)
        answer.raise_for_status()
        return answer.json()

    def known(label: str) -> Mapping[str, Any]:
        content = json.dumps(ROW).encode()
        form = {"data": {"purpose": "fine-tune"}, "files": {"file": ("rows.jsonl", content)}}
        file_id = sent("POST", "/v1/files", **form)["id"]
        job_id = sent("POST", JOBS, json={"training_file": file_id})["id"]
        if label.rpartition("/")[2] in _FINISHED:
            sent("POST", f"{JOBS}/{job_id}/cancel")
        [checkpoint] = sent("GET", "/v1/checkpoints")["data"]
        ids = {"file_id": file_id, "job_id": job_id, "checkpoint_id": checkpoint["id"]}
        return {**ids, "training_file": file_id, "model": "default", "model_id": "default"}

    return known


def write(facts: Mapping[str, Any], tallies: Mapping[str, Tally], out: Path) -> None:
    """Writes figures and page."""
    total = sum(tally.cases for tally in tallies.values())
    wrong = sum(len(tally.failures) for tally in tallies.values())
    rows = [
        [
            f"`{label}`",
            str(tally.cases),
            ", ".join(f"{status}: {n}" for status, n in sorted(tally.statuses.items())),
            str(len(tally.failures)),
        ]
        for label, tally in tallies.items()
    ]
    cells = {
        label: {
            "cases": tally.cases,
            "statuses": {str(status): n for status, n in sorted(tally.statuses.items())},
            "failures": tally.failures,
        }
        for label, tally in tallies.items()
    }
    out.mkdir(parents=True, exist_ok=True)
    found = {**facts, "cases": total, "failures": wrong, "operations": cells}
    (out / "fuzz.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    text = _PAGE.format(
        total=total,
        wrong=wrong,
        errors=len(facts["logged_errors"]),
        table=markdown_table(["operation", "requests", "answers by status", "wrong"], rows),
        **{name: facts[name] for name in _SHOWN},
    )
    (out / "fuzz.md").write_text(text, "utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
