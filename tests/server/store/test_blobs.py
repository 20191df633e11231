"""The shared store: whole or not at all, local folder or remote, keys and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from server.store.blobs import FOLDER_MANIFEST, BlobDamaged, BlobStore


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BlobStore]:
    if request.param == "local":
        yield BlobStore(tmp_path / "store")
    else:
        yield BlobStore(f"memory://disp-{tmp_path.name}", cache=tmp_path / "cache")
        memory = fsspec.filesystem("memory")
        for path in memory.find(f"/disp-{tmp_path.name}"):
            memory.rm_file(path)


def test_files_come_back_as_they_were(store: BlobStore, tmp_path: Path) -> None:
    store.write("jobs/a/x.bin", b"\x00\xff")
    (tmp_path / "source").write_bytes(b"from a file")
    store.put("jobs/a/y.bin", tmp_path / "source")
    store.write_json("jobs/a/z.json", {"b": [1, 2], "a": None})
    assert store.read("jobs/a/x.bin") == b"\x00\xff"
    assert store.local("jobs/a/y.bin").read_bytes() == b"from a file"
    assert store.read_json("jobs/a/z.json") == {"a": None, "b": [1, 2]}
    assert store.list("jobs") == ["jobs/a/x.bin", "jobs/a/y.bin", "jobs/a/z.json"]
    assert store.list("jobs/none") == []
    assert store.exists("jobs/a/x.bin")
    store.remove("jobs/a/x.bin")
    assert not store.exists("jobs/a/x.bin")


def test_what_is_not_there(store: BlobStore) -> None:
    assert not store.exists("none")
    for read in (store.read, store.local, store.read_json, store.folder_manifest):
        with pytest.raises(FileNotFoundError):
            read("jobs/none")


def test_a_folder_is_removed_as_a_whole(store: BlobStore, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "inner").mkdir(parents=True)
    for name in ("a", "inner/b"):
        (source / name).write_bytes(name.encode())
    store.put_folder("jobs/x/tuned", source)
    store.write("jobs/x/other", b"stays")
    store.local_folder("jobs/x/tuned")
    for _ in range(2):
        store.remove_folder("jobs/x/tuned")
        assert not store.has_folder("jobs/x/tuned")
        assert store.list("jobs") == ["jobs/x/other"]
        with pytest.raises(FileNotFoundError):
            store.local("jobs/x/tuned/a")


def test_names_as_people_give_them_are_keys(store: BlobStore) -> None:
    for number, key in enumerate(("jobs/train set (2).json", "jobs/übung, a+b=c.json")):
        store.write(key, bytes([number]))
        assert store.local(key).read_bytes() == bytes([number])
        assert store.size(key) == 1
    assert len(store.list("jobs")) == 2


def test_a_file_is_replaced_as_a_whole(store: BlobStore) -> None:
    store.write("x", b"first and long")
    store.write("x", b"second")
    assert store.read("x") == b"second"
    assert store.list("x") == ["x"]


@pytest.mark.parametrize(
    "key",
    ["", "/etc/passwd", "../x", "a/../b", "a//b", ".hidden", "a/.b", "a*", "a?", "a\nb", "a#"],
)
def test_only_keys_are_taken(store: BlobStore, key: str) -> None:
    with pytest.raises(ValueError, match="not a key"):
        store.write(key, b"")


def test_a_folder_counts_once_its_manifest_is_there(store: BlobStore, tmp_path: Path) -> None:
    source = tmp_path / "folder"
    (source / "deep").mkdir(parents=True)
    (source / "a.txt").write_text("a")
    (source / "deep" / "b.txt").write_text("b")
    store.put("out/a.txt", source / "a.txt")
    assert not store.has_folder("out")
    manifest = store.put_folder("out", source, {"rows": 3})
    assert store.has_folder("out")
    assert store.folder_manifest("out") == manifest
    assert manifest["facts"] == {"rows": 3}
    assert sorted(manifest["files"]) == ["a.txt", "deep/b.txt"]
    assert (store.local_folder("out") / "deep" / "b.txt").read_text() == "b"


def test_an_altered_file_of_a_folder_is_named(store: BlobStore, tmp_path: Path) -> None:
    source = tmp_path / "folder"
    source.mkdir()
    (source / "a.txt").write_text("a")
    store.put_folder("out", source)
    store.write("out/a.txt", b"changed")
    with pytest.raises(BlobDamaged, match=r"out/a\.txt was altered"):
        store.local_folder("out")
    other = tmp_path / "other"
    other.mkdir()
    (other / FOLDER_MANIFEST).write_text("{}")
    with pytest.raises(ValueError, match="own file"):
        store.put_folder("other", other)


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "store")
    store.write("x", b"old")
    with pytest.raises(FileNotFoundError):
        store.put("x", tmp_path / "none")
    assert store.read("x") == b"old"
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["x"]


def test_leftovers_of_killed_writers_are_swept(store: BlobStore) -> None:
    store.write("jobs/a/x", b"x")
    with store._fs.open(f"{store._root}/jobs/a/.x.0123", "wb") as file:
        file.write(b"half")
    assert store.list("jobs") == ["jobs/a/x"]
    store.sweep("jobs/a")
    assert len(store._fs.find(f"{store._root}/jobs")) == 1
