"""Uploads: streamed to disk, checked, listed for their owner, deleted."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy.exc import OperationalError

from purifier.data.dataset import open_dataset
from server.config import ServerConfig, UploadLimits
from server.data_sets import DataRoot, DataSets
from server.errors import DataFileNotFound, StorageFull
from server.multipart import UploadForm
from server.store.blobs import BlobStore
from server.store.database import Database
from server.store.files import FileStore
from tests.support.job_server import (
    JobServer,
    data_archive,
    job_server,
    llava_row,
    refusal,
    upload_file,
)

LIMIT = 300_000


@pytest.fixture(scope="module")
def server(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobServer]:
    config = ServerConfig(max_body=20_000, upload=UploadLimits(file_bytes=LIMIT, members=50))
    home = tmp_path_factory.mktemp("home")

    def datasets(files: FileStore) -> DataSets:
        return DataSets(files, {"local": DataRoot(home)})

    with job_server(home, tiny_checkpoint, config, datasets) as running:
        yield running


def folders(server: JobServer) -> set[str]:
    return {path.name for path in (server.home / "files").iterdir()}


def as_tar(content: bytes, name: str = "data.jsonl") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def as_parquet() -> bytes:
    file = io.BytesIO()
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "That."}]
    pq.write_table(pa.table({"id": ["a"], "conversations": [turns]}), file)
    return file.getvalue()


TEXT_ROW = json.dumps(
    {"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Ho."}]}
).encode()
UPLOADS = {
    "zip": (data_archive(), "x.zip", "llava-json"),
    "zip in a folder": (data_archive(folder="my/data/"), "x.zip", "llava-json"),
    "tar": (as_tar(TEXT_ROW), "x.tar", "messages-jsonl"),
    "tar.gz": (gzip.compress(as_tar(TEXT_ROW)), "x.tgz", "messages-jsonl"),
    "jsonl": (TEXT_ROW + b"\n" + TEXT_ROW, "train.jsonl", "messages-jsonl"),
    "jsonl without its name": (TEXT_ROW, "upload", "messages-jsonl"),
    "json": (json.dumps([llava_row()]).encode(), "labels.txt", "llava-json"),
    "parquet": (as_parquet(), "x.parquet", "llava-parquet"),
}


@pytest.mark.parametrize("kind", UPLOADS)
def test_what_is_uploaded_can_be_opened(server: JobServer, kind: str) -> None:
    content, filename, expected = UPLOADS[kind]
    made = upload_file(server, content, filename).raise_for_status().json()
    assert made.pop("created_at") <= time.time()
    file_id = made.pop("id")
    assert made == {
        "object": "file",
        "bytes": len(content),
        "filename": filename,
        "purpose": "fine-tune",
        "status": "processed",
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    dataset = open_dataset(server.files.data(file_id))
    assert dataset.format == expected
    assert len(list(dataset.rows())) >= 1
    assert (server.home / "files" / file_id / "upload").exists() is False


@pytest.mark.parametrize(
    ("filename", "shown"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\data\\x.zip", "x.zip"),
        ("a\u202eb.zip", "ab.zip"),
        ("n" * 400, "n" * 255),
        ("/", "upload"),
    ],
)
def test_a_name_is_shown_and_never_used(server: JobServer, filename: str, shown: str) -> None:
    assert upload_file(server, TEXT_ROW, filename).json()["filename"] == shown


BAD_UPLOADS = {
    "empty": (b"", 422, "invalid_request"),
    "an image": (b"\x89PNG\r\n\x1a\n" + bytes(50), 415, "unsupported_file"),
    "no rows": (b"[]", 422, "unusable_data_set"),
    "not JSON": (b"{nothing", 422, "unusable_data_set"),
    "UTF-16": (TEXT_ROW.decode().encode("utf-16"), 415, "unsupported_file"),
    "VQAv2": (b'{"question": "Q", "answers": [{"answer": "A"}]}', 422, "unusable_data_set"),
    "damaged parquet": (b"PAR1" + bytes(100), 422, "unusable_data_set"),
    "archive without labels": (as_tar(b"x", "readme.txt"), 422, "unusable_data_set"),
    "archive that is cut off": (data_archive()[:-30], 422, "archive_refused"),
    "archive with a path": (as_tar(TEXT_ROW, "../data.jsonl"), 422, "archive_refused"),
    "archive with many members": (data_archive(60), 413, "archive_too_large"),
}


@pytest.mark.parametrize("kind", BAD_UPLOADS)
def test_a_bad_file_is_refused_and_leaves_nothing(server: JobServer, kind: str) -> None:
    content, status, code = BAD_UPLOADS[kind]
    before = folders(server)
    assert refusal(upload_file(server, content)) == (status, code, "file")
    assert folders(server) == before


def form(*parts: tuple[str, bytes], end: bytes = b"--sep--\r\n") -> bytes:
    return b"".join(
        b"--sep\r\nContent-Disposition: form-data; " + head.encode() + b"\r\n\r\n" + body + b"\r\n"
        for head, body in parts
    ) + (end if parts else b"")


PURPOSE = ('name="purpose"', b"fine-tune")
FILE = ('name="file"; filename="a.jsonl"', TEXT_ROW)
BAD_FORMS = {
    "nothing": (b"", 400, "invalid_body", None),
    "not a form": (b"hello", 400, "invalid_body", None),
    "cut off": (form(PURPOSE, FILE, end=b""), 400, "invalid_body", None),
    "nameless field": (form(("x=1", b"y"), FILE), 400, "invalid_body", None),
    "no file": (form(PURPOSE), 422, "invalid_request", "file"),
    "no purpose": (form(FILE), 422, "invalid_request", "purpose"),
    "other purpose": (form(('name="purpose"', b"batch"), FILE), 422, "invalid_request", "purpose"),
    "two files": (form(PURPOSE, FILE, FILE), 422, "invalid_request", "file"),
    "two purposes": (form(PURPOSE, PURPOSE, FILE), 422, "invalid_request", "purpose"),
    "unknown field": (form(PURPOSE, ('name="path"', b"/"), FILE), 422, "invalid_request", "path"),
    "long field": (form(('name="purpose"', b"x" * 2000)), 422, "invalid_request", "purpose"),
    "long header": (form(("x" * 20_000, b"y"), FILE), 400, "invalid_body", None),
}


@pytest.mark.parametrize("kind", BAD_FORMS)
def test_a_bad_form_is_refused_and_leaves_nothing(server: JobServer, kind: str) -> None:
    content, *expected = BAD_FORMS[kind]
    before = folders(server)
    with server.client() as client:
        headers = {"content-type": "multipart/form-data; boundary=sep"}
        response = client.post("/v1/files", content=content, headers=headers)
    assert list(refusal(response)) == expected
    assert folders(server) == before


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "multipart/form-data", "multipart/form-data; boundary=", ""],
)
def test_what_is_no_form_is_refused(server: JobServer, content_type: str) -> None:
    with server.client() as client:
        response = client.post("/v1/files", content=b"{}", headers={"content-type": content_type})
    assert refusal(response) == (415, "unsupported_media_type", None)


def test_a_form_is_the_same_in_pieces_of_any_size() -> None:
    body = form(PURPOSE, FILE)
    for size in (1, 2, 3, 7, 64, len(body)):
        content, seen = bytearray(), []
        reader = UploadForm(
            "multipart/form-data; boundary=sep",
            content.extend,
            lambda *field: seen.append(field),  # noqa: B023
        )
        for start in range(0, len(body), size):
            reader.feed(body[start : start + size])
        sent = reader.close()
        assert (sent.fields, sent.filename) == ({"purpose": "fine-tune"}, "a.jsonl")
        assert (bytes(content), seen) == (TEXT_ROW, [("purpose", "fine-tune")])


def test_an_upload_has_its_own_limit_and_nothing_else_has(server: JobServer) -> None:
    big = TEXT_ROW + b"\n" + b" " * 100_000
    upload_file(server, big, "big.jsonl").raise_for_status()
    too_big = TEXT_ROW + b" " * LIMIT
    before = folders(server)
    assert refusal(upload_file(server, too_big)) == (413, "body_too_large", None)

    def pieces() -> Iterator[bytes]:
        yield form(PURPOSE)[: -len(b"--sep--\r\n")] + form(('name="file"', b""), end=b"")[:-2]
        for _ in range(8):
            yield b" " * (LIMIT // 4)

    with server.client() as client:
        headers = {"content-type": "multipart/form-data; boundary=sep"}
        chunked = client.post("/v1/files", content=pieces(), headers=headers)
        assert refusal(chunked) == (413, "body_too_large", None)
        assert f"{LIMIT:,}" in chunked.json()["error"]["message"]
        for path in ("/v1/fine_tuning/jobs", "/v1/chat/completions", "/v1/files/"):
            other = client.post(path, content=b" " * 20_001)
            assert refusal(other)[:2] == (413, "body_too_large")
            assert "20,000" in other.json()["error"]["message"]
    assert folders(server) == before


def test_a_sender_who_goes_away_leaves_nothing(server: JobServer) -> None:
    before = folders(server)
    started, gone = threading.Event(), threading.Event()

    def pieces() -> Iterator[bytes]:
        yield form(PURPOSE)[: -len(b"--sep--\r\n")] + form(FILE, end=b"")
        started.set()
        gone.wait(30)
        raise ConnectionAbortedError

    def send() -> None:
        headers = {"content-type": "multipart/form-data; boundary=sep"}
        with server.client() as client, pytest.raises(ConnectionAbortedError):
            client.post("/v1/files", content=pieces(), headers=headers)

    thread = threading.Thread(target=send)
    thread.start()
    assert started.wait(30)
    wait_until(lambda: folders(server) > before)
    gone.set()
    thread.join(30)
    wait_until(lambda: folders(server) == before)


def wait_until(true: Any) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_files_are_listed_in_pages_for_their_owner(server: JobServer) -> None:
    mine = [upload_file(server, TEXT_ROW, f"{n}.jsonl", key="bob").json()["id"] for n in range(3)]
    hers = upload_file(server, TEXT_ROW, key="alice").json()["id"]
    with server.client("bob") as bob, server.client("alice") as alice:
        newest = bob.get("/v1/files", params={"limit": 2}).json()
        assert [item["id"] for item in newest["data"]] == mine[:0:-1]
        assert (newest["has_more"], newest["object"]) == (True, "list")
        assert (newest["first_id"], newest["last_id"]) == (mine[2], mine[1])
        rest = bob.get("/v1/files", params={"limit": 2, "after": mine[1]}).json()
        assert ([item["id"] for item in rest["data"]], rest["has_more"]) == ([mine[0]], False)
        oldest = bob.get("/v1/files", params={"order": "asc", "after": mine[0]}).json()
        assert [item["id"] for item in oldest["data"]] == mine[1:]
        none = bob.get("/v1/files", params={"purpose": "batch"}).json()
        assert (none["data"], none["first_id"], none["has_more"]) == ([], None, False)
        assert bob.get(f"/v1/files/{mine[0]}").json()["filename"] == "0.jsonl"
        for method, path in [("GET", mine[0]), ("DELETE", mine[0]), ("GET", f"?after={mine[0]}")]:
            separator = "" if path.startswith("?") else "/"
            response = alice.request(method, f"/v1/files{separator}{path}")
            assert refusal(response)[:2] == (404, "file_not_found")
        seen = {item["id"] for item in alice.get("/v1/files").json()["data"]}
        assert hers in seen
        assert not set(mine) & seen
    with server.client("admin") as admin:
        everybody = {item["id"] for item in admin.get("/v1/files").json()["data"]}
    assert {*mine, hers} <= everybody


@pytest.mark.parametrize(
    ("query", "param"),
    [("limit=0", "limit"), ("limit=10001", "limit"), ("limit=x", "limit"), ("order=up", "order")],
)
def test_a_bad_query_is_refused(server: JobServer, query: str, param: str) -> None:
    with server.client() as client:
        assert refusal(client.get(f"/v1/files?{query}")) == (422, "invalid_request", param)


def test_a_deleted_file_is_gone(server: JobServer) -> None:
    file_id = upload_file(server, data_archive()).json()["id"]
    with server.client() as client:
        gone = client.delete(f"/v1/files/{file_id}").raise_for_status().json()
        assert gone == {"id": file_id, "object": "file", "deleted": True}
        for method in ("GET", "DELETE"):
            response = client.request(method, f"/v1/files/{file_id}")
            assert refusal(response)[:2] == (404, "file_not_found")
    assert file_id not in folders(server)


def test_a_file_that_a_job_reads_is_kept(server: JobServer) -> None:
    file_id = upload_file(server, data_archive()).json()["id"]
    with server.client() as client:
        job = client.post("/v1/fine_tuning/jobs", json={"training_file": file_id}).json()
        assert refusal(client.delete(f"/v1/files/{file_id}"))[:2] == (409, "file_in_use")
        client.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel").raise_for_status()
        client.delete(f"/v1/files/{file_id}").raise_for_status()


def test_ids_are_never_paths(server: JobServer) -> None:
    secret = server.home / "files" / "file-secret"
    secret.mkdir()
    for file_id in ("file-secret", "..", ".", "../checkpoints", "/etc", ""):
        with pytest.raises(DataFileNotFound):
            server.files.data(file_id)
    with server.client() as client:
        for name in ("file-secret", "..%2F..", "%2Fetc%2Fpasswd"):
            response = client.get(f"/v1/files/{name}")
            assert response.status_code == 404
    secret.rmdir()


def test_what_a_killed_server_left_is_removed_a_day_later(server: JobServer) -> None:
    kept = upload_file(server, TEXT_ROW).json()["id"]
    folder = server.home / "files"
    stale = [folder / ".incoming-old", folder / "file-orphan", folder / ".incoming-old.tar"]
    fresh = folder / ".incoming-new"
    for path in (*stale[:2], fresh):
        path.mkdir()
    stale[2].write_bytes(b"half of a copy for the workers")
    day_ago = time.time() - 90_000
    for path in (*stale, folder / kept):
        os.utime(path, (day_ago, day_ago))
    FileStore(server.files._database, folder, UploadLimits(), server.store)
    assert [path.exists() for path in stale] == [False, False, False]
    assert fresh.exists()
    assert (folder / kept).exists()
    fresh.rmdir()


def test_an_upload_that_cannot_be_listed_leaves_nothing(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/disp.sqlite")
    database.create_tables()
    (tmp_path / "shared").mkdir()
    shared = BlobStore(f"dir::file://{tmp_path}/shared", cache=tmp_path / "cache")
    store = FileStore(database, tmp_path / "files", UploadLimits(), shared)
    with database.transaction() as connection:
        connection.exec_driver_sql("ALTER TABLE files RENAME TO gone")
    with store.receive() as incoming:
        incoming.write(TEXT_ROW)
        with pytest.raises(OperationalError):
            store.add(incoming, filename="a.jsonl", purpose="fine-tune", key_id=None)
    assert list((tmp_path / "files").iterdir()) == []
    assert shared.list("files") == []
    database.close()


def test_a_full_disk_is_said_so(server: JobServer) -> None:
    before = folders(server)
    with (
        pytest.raises(StorageFull),
        server.files.receive(),
        open("/dev/full", "wb", buffering=0) as full,
    ):
        full.write(b"x")
    assert folders(server) == before


def test_data_sets_of_the_server_are_listed(server: JobServer) -> None:
    with server.client("reader") as client:
        listed = client.get("/v1/datasets").raise_for_status().json()
    assert listed == {"object": "list", "data": [{"id": "dataset:local", "object": "dataset"}]}
