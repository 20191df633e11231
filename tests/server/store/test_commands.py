"""The commands on a data folder: verify and list the audit log, add a checkpoint, note keys."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import delete

from server.security.__main__ import main as keys
from server.store.__main__ import main
from server.store.audit import AuditLog, audit_rows
from server.store.database import Database, open_database
from server.store.home import Home

Output = pytest.CaptureFixture[str]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.at(tmp_path / "data")


def test_keys_are_noted_where_a_data_folder_is_given(
    home: Home, tmp_path: Path, capsys: Output
) -> None:
    file = ["--file", str(tmp_path / "keys.json")]
    where = ["--data-dir", str(home.root)]
    assert keys(["create", "--scope", "infer", "--scope", "models:admin", *file, *where]) == 0
    key_id = capsys.readouterr().err.partition(":")[0]
    assert keys(["revoke", key_id, *file, *where]) == 0
    capsys.readouterr()
    assert main(["audit", "list", *where]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["action"], row["object"], row["after"]) for row in rows] == [
        ("create_key", key_id, "infer models:admin"),
        ("revoke_key", key_id, None),
    ]
    assert "sk-" not in (home.root / "disp.sqlite").read_bytes().decode("latin-1")


def test_keys_without_a_data_folder_make_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DISP_DATA_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    assert keys(["create", "--file", "keys.json"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["keys.json"]


def test_verify_prints_the_head_and_holds_the_log_to_it(home: Home, capsys: Output) -> None:
    where = ["--data-dir", str(home.root)]
    database = open_database(home.create().database_url)
    log = AuditLog(database)
    for _ in range(3):
        log.append("somebody", None, "activate", "checkpoint")
    assert main(["audit", "verify", *where]) == 0
    head = capsys.readouterr().out.split()[-1]
    log.append("somebody", None, "activate", "checkpoint")
    assert main(["audit", "verify", "--head", head, *where]) == 0
    assert main(["audit", "verify", "--head", "f" * 64, *where]) == 1
    with database.transaction() as connection:
        connection.execute(delete(audit_rows).where(audit_rows.c.number == 2))
    capsys.readouterr()
    assert main(["audit", "verify", *where]) == 1
    assert "Row 2 is missing" in capsys.readouterr().out
    database.close()


def test_looking_makes_no_folder(tmp_path: Path, capsys: Output) -> None:
    assert main(["audit", "verify", "--data-dir", str(tmp_path / "absent")]) == 2
    assert "no data folder" in capsys.readouterr().err
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize(
    "url", ["sqlite:////absent/folder/disp.sqlite", "postgresql+psycopg://127.0.0.1:1/x", "what"]
)
def test_database_that_cannot_be_opened_is_refused(home: Home, url: str, capsys: Output) -> None:
    home.create()
    words = ["audit", "verify", "--data-dir", str(home.root), "--database-url", url]
    assert main(words) == 2
    assert "--database-url" in capsys.readouterr().err


def test_checkpoint_is_added_where_it_lies(
    home: Home, tiny_checkpoint: Path, capsys: Output
) -> None:
    home.create()
    where = ["--data-dir", str(home.root)]
    assert main(["add", str(tiny_checkpoint), "--parent", "other@sha256:0", *where]) == 0
    assert capsys.readouterr().out.startswith("tiny@sha256:")
    assert list(home.checkpoints.iterdir()) == []
    assert main(["add", str(home.root), *where]) == 1
    assert "config.json" in capsys.readouterr().err


def test_url_goes_before_the_file(tmp_path: Path) -> None:
    home = Home.at(tmp_path, f"sqlite:///{tmp_path}/other.sqlite")
    Database(home.database_url).create_tables()
    assert (tmp_path / "other.sqlite").is_file()
