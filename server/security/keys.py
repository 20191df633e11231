"""Keys and what they allow.

A key is `sk-` and 256 random bits. It is shown once, at its creation; the file keeps its
SHA-256 alone (a random key needs no slow hash). The file is JSON, readable by its owner
only, written whole or not at all, and read again when it has changed, so that a revoked key
is refused at once.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import secrets
import stat
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast, get_args

Scope = Literal[
    "infer",
    "infer:undefended",
    "jobs:read",
    "jobs:write",
    "models:admin",
    "audit:read",
    "metrics:read",
]
SCOPES: tuple[Scope, ...] = get_args(Scope)

_log = logging.getLogger("disp.keys")

_VERSION = 1
_LONGEST_SECRET = 512
_Signature = tuple[int, int, int, int]


class KeyFileError(Exception):
    """A keys file cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Principal:
    """Who asks, and what they may do."""

    key_id: str
    name: str
    scopes: frozenset[Scope]


@dataclass(frozen=True)
class KeyRecord:
    """A key as it is stored.

    Attributes:
        id: Public name of the key, for listing and revoking.
        name: What its owner called it.
        sha256: Hex digest of the secret.
        scopes: What it allows.
        created: Unix seconds.
    """

    id: str
    name: str
    sha256: str
    scopes: tuple[Scope, ...]
    created: int

    @property
    def principal(self) -> Principal:
        return Principal(self.id, self.name, frozenset(self.scopes))


class Authenticator(Protocol):
    """Says who a secret belongs to."""

    def authenticate(self, secret: str) -> Principal | None:
        """Returns the owner of a secret, or None if it is unknown."""


def new_secret() -> str:
    """Makes a fresh key."""
    return "sk-" + secrets.token_urlsafe(32)


def record_of(secret: str, name: str, scopes: Sequence[Scope]) -> KeyRecord:
    """Makes the stored form of a secret."""
    digest = _digest(secret)
    return KeyRecord("key-" + digest[:12], name, digest, tuple(scopes), int(time.time()))


class KeyRing:
    """Keys held in memory."""

    def __init__(self, records: Sequence[KeyRecord]) -> None:
        self._records = tuple(records)

    def authenticate(self, secret: str) -> Principal | None:
        if len(secret) > _LONGEST_SECRET:
            return None
        digest = _digest(secret)
        found: Principal | None = None
        # Every record is compared, so that the time taken says nothing about a match.
        for record in self._records:
            if hmac.compare_digest(record.sha256, digest):
                found = record.principal
        return found


class KeyFile:
    """Keys kept in a file that may change while the service runs.

    While the file cannot be read, is damaged or is open to others, no key is accepted; the log
    says so once, and again when the keys are accepted again.

    Raises:
        KeyFileError: At construction, if the file is missing, damaged or open to others.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._refused: str | None = None
        self._seen: _Signature | None
        self._seen, self._ring = self._read()

    def authenticate(self, secret: str) -> Principal | None:
        with self._lock:
            try:
                if self._seen is None or _signature(self._path) != self._seen:
                    self._seen, self._ring = self._read()
                    self._accept()
            except KeyFileError as error:
                self._seen, self._ring = None, KeyRing(())
                self._refuse(str(error))
            ring = self._ring
        return ring.authenticate(secret)

    def _read(self) -> tuple[_Signature, KeyRing]:
        # The signature comes first: a file that changes after it differs from it, and is read
        # again at the next request.
        seen = _signature(self._path)
        return seen, KeyRing(list_keys(self._path))

    def _refuse(self, reason: str) -> None:
        if reason != self._refused:
            self._refused = reason
            _log.error("%s Until then no key is accepted.", reason)

    def _accept(self) -> None:
        if self._refused is not None:
            self._refused = None
            _log.warning("The keys file %s can be read; its keys are accepted.", self._path)


def create_key(path: Path, name: str, scopes: Sequence[Scope]) -> tuple[str, KeyRecord]:
    """Adds a key to a file, which is made if it is not there.

    Returns:
        The secret, which is stored nowhere, and its record.

    Raises:
        KeyFileError: If a scope is unknown or the file cannot be used.
    """
    unknown = [scope for scope in scopes if scope not in SCOPES]
    if unknown or not scopes:
        raise KeyFileError(f"A key needs scopes out of: {', '.join(SCOPES)}.")
    secret = new_secret()
    record = record_of(secret, name, scopes)
    _write(path, [*(list_keys(path) if path.exists() else []), record])
    return secret, record


def list_keys(path: Path) -> list[KeyRecord]:
    """Reads the records of a file.

    Raises:
        KeyFileError: If the file is missing, damaged or open to others.
    """
    try:
        mode = path.stat().st_mode
        text = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from None
    if stat.S_IMODE(mode) & 0o077:
        raise KeyFileError(f"The keys file {path} is open to others: chmod 600 {path}")
    try:
        content = json.loads(text.decode())
        if content["version"] != _VERSION:
            raise ValueError
        return [_record(entry) for entry in content["keys"]]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise KeyFileError(f"The keys file {path} is damaged; make it anew.") from None


def revoke_key(path: Path, key_id: str) -> KeyRecord:
    """Takes a key out of a file.

    Raises:
        KeyFileError: If there is no such key or the file cannot be used.
    """
    records = list_keys(path)
    gone = [record for record in records if record.id == key_id]
    if not gone:
        raise KeyFileError(f"There is no key {key_id} in {path}.")
    _write(path, [record for record in records if record.id != key_id])
    return gone[0]


def read_secret(path: Path) -> KeyRing:
    """Reads a file that holds one key in plain text (a container's secret); it may do all.

    Raises:
        KeyFileError: If the file cannot be read or holds no key.
    """
    try:
        secret = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise KeyFileError(f"The key file {path} cannot be read.") from None
    if not secret.startswith("sk-") or len(secret) < 20 or len(secret) > _LONGEST_SECRET:
        raise KeyFileError(
            f"The key file {path} must hold one key: sk- and at least 17 random characters."
        )
    return KeyRing([record_of(secret, "key file", SCOPES)])


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def _record(entry: dict[str, Any]) -> KeyRecord:
    scopes = tuple(entry["scopes"])
    texts = (entry["id"], entry["name"], entry["sha256"])
    if not all(isinstance(text, str) for text in texts) or not set(scopes) <= set(SCOPES):
        raise ValueError
    if len(bytes.fromhex(entry["sha256"])) != hashlib.sha256().digest_size:
        raise ValueError
    return KeyRecord(*texts, cast("tuple[Scope, ...]", scopes), int(entry["created"]))


def _signature(path: Path) -> _Signature:
    """What differs when a file was written, replaced, or opened to others.

    Raises:
        KeyFileError: If it cannot be looked at.
    """
    try:
        info = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from None
    return info.st_mtime_ns, info.st_ctime_ns, info.st_size, info.st_ino


def _unreadable(path: Path, error: OSError) -> KeyFileError:
    return KeyFileError(f"The keys file {path} cannot be read ({type(error).__name__}).")


def _write(path: Path, records: Sequence[KeyRecord]) -> None:
    content = {"version": _VERSION, "keys": [asdict(record) for record in records]}
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise KeyFileError(f"The keys file {path} cannot be written.") from None
