"""`disp jobs`, `disp files` and `disp checkpoints` against the real service."""

from __future__ import annotations

import argparse
import io
import json
import threading
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from rich.console import Console

from clients import Client, cli
from clients._commands._watch import Bars, Lines, amounts, display_for, progress_text, watch
from clients._commands.jobs import settings_from
from clients._exceptions import ConnectionFailed, InvalidInput
from server.jobs.service import report_key
from server.schemas.jobs import Job
from server.store.attempts import Attempt, Attempts
from server.store.jobs import JobError
from tests.support.cut_proxy import cut_proxy
from tests.support.job_server import JobServer, data_archive
from tests.support.job_worker import wait_for

Run = Callable[..., "CompletedProcess[str]"]


class Told:
    """What a command ended with and printed."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    @property
    def json(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.out)
        return value


@pytest.fixture
def told(
    board: JobServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Told]:
    """Runs `disp` in this process, with the board and a key in its environment."""
    monkeypatch.setenv("DISP_BASE_URL", board.url)
    monkeypatch.setenv("COLUMNS", "300")

    def run(*words: str | Path, key: str = "alice") -> Told:
        monkeypatch.setenv("DISP_API_KEY", board.keys[key])
        code = cli.main([str(word) for word in words])
        return Told(code, *capsys.readouterr())

    return run


def test_files_are_uploaded_listed_and_removed(told: Callable[..., Told], tmp_path: Path) -> None:
    path = tmp_path / "scenes.zip"
    path.write_bytes(data_archive())
    first = told("files", "upload", path).out.strip()
    second = told("files", "upload", path, "--name", "other.zip", "--json").json
    assert second["filename"] == "other.zip"
    listed = told("files", "ls", "--limit", "1", "--json").json
    assert [one["id"] for one in listed["data"]] == [second["id"]]
    page = told("files", "ls", "--limit", "1")
    assert second["id"] in page.out
    assert page.err == f"more: --after {second['id']}\n"
    assert first in told("files", "ls", "--after", second["id"]).out
    assert told("files", "rm", first).out == f"{first} removed\n"
    gone = told("files", "rm", second["id"], "--json").json
    assert gone == {"data": [{"id": second["id"], "object": "file", "deleted": True}]}
    absent = told("files", "rm", first, "--json")
    assert (absent.code, absent.json["error"]["code"]) == (1, "file_not_found")
    folder = told("files", "upload", tmp_path)
    assert folder.code == 1
    assert "is a folder" in folder.err


def test_a_file_is_saved(
    told: Callable[..., Told], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "That."}]
    path = tmp_path / "labels.json"
    path.write_text(json.dumps([{"conversations": turns}]))
    made = told("files", "upload", path, "--name", "../rows.json").out.strip()
    assert told("files", "get", made).out == "rows.json\n"
    assert (tmp_path / "rows.json").read_bytes() == path.read_bytes()
    again = told("files", "get", made)
    assert (again.code, "there already" in again.err) == (1, True)
    saved = told("files", "get", made, "--output", tmp_path / "x" / "y.json", "--json").json
    assert saved["id"] == made
    assert Path(saved["path"]).read_bytes() == path.read_bytes()


def test_a_job_is_created_shown_and_steered(
    told: Callable[..., Told], data_id: str, tmp_path: Path
) -> None:
    settings = tmp_path / "settings.json"
    settings.write_text('{"policy": "drop_flagged", "finetune": {"epochs": 9, "rank": 2}}')
    made = told(
        *("jobs", "create", data_id, "--settings", settings, "--policy", "flag_then_relabel"),
        *("--set", "finetune.epochs=2", "--set", "prompt=Describe it.", "--activate", "never"),
        *("--seed", "3", "--suffix", "mine", "--metadata", "team=vision", "--json"),
    ).json
    disp = made["method"]["disp"]
    assert (disp["policy"], disp["prompt"], disp["activate"]) == (
        "flag_then_relabel",
        "Describe it.",
        "never",
    )
    assert (disp["finetune"]["epochs"], disp["finetune"]["rank"]) == (2, 2)
    assert (made["seed"], made["suffix"], made["metadata"]) == (3, "mine", {"team": "vision"})
    shown = told("jobs", "show", made["id"])
    for text in (made["id"], "queued", data_id, "vision", "flag_then_relabel"):
        assert text in shown.out
    assert told("jobs", "show", made["id"], "--json").json == made
    assert told("jobs", "ls", "--limit", "1", "--json").json["data"] == [made]
    listed = told("jobs", "ls", "--limit", "1")
    assert made["id"] in listed.out
    assert told("jobs", "pause", made["id"]).out == f"{made['id']} is paused\n"
    assert told("jobs", "resume", made["id"], "--json").json["status"] == "queued"
    assert told("jobs", "cancel", made["id"]).out == f"{made['id']} is cancelled\n"
    again = told("jobs", "cancel", made["id"], "--json")
    assert (again.code, again.json["error"]["code"]) == (1, "job_state_conflict")


def test_a_repeated_creation_makes_one_job(told: Callable[..., Told], data_id: str) -> None:
    words = ("jobs", "create", data_id, "--idempotency-key", f"once-{data_id}")
    first, second = told(*words), told(*words)
    assert first.out == second.out
    assert f"disp jobs watch {first.out.strip()}" in first.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "finetune"], "--set needs NAME=VALUE"),
        (["--set", "finetune.epochs=much"], "method.disp.finetune.epochs"),
        (["--set", "seed=1", "--set", "seed.x=1"], "seed is not an object"),
        (["--settings", "absent.json"], "absent.json"),
        (["--metadata", "=x"], "--metadata needs NAME=VALUE"),
    ],
)
def test_wrong_settings_are_told(told: Callable[..., Told], words: list[str], message: str) -> None:
    result = told("jobs", "create", "demo", *words)
    assert result.code == 1
    assert message in result.err


def test_a_settings_file_holds_an_object(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text("[1]")
    with pytest.raises(InvalidInput, match="one JSON object"):
        settings_from(argparse.Namespace(settings=path, set=[]))


@pytest.mark.parametrize(
    "words",
    [
        ["jobs"],
        ["jobs", "create"],
        ["jobs", "create", "demo", "--policy", "none"],
        ["jobs", "watch"],
        ["jobs", "ls", "--limit", "many"],
        ["files"],
        ["files", "rm"],
        ["checkpoints"],
        ["checkpoints", "activate"],
    ],
)
def test_wrong_use_ends_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: disp")


@pytest.mark.parametrize("command", ["jobs", "files", "checkpoints"])
def test_every_action_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    actions = {
        "jobs": "create ls show watch cancel pause resume approve report",
        "files": "upload ls get rm",
        "checkpoints": "ls activate rm rollback",
    }[command].split()
    text = capsys.readouterr().out
    for action in actions:
        assert f"\n    {action} " in text


def test_a_watch_without_a_terminal_prints_lines(
    told: Callable[..., Told], board: JobServer, job_id: str, attempts: Attempts
) -> None:
    attempt = Attempt(job_id, 1)
    attempts.start(attempt, "relabel-0", "relabel", "running")
    attempts.event(attempt, "A \x1b[2J message.", {})
    attempts.event(attempt, "Step 1.", {"step": 1}, metrics=True)
    attempts.succeed(attempt, "All is well.", {})
    result = told("jobs", "watch", job_id)
    assert (result.code, result.out) == (0, f"{job_id} succeeded\n")
    lines = [line.split(" ", 1)[1] for line in result.err.splitlines()]
    assert lines == [
        "The job was created.",
        "Stage relabel begins.",
        "A \ufffd[2J message.",
        "All is well.",
    ]
    assert told("jobs", "watch", job_id, "--json").json["status"] == "succeeded"


def test_a_watch_that_ends_badly_ends_with_1(
    told: Callable[..., Told], board: JobServer, job_id: str, attempts: Attempts
) -> None:
    attempt = Attempt(job_id, 1)
    attempts.start(attempt, "plan", "plan", "validating_files")
    attempts.fail(attempt, JobError("too_many_bad_rows", "3 rows cannot be used."))
    result = told("jobs", "watch", job_id)
    assert (result.code, result.out) == (1, f"{job_id} failed: 3 rows cannot be used.\n")
    assert "3 rows cannot be used. (too_many_bad_rows)" in told("jobs", "show", job_id).out


def test_a_watch_ends_where_somebody_must_approve(
    told: Callable[..., Told], job_id: str, attempts: Attempts
) -> None:
    attempt = Attempt(job_id, 1)
    attempts.start(attempt, "gate", "gate", "running")
    attempts.wait_for_approval(attempt)
    result = told("jobs", "watch", job_id)
    assert result.code == 0
    assert result.out == f"{job_id} waits for approval: disp jobs approve {job_id}\n"
    assert "waits for approval" in told("jobs", "show", job_id).out
    assert told("jobs", "approve", job_id).code == 1
    assert told("jobs", "approve", job_id, key="admin").out == f"{job_id} is queued\n"


def test_a_creation_can_be_watched(
    told: Callable[..., Told], board: JobServer, data_id: str
) -> None:
    before = {job.id for job in board.jobs.list(limit=100)}

    def cancel() -> None:
        made = wait_for(lambda: {job.id for job in board.jobs.list()} - before, "the new job")
        board.jobs.cancel(made.pop())

    cancelling = threading.Thread(target=cancel)
    cancelling.start()
    result = told("jobs", "create", data_id, "--watch")
    cancelling.join()
    assert result.code == 1
    assert result.out.endswith(" cancelled\n")


def test_a_report_is_saved_and_printed(
    told: Callable[..., Told],
    board: JobServer,
    job_id: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    early = told("jobs", "report", job_id)
    assert early.code == 1
    assert "no report yet" in early.err
    board.store.write(report_key(job_id, "json"), b'{"rows": 2}')
    board.store.write(report_key(job_id, "html"), b"<!doctype html>")
    monkeypatch.chdir(tmp_path)
    assert told("jobs", "report", job_id).out == f"{job_id}.html\n"
    assert (tmp_path / f"{job_id}.html").read_bytes() == b"<!doctype html>"
    assert told("jobs", "report", job_id, "--json").json == {"rows": 2}
    target = tmp_path / "new" / "report.html"
    assert told("jobs", "report", job_id, "--output", target).out == f"{target}\n"
    assert target.is_file()


def test_a_bar_moves_on_a_terminal(board: JobServer, job_id: str, attempts: Attempts) -> None:
    attempt = Attempt(job_id, 1)
    attempts.start(attempt, "plan", "plan", "running")
    attempts.planned(attempt, 40, "40 rows are planned.", {})
    attempts.start(attempt, "relabel", "relabel", "running")
    attempts.relabelling(attempt, {0: 8})
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    display = display_for(console)
    assert isinstance(display, Bars)
    seen: list[str] = []

    class Ending(Bars):
        def state(self, job: Job) -> None:
            super().state(job)
            (task,) = self._progress.tasks
            seen.append(f"{task.description} {task.completed:g}/{task.total} {task.fields['told']}")
            if len(seen) == 1:
                attempts.shard_progress(attempt, 1, 12)
            elif len(seen) == 2:
                attempts.start(attempt, "tune", "tune", "running")
                attempts.tuning_progress(attempt, 3, 60)
            elif len(seen) == 3:
                attempts.succeed(attempt, "All is well.", {})

    with Client(board.url, board.keys["alice"]) as client:
        job = watch(client, job_id, Ending(console), poll=0.05)
    assert job.status == "succeeded"
    assert seen[0].startswith("relabel 8/40 8 of 40 rows")
    assert seen[1].startswith("relabel 20/40 20 of 40 rows, ")
    assert seen[2].startswith("tune 3/60 3 of 60 steps")
    assert seen[-1].startswith("succeeded 1/1")
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "40 rows are planned." in text
    assert "All is well." in text


def test_lines_about_the_progress_come_now_and_then(
    board: JobServer, job_id: str, attempts: Attempts
) -> None:
    attempt = Attempt(job_id, 1)
    attempts.start(attempt, "plan", "plan", "running")
    attempts.planned(attempt, 40, "40 rows are planned.", {})
    attempts.start(attempt, "relabel", "relabel", "running")
    jobs = []
    with Client(board.url, board.keys["alice"]) as client:
        for done in (4, 4, 8):
            attempts.relabelling(attempt, {0: done})
            jobs.append(client.jobs.get(job_id))
    every, rare = (Console(file=io.StringIO(), width=120) for _ in range(2))
    for console, display in ((every, Lines(every, every=0.0)), (rare, Lines(rare, every=1e9))):
        for job in jobs:
            display.state(job)
        text = console.file.getvalue()  # type: ignore[attr-defined]
        lines = [line.partition(",")[0] for line in text.splitlines()]
        wanted = ["relabel: 4 of 40 rows", "relabel: 8 of 40 rows"]
        assert lines == (wanted if console is every else wanted[:1])
    assert amounts(jobs[0]) == (4, 40)
    assert progress_text(jobs[0].model_copy(update={"stage": "evaluate"})) == ""


def test_a_watch_outlives_a_server_that_is_away(board: JobServer, job_id: str) -> None:
    board.jobs.cancel(job_id)
    console = Console(file=io.StringIO(), width=120)
    with (
        cut_proxy(board.url, cuts=[1, 1, 1]) as proxy,
        Client(proxy.url, board.keys["alice"], max_retries=0) as client,
    ):
        job = watch(client, job_id, Lines(console), poll=0.05)
        assert (job.status, proxy.connections) == ("cancelled", 4)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.count("The job was created.") == text.count("The job was cancelled.") == 1


def test_a_watch_gives_up_a_server_that_stays_away(board: JobServer, job_id: str) -> None:
    console = Console(file=io.StringIO())
    with (
        cut_proxy(board.url, cuts=[1, 1, 1]) as proxy,
        Client(proxy.url, board.keys["alice"], max_retries=0) as client,
        pytest.raises(ConnectionFailed),
    ):
        watch(client, job_id, Lines(console), poll=0.0, patience=0.0)


def test_the_command_itself_as_a_process(disp: Run, board: JobServer, job_id: str) -> None:
    environment = {"DISP_BASE_URL": board.url, "DISP_API_KEY": board.keys["alice"]}
    board.jobs.cancel(job_id)
    result = disp("jobs", "watch", job_id, "--json", **environment)
    assert (result.returncode, json.loads(result.stdout)["status"]) == (1, "cancelled")
    assert "The job was cancelled." in result.stderr
