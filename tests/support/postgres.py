"""A throw-away PostgreSQL cluster for tests that need a real one.

Import the fixtures into a `conftest.py` or a test module:

    from tests.support.postgres import postgres_cluster, postgres_url
"""

from __future__ import annotations

import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

START_SECONDS = 300
_PLACES = ("/usr/lib/postgresql", "/usr/local/pgsql", "/opt/homebrew/opt")
_ACCOUNTS = ("postgres", "nobody")
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


@dataclass
class Cluster:
    """A server on loopback that trusts everybody on this machine; it can be stopped and started."""

    folder: Path
    binaries: Path
    account: dict[str, Any]
    port: int
    process: subprocess.Popen[bytes] = field(init=False)

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": self.folder,
            "fsync": "off",
        }
        words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    self.binaries / "postgres",
                    "-D",
                    self.folder / "data",
                    "-p",
                    str(self.port),
                    *words,
                ],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                **self.account,
            )
        deadline = time.monotonic() + START_SECONDS
        while not self.answers():
            running = self.process.poll() is None and time.monotonic() < deadline
            assert running, (self.folder / "log").read_text()

    def stop(self, number: int = signal.SIGINT) -> None:
        """Stops the server: SIGINT cuts every connection, SIGQUIT leaves as a crash does."""
        self.process.send_signal(number)
        try:
            self.process.wait(START_SECONDS)
        finally:
            self.process.kill()
            self.process.wait()

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://disp@127.0.0.1:{self.port}/{database}"

    def execute(self, statement: str) -> None:
        """Runs one statement outside of a transaction."""
        with psycopg.connect(self._address, autocommit=True) as connection:
            connection.execute(statement)

    def answers(self) -> bool:
        try:
            psycopg.connect(self._address, connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    @property
    def _address(self) -> str:
        return f"host=127.0.0.1 port={self.port} user=disp dbname=postgres"


def find_binaries() -> Path | None:
    """Folder of `initdb` and `postgres`, which distributions keep out of PATH."""
    if found := shutil.which("initdb"):
        return Path(found).parent
    files = [file for place in _PLACES for file in Path(place).glob("*/bin/initdb")]
    return max(files).parent if files else None


def start_cluster(folder: Path, binaries: Path) -> Cluster:
    """Makes and starts a cluster in an existing, empty folder.

    PostgreSQL refuses to run as root: it then runs under an account without rights.
    """
    account: dict[str, Any] = {}
    if os.geteuid() == 0:
        user = _account()
        os.chown(folder, user.pw_uid, user.pw_gid)
        account = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    data = folder / "data"
    options = ["--username=disp", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]
    made = subprocess.run(
        [binaries / "initdb", f"--pgdata={data}", *options],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        **account,
    )
    assert made.returncode == 0, made.stderr
    cluster = Cluster(folder, binaries, account, _free_port())
    cluster.start()
    return cluster


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """A cluster of its own; the test is skipped without PostgreSQL."""
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed.")
    # Not under pytest's own folder, which only its owner may enter.
    folder = Path(tempfile.mkdtemp(prefix="disp-postgres-"))
    try:
        cluster = start_cluster(folder, binaries)
        try:
            yield cluster
        finally:
            cluster.stop()
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def postgres_cluster() -> Iterator[Cluster]:
    """One cluster for the session; tests that ask for it are skipped without PostgreSQL."""
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture
def postgres_url(postgres_cluster: Cluster) -> Iterator[str]:
    """URL of a fresh, empty database, as SQLAlchemy reads it."""
    name = f"disp_{uuid.uuid4().hex}"
    postgres_cluster.execute(f"CREATE DATABASE {name}")
    yield postgres_cluster.url(name)
    postgres_cluster.execute(f"DROP DATABASE {name} WITH (FORCE)")


def _account() -> pwd.struct_passwd:
    for name in _ACCOUNTS:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise AssertionError("There is no account without rights to run PostgreSQL under.")


def _free_port() -> int:
    """A free port that the system gives to nobody by itself.

    A test may stop the server for a while; a port of the system's own range would then soon
    belong to some other process' connection.
    """
    low = 32_768
    if _EPHEMERAL.is_file():
        low = int(_EPHEMERAL.read_text().split()[0])
    ports = list(range(10_000, low)) or [0]
    random.SystemRandom().shuffle(ports)
    for port in ports:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise AssertionError("No port is free.")
