"""`/v1/checkpoints` and `/v1/deployments`: what there is to serve, and serving it."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import anyio.to_thread
from fastapi import APIRouter, Depends

from server.deployer import Deployer
from server.errors import (
    CanaryFailed,
    CheckpointConflict,
    CheckpointDamaged,
    CheckpointNotFound,
    Draining,
    GateFailed,
    NotFound,
    NotReady,
)
from server.routes.access import RequestId, Require, ServicesHere, needed
from server.routes.description import refusals
from server.schemas.checkpoints import (
    Activation,
    Checkpoint,
    CheckpointDeleted,
    CheckpointList,
    Gate,
)
from server.security.keys import Principal
from server.services import Services
from server.store.audit import Actor
from server.store.checkpoint_tables import CheckpointRecord

router = APIRouter(prefix="/v1")

Admin = Annotated[Principal, Depends(Require("models:admin"))]


_SWAP = (CheckpointConflict, CheckpointDamaged, CanaryFailed, NotReady, Draining)


@router.get(
    "/checkpoints",
    dependencies=[Depends(Require("jobs:read"))],
    responses=refusals(NotFound),
)
def list_checkpoints(services: ServicesHere) -> CheckpointList:
    """Lists every checkpoint."""
    records = _deployer(services).store.list()
    return CheckpointList(data=[card_of(record) for record in records])


@router.get(
    "/checkpoints/{checkpoint_id}",
    dependencies=[Depends(Require("jobs:read"))],
    responses=refusals(CheckpointNotFound),
)
def get_checkpoint(checkpoint_id: str, services: ServicesHere) -> Checkpoint:
    """Describes one."""
    return card_of(_deployer(services).store.get(checkpoint_id))


@router.delete(
    "/checkpoints/{checkpoint_id}", responses=refusals(CheckpointNotFound, CheckpointConflict)
)
def delete_checkpoint(
    checkpoint_id: str, services: ServicesHere, principal: Admin, request_id: RequestId
) -> CheckpointDeleted:
    """Removes a checkpoint that nothing needs any more; written to the audit log."""
    needed(services.checkpoints).delete(checkpoint_id, actor=_actor(principal, request_id))
    return CheckpointDeleted(id=checkpoint_id)


@router.post(
    "/checkpoints/{checkpoint_id}/activate",
    responses=refusals(CheckpointNotFound, GateFailed, *_SWAP),
)
async def activate(
    checkpoint_id: str,
    services: ServicesHere,
    principal: Admin,
    request_id: RequestId,
    body: Activation | None = None,
) -> Checkpoint:
    """Serves a checkpoint; answers once it does."""
    work = partial(
        _deployer(services).activate,
        checkpoint_id,
        actor=_actor(principal, request_id),
        forced=body is not None and body.force,
    )
    return card_of(await anyio.to_thread.run_sync(work))


@router.post("/deployments/rollback", responses=refusals(NotFound, *_SWAP))
async def rollback(services: ServicesHere, principal: Admin, request_id: RequestId) -> Checkpoint:
    """Serves the previous checkpoint again; answers once it does."""
    work = partial(_deployer(services).rollback, actor=_actor(principal, request_id))
    return card_of(await anyio.to_thread.run_sync(work))


def card_of(record: CheckpointRecord) -> Checkpoint:
    """A checkpoint as it goes over the wire: its place on the disk stays here."""
    gate = None
    if record.gate_passed is not None:
        gate = Gate(passed=record.gate_passed, reasons=list(record.gate_reasons))
    return Checkpoint(
        id=record.id,
        created_at=record.created_at,
        name=record.name,
        sha256=record.sha256,
        state=record.state,
        base=record.base,
        parent=record.parent,
        job_id=record.job_id,
        metrics=dict(record.metrics),
        gate=gate,
    )


def _deployer(services: Services) -> Deployer:
    if services.deployer is None:
        raise NotFound("This server keeps no checkpoints.")
    return services.deployer


def _actor(principal: Principal, request_id: str) -> Actor:
    return Actor(principal.name, principal.key_id, request_id)
