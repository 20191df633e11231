"""The folder of an upload: removed beside the event loop, kept where it may be listed."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import anyio.to_thread
import pytest

from server.errors import DatabaseUnavailable
from server.routes.in_threads import in_threads
from tests.support.job_server import TEXT_ROW, JobServer, data_archive, upload_file


def folders(server: JobServer) -> set[str]:
    return {path.name for path in (server.home / "files").iterdir()}


def test_an_upload_that_may_be_listed_is_kept(
    server: JobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit was made, and its outcome could not be learned."""
    database = server.files._database
    commit = database._commit

    def commit_unheard_of(*words: Any) -> None:
        commit(*words)
        raise DatabaseUnavailable(retry_after=5)

    def listed() -> set[str]:
        return {record.id for record in server.files.list(limit=10_000)}

    before = listed()
    with monkeypatch.context() as away:
        away.setattr(database, "_commit", commit_unheard_of)
        response = upload_file(server, TEXT_ROW)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "database_unavailable")
    [new] = listed() - before
    assert server.files.data(new).read_bytes() == TEXT_ROW


def test_an_upload_is_described_though_the_database_goes_away_behind_it(
    server: JobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was listed: to say that it failed would make its sender send it again."""

    @contextmanager
    def away() -> Iterator[None]:
        raise DatabaseUnavailable(retry_after=5)
        yield

    monkeypatch.setattr(server.files._database, "reading", away)
    with server.files.receive() as incoming:
        incoming.write(TEXT_ROW)
        record = server.files.add(incoming, filename="a.jsonl", purpose="fine-tune", key_id="k")
    monkeypatch.undo()
    assert server.files.get(record.id) == record


@pytest.mark.parametrize("kind", ["refused", "listed", "interrupted"])
def test_the_folder_of_an_upload_is_removed_beside_the_event_loop(
    server: JobServer, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """It can hold as many files as an archive may."""
    on_the_loop: list[bool] = []
    remove = shutil.rmtree

    def removed(path: Any, **more: Any) -> None:
        try:
            asyncio.get_running_loop()
            on_the_loop.append(True)
        except RuntimeError:
            on_the_loop.append(False)
        remove(path, **more)

    monkeypatch.setattr(shutil, "rmtree", removed)
    before = folders(server)
    if kind == "interrupted":
        body = b'--x\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n{}'
        sent = {"content-type": "multipart/form-data; boundary=x"}
        with server.client() as client:
            client.post("/v1/files", content=body, headers=sent)
    else:
        upload_file(server, TEXT_ROW if kind == "listed" else data_archive()[:-30])
    assert on_the_loop
    assert not any(on_the_loop)
    assert len(folders(server) - before) == (kind == "listed")


def test_a_context_is_left_to_its_end_though_its_request_is_cancelled() -> None:
    began, may_end = threading.Event(), threading.Event()
    left: list[type[BaseException] | None] = []

    class Slow:
        def __enter__(self) -> None:
            pass

        def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
            began.set()
            assert may_end.wait(60)
            left.append(kind)

    async def scenario() -> None:
        inside = anyio.Event()

        async def work() -> None:
            async with in_threads(Slow()):
                inside.set()
                await anyio.sleep_forever()

        async with anyio.create_task_group() as group:
            group.start_soon(work)
            await inside.wait()
            group.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(began.wait, 60)
                may_end.set()

    anyio.run(scenario)
    assert left == [asyncio.CancelledError]
