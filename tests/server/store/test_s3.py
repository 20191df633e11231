"""The store on a server that speaks S3, which other processes write to as well."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.store.blobs import BlobStore
from tests.support.s3 import s3_server, s3_url, write_elsewhere

__all__ = ["s3_server", "s3_url"]


@pytest.fixture
def store(s3_url: str, tmp_path: Path) -> BlobStore:
    return BlobStore(f"{s3_url}/disp", cache=tmp_path / "cache")


def test_what_another_process_writes_is_seen_at_once(store: BlobStore) -> None:
    """Also by one that has looked before, at the file and at the folder that it is in."""
    for number in range(2):
        key = f"jobs/one/shards/{number}.json"
        assert not store.exists(key)
        assert len(store.list("jobs")) == number
        write_elsewhere(store.url, key, '{"rows": 3}')
        assert store.exists(key)
        assert store.read_json(key) == {"rows": 3}
        assert store.size(key) == 11
        assert store.list("jobs/one/shards")[-1] == key


def test_what_another_process_writes_anew_is_copied_anew(store: BlobStore) -> None:
    store.write("jobs/one/report/report.json", b"old")
    assert store.local("jobs/one/report/report.json").read_bytes() == b"old"
    copied = store.local("jobs/one/report/report.json").stat().st_mtime_ns
    assert store.local("jobs/one/report/report.json").stat().st_mtime_ns == copied
    write_elsewhere(store.url, "jobs/one/report/report.json", "new")
    assert store.local("jobs/one/report/report.json").read_bytes() == b"new"
    store.remove("jobs/one/report/report.json")
    with pytest.raises(FileNotFoundError):
        store.local("jobs/one/report/report.json")


def test_a_folder_is_put_found_and_removed(store: BlobStore, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "inner").mkdir(parents=True)
    (source / "inner" / "a.txt").write_text("a")
    assert not store.has_folder("jobs/one/merged")
    manifest = store.put_folder("jobs/one/merged", source, {"rows": 1})
    assert store.has_folder("jobs/one/merged")
    assert (store.local_folder("jobs/one/merged") / "inner" / "a.txt").read_text() == "a"
    assert store.folder_manifest("jobs/one/merged") == manifest
    # The same job elsewhere makes it anew, with other bytes.
    (source / "inner" / "a.txt").write_text("b")
    other = BlobStore(store.url, cache=tmp_path / "cache-elsewhere")
    other.put_folder("jobs/one/merged", source)
    assert (store.local_folder("jobs/one/merged") / "inner" / "a.txt").read_text() == "b"
    other.remove_folder("jobs/one/merged")
    assert not store.has_folder("jobs/one/merged")
    assert store.list("jobs") == []


def test_what_killed_writers_left_is_swept(store: BlobStore) -> None:
    store.write("jobs/one/plan.json", b"{}")
    write_elsewhere(store.url, "jobs/one/.plan.json.0123", "half")
    assert store.list("jobs/one") == ["jobs/one/plan.json"]
    store.sweep("jobs/one")
    names = store._fs.find(store._path("jobs"))
    assert [str(name).rpartition("/")[2] for name in names] == ["plan.json"]
