"""Downloads: an upload comes back, to its owner alone."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile

from purifier.data.dataset import open_dataset
from tests.support.job_server import TEXT_ROW, JobServer, data_archive, upload_file


def test_a_label_file_comes_back_byte_for_byte(server: JobServer) -> None:
    made = upload_file(server, TEXT_ROW + b"\r\n\n", "ü b.jsonl").json()
    with server.client() as client:
        answer = client.get(f"/v1/files/{made['id']}/content").raise_for_status()
    assert hashlib.sha256(answer.content).hexdigest() == made["sha256"]
    assert answer.headers["content-disposition"] == "attachment; filename*=utf-8''%C3%BC%20b.jsonl"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in answer.headers["content-security-policy"]
    assert answer.headers["content-type"] == "application/octet-stream"


def test_an_archive_comes_back_as_a_tar_of_its_members(server: JobServer) -> None:
    sent = data_archive(rows=3, folder="my/data/")
    made = upload_file(server, sent, "x.zip").json()
    with server.client() as client:
        answer = client.get(f"/v1/files/{made['id']}/content").raise_for_status()
    assert int(answer.headers["content-length"]) == len(answer.content)
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        found = {
            member.name: file.read()
            for member in archive.getmembers()
            if (file := archive.extractfile(member))
        }
    with zipfile.ZipFile(io.BytesIO(sent)) as original:
        assert found == {name: original.read(name) for name in original.namelist()}
    again = upload_file(server, answer.content, "again.tar").raise_for_status().json()
    assert len(list(open_dataset(server.files.data(again["id"])).rows())) == 3


def test_content_is_for_its_owner(server: JobServer) -> None:
    file_id = upload_file(server, TEXT_ROW).json()["id"]
    for key, expected in [("bob", 404), ("infer", 403), ("reader", 404), ("admin", 200)]:
        with server.client(key) as client:
            assert client.get(f"/v1/files/{file_id}/content").status_code == expected, key
    with server.client() as client:
        for name in ("file-none", "..%2F..", "%2Fetc%2Fpasswd"):
            assert client.get(f"/v1/files/{name}/content").status_code == 404
