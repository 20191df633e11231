"""The audit log through both clients and `disp audit`."""

from __future__ import annotations

import json
from collections.abc import Callable
from subprocess import CompletedProcess
from typing import Any

import httpx
import pytest

import clients
from clients import cli
from tests.support.job_server import JobServer
from tests.support.wire import Caller

Ask = Callable[..., Any]


@pytest.fixture
def last(board: JobServer) -> int:
    """Number of the newest row, behind which there are three more afterwards."""
    assert board.services.audit is not None
    newest = board.services.audit.append("ops", None, "activate", "tiny", "a", "b").number
    for name in ("one", "two\x1b[2J", "three"):
        board.services.audit.append(name, "key-1", "rollback", "tiny", request_id="req-1")
    return newest


def test_rows_come_in_pages(ask: Ask, last: int) -> None:
    page = ask("audit.list", after=last - 1, limit=2, key="admin")
    assert [row.number for row in page.data] == [last, last + 1]
    assert (page.data[0].actor, page.data[0].before, page.data[0].after) == ("ops", "a", "b")
    assert page.data[1].previous_hash == page.data[0].hash
    assert page.has_more
    rest = ask("audit.list", after=last + 1, key="admin")
    assert ([row.actor for row in rest.data], rest.has_more) == (["two\x1b[2J", "three"], False)


def test_it_is_for_who_may_read_it(ask: Ask) -> None:
    with pytest.raises(clients.Forbidden) as caught:
        ask("audit.list", key="alice")
    assert caught.value.code == "scope_missing"


def test_what_is_asked_is_what_was_given(call: Caller) -> None:
    queries: list[bytes] = []

    def handler(request: httpx.Request) -> httpx.Response:
        queries.append(request.url.query)
        return httpx.Response(200, json={"data": [], "has_more": False})

    call(handler, "audit.list")
    call(handler, "audit.list", after=7, limit=3)
    assert queries == [b"after=0", b"after=7&limit=3"]


def test_the_command_asks_the_server(
    board: JobServer,
    last: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DISP_BASE_URL", board.url)
    monkeypatch.setenv("DISP_API_KEY", board.keys["admin"])
    monkeypatch.setenv("COLUMNS", "200")
    # Several pages for what one command prints.
    monkeypatch.setattr("clients._commands.audit._PAGE", 2)
    assert cli.main(["audit", "ls", "--after", str(last - 1), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["number"] for row in told["data"]] == list(range(last, last + 4))
    assert told["has_more"] is False
    assert cli.main(["audit", "ls", "--after", str(last - 1), "--limit", "3"]) == 0
    shown = capsys.readouterr()
    for cell in (str(last), "ops", "activate", "rollback", "two\ufffd[2J"):
        assert cell in shown.out
    assert "three" not in shown.out
    assert shown.err == f"more: --after {last + 2}\n"
    assert cli.main(["audit", "ls", "--limit", "0"]) == 1
    monkeypatch.setenv("DISP_API_KEY", board.keys["alice"])
    assert cli.main(["audit", "ls", "--json"]) == 1


def test_the_data_folder_is_looked_at_without_a_server(
    disp: Callable[..., CompletedProcess[str]], board: JobServer, last: int
) -> None:
    where = ["--data-dir", str(board.home)]
    verified = disp("audit", "verify", *where)
    assert verified.stdout.startswith("whole: ")
    rows = [json.loads(line) for line in disp("audit", "list", *where).stdout.splitlines()]
    assert [row["number"] for row in rows][-4:] == list(range(last, last + 4))


def test_every_action_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["audit", "--help"])
    text = capsys.readouterr().out
    for action in ("ls", "list", "verify"):
        assert f"\n    {action} " in text
