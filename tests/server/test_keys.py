"""Keys are stored hashed, compared whole, and gone as soon as they are revoked."""

from __future__ import annotations

import json
import logging
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from server.security import keys as keys_module
from server.security.__main__ import main
from server.security.keys import (
    SCOPES,
    KeyFile,
    KeyFileError,
    KeyRecord,
    KeyRing,
    create_key,
    list_keys,
    new_secret,
    read_secret,
    record_of,
    revoke_key,
)
from tests.support.service import ROOT


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys" / "keys.json"


def test_secret_is_not_in_the_file(file: Path) -> None:
    secret, record = create_key(file, "mine", ["infer"])
    assert secret.startswith("sk-")
    assert secret not in file.read_text()
    assert secret[3:] not in file.read_text()
    assert list_keys(file) == [record]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["keys.json"]


def test_keys_are_told_apart(file: Path) -> None:
    one, first = create_key(file, "one", ["infer"])
    two, second = create_key(file, "two", ["jobs:read", "jobs:write"])
    keys = KeyFile(file)
    assert keys.authenticate(one) == first.principal
    assert keys.authenticate(two) == second.principal
    for wrong in ("", "sk-", one[:-1], one + "x", one.upper(), "ä" * 20, "x" * 10_000, "\udcff"):
        assert keys.authenticate(wrong) is None


def test_revoked_key_is_refused_at_once_and_new_ones_work(file: Path) -> None:
    secret, record = create_key(file, "mine", ["infer"])
    keys = KeyFile(file)
    assert keys.authenticate(secret) is not None
    assert revoke_key(file, record.id) == record
    assert keys.authenticate(secret) is None
    later, _ = create_key(file, "later", ["infer"])
    assert keys.authenticate(later) is not None


def test_untrusted_file_lets_nobody_in(file: Path) -> None:
    secret, _ = create_key(file, "mine", ["infer"])
    keys = KeyFile(file)
    content = file.read_text()
    file.write_text("{")
    assert keys.authenticate(secret) is None
    file.write_text(content)
    assert keys.authenticate(secret) is not None
    file.unlink()
    assert keys.authenticate(secret) is None


def test_file_open_to_others_is_refused(file: Path) -> None:
    create_key(file, "mine", ["infer"])
    file.chmod(0o644)
    with pytest.raises(KeyFileError, match="chmod 600"):
        KeyFile(file)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"version": 2, "keys": []}',
        '{"version": 1, "keys": {}, "x": 1',
        '{"version": 1, "keys": ["a"]}',
        '{"version": 1, "keys": [{"id": "a"}]}',
        '{"version": 1, "keys": [{"id": "a", "name": "b", "sha256": "zz", "scopes": [], '
        '"created": 1}]}',
        '{"version": 1, "keys": [{"id": "a", "name": "b", "sha256": "00", "scopes": ["root"], '
        '"created": 1}]}',
    ],
)
def test_damaged_file_is_refused(file: Path, content: str) -> None:
    create_key(file, "mine", ["infer"])
    file.write_text(content)
    with pytest.raises(KeyFileError, match="damaged"):
        list_keys(file)


def test_unknown_scope_and_unknown_key_are_refused(file: Path) -> None:
    with pytest.raises(KeyFileError, match="scopes out of"):
        create_key(file, "mine", ["root"])  # type: ignore[list-item]
    with pytest.raises(KeyFileError, match="scopes out of"):
        create_key(file, "mine", [])
    create_key(file, "mine", ["infer"])
    with pytest.raises(KeyFileError, match="no key"):
        revoke_key(file, "key-0")


def test_secret_file_holds_one_key_that_may_do_all(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    secret = new_secret()
    file.write_text(secret + "\n")
    principal = read_secret(file).authenticate(secret)
    assert principal is not None
    assert principal.scopes == frozenset(SCOPES)
    file.write_text("short")
    with pytest.raises(KeyFileError, match="must hold one key"):
        read_secret(file)
    with pytest.raises(KeyFileError, match="cannot be read"):
        read_secret(tmp_path / "missing")


def test_ring_prefers_no_record(file: Path) -> None:
    secret = new_secret()
    assert KeyRing([]).authenticate(secret) is None
    assert KeyRing([record_of(secret, "a", ["infer"])]).authenticate(new_secret()) is None
    assert len({new_secret() for _ in range(100)}) == 100


def test_file_survives_a_round_through_json(file: Path) -> None:
    create_key(file, "mine", ["infer", "audit:read"])
    content = json.loads(file.read_text())
    assert content["version"] == 1
    assert len(content["keys"][0]["sha256"]) == 64


def test_keys_are_kept_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "keys.json")
    assert main(["create", "--file", file, "--name", "mine", "--scope", "infer"]) == 0
    assert capsys.readouterr().out.startswith("sk-")
    assert main(["list", "--file", file]) == 0
    key_id, name, scopes = capsys.readouterr().out.strip().split("\t")
    assert (name, scopes) == ("mine", "infer")
    assert main(["revoke", "--file", file, key_id]) == 0
    assert main(["revoke", "--file", file, key_id]) == 2
    assert "There is no key" in capsys.readouterr().err


def test_the_command_for_keys_waits_for_nothing_heavy() -> None:
    probe = "import sys, server.security.__main__; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(result.stdout.split())
    assert "server.security.keys" in loaded
    assert not loaded & {"torch", "PIL", "fastapi", "pydantic", "purifier"}


def test_key_that_is_revoked_while_the_file_is_read_is_refused(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, record = create_key(file, "mine", ["infer"])
    read = keys_module.list_keys
    revoked: list[str] = []

    def slow(path: Path) -> list[KeyRecord]:
        """Reads; the file is replaced before the reader goes on."""
        found = read(path)
        if not revoked:
            revoked.append(record.id)
            monkeypatch.setattr(keys_module, "list_keys", read)
            revoke_key(file, record.id)
        return found

    keys = KeyFile(file)
    create_key(file, "another", ["infer"])
    monkeypatch.setattr(keys_module, "list_keys", slow)
    keys.authenticate(secret)
    assert revoked
    assert keys.authenticate(secret) is None


def test_file_that_is_opened_to_others_while_it_is_used_lets_nobody_in(file: Path) -> None:
    secret, _ = create_key(file, "mine", ["infer"])
    keys = KeyFile(file)
    file.chmod(0o644)
    assert keys.authenticate(secret) is None
    file.chmod(0o600)
    assert keys.authenticate(secret) is not None


def test_file_that_cannot_be_read_is_logged_once(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secret, _ = create_key(file, "mine", ["infer"])
    keys = KeyFile(file)
    content = file.read_bytes()
    with caplog.at_level(logging.INFO):
        for broken in (b"{", b"\xff\xfe", b"[" * 100_000, b'{"version": 1, "keys": [1e400]}'):
            caplog.clear()
            file.write_bytes(broken)
            for _ in range(3):
                assert keys.authenticate(secret) is None
        file.unlink()
        for _ in range(3):
            assert keys.authenticate(secret) is None
        told = [record.message for record in caplog.records if record.levelname == "ERROR"]
        assert len(told) == 1
        assert "cannot be read" in told[0]
        assert "Until then no key is accepted" in told[0]
        caplog.clear()
        file.write_bytes(content)
        file.chmod(0o600)
        assert keys.authenticate(secret) is not None
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        # The next time is told of again.
        file.write_text("{")
        assert keys.authenticate(secret) is None
        assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"]
        assert secret not in caplog.text
