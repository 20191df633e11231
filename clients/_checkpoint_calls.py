"""What can be asked about checkpoints and about which of them serves."""

from __future__ import annotations

from urllib.parse import quote

from clients._call import Call, reader
from server.schemas.checkpoints import Activation, Checkpoint, CheckpointDeleted, CheckpointList


def every() -> Call[CheckpointList]:
    return Call("GET", "/v1/checkpoints", reader(CheckpointList), repeatable=True)


def activate(checkpoint: str, force: bool) -> Call[Checkpoint]:
    path = f"/v1/checkpoints/{quote(checkpoint, safe='@:')}/activate"
    return Call("POST", path, reader(Checkpoint), Activation(force=force).model_dump(mode="json"))


def delete(checkpoint: str) -> Call[CheckpointDeleted]:
    path = f"/v1/checkpoints/{quote(checkpoint, safe='@:')}"
    return Call("DELETE", path, reader(CheckpointDeleted))


def rollback() -> Call[Checkpoint]:
    return Call("POST", "/v1/deployments/rollback", reader(Checkpoint))
