"""Checkpoints: what there is, what state it is in, and which one serves.

    staged      its files are in place, hashed
    verified    its files were read again and are those that were staged
    active      it serves; one in every deployment
    previous    it served before the active one; `rollback` brings it back
    retired     it served before that

A deployment is a model that was started, by the id of its checkpoint: servers that were
started with the same model on the same database serve the same active checkpoint. Which one
that is stands in one row, so a transaction moves it whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Connection, select, update

from purifier.errors import CheckpointError
from server.errors import CheckpointConflict, CheckpointDamaged, CheckpointNotFound, GateFailed
from server.store.audit import Actor, append_row, as_actor
from server.store.blobs import BlobStore
from server.store.checkpoint_fetch import fetch, tuned_folder
from server.store.checkpoint_files import (
    Content,
    base_name,
    check_base,
    check_files,
    read_content,
    take_in,
)
from server.store.checkpoint_removal import refuse_if_needed, remove_files, sweep
from server.store.checkpoint_tables import (
    CheckpointRecord,
    State,
    checkpoints,
    new_row,
    record_of,
    served_states,
    slots,
)
from server.store.database import Database, clock
from server.store.outages import all_retried


@all_retried
class CheckpointStore:
    """The checkpoints of a database and its folder.

    Args:
        database: Its tables exist.
        folder: Where staged checkpoints lie.
        deployment: Whose active checkpoint is meant; `open_deployment` can set it later.
        store: What all workers share: brings what jobs made on other machines.
    """

    def __init__(
        self,
        database: Database,
        folder: Path,
        deployment: str | None = None,
        *,
        store: BlobStore | None = None,
    ) -> None:
        self._database = database
        self._folder = folder
        self._store = store
        self.deployment = deployment

    def register(self, folder: Path, *, parent: str | None = None) -> CheckpointRecord:
        """Makes a checkpoint known that stays where it lies; a delta's base beside it as well.

        Raises:
            CheckpointError: If the folder is no checkpoint, or is refused.
        """
        content = read_content(folder)
        base = None
        if content.delta is not None:
            base = self.register(folder.resolve().parent / base_name(content))
            check_base(content, base.id, base.sha256)
        return self._add(content, folder.resolve(), base, parent, None, {})

    def stage(
        self,
        folder: Path,
        *,
        base: str | None,
        parent: str | None,
        job_id: str | None = None,
        metrics: Mapping[str, Any] | None = None,
        beside: Path | None = None,
    ) -> CheckpointRecord:
        """Copies a checkpoint into the store. Doing it again changes nothing.

        Args:
            folder: A delta or full weights.
            base: Id of a delta's base; None for full weights.
            parent: Id of the checkpoint it was made from.
            job_id: The job that made it.
            metrics: What its evaluation measured.
            beside: Where this machine has the base; by default where it was registered.

        Raises:
            CheckpointNotFound: If the base is not known here.
            CheckpointError: If the folder is refused or does not fit its base.
        """
        content = read_content(folder)
        if (content.delta is None) is not (base is None):
            raise CheckpointError(f"{content.name}: a delta needs a base, full weights have none.")
        record = None
        if base is not None:
            record = self.get(base)
            check_base(content, record.id, record.sha256)
        if beside is None and record is not None:
            beside = record.path
        place = take_in(folder, content, self._folder, beside)
        return self._add(content, place, record, parent, job_id, metrics or {})

    def get(self, checkpoint: str) -> CheckpointRecord:
        """One checkpoint.

        Raises:
            CheckpointNotFound: If there is none of this id.
        """
        with self._database.reading() as connection:
            return self._get(connection, checkpoint)

    def list(self) -> list[CheckpointRecord]:
        """Every checkpoint, the latest first."""
        query = select(checkpoints).order_by(checkpoints.c.created_at.desc(), checkpoints.c.id)
        with self._database.reading() as connection:
            served = self._served(connection)
            return [record_of(row, self._folder, served) for row in connection.execute(query)]

    def path(self, checkpoint: str) -> Path:
        """The folder of a checkpoint.

        Raises:
            CheckpointNotFound: If there is none of this id.
        """
        return self.get(checkpoint).path

    def verify(self, checkpoint: str) -> CheckpointRecord:
        """Reads every file of a checkpoint again; a staged one is verified from now on.

        Raises:
            CheckpointNotFound: If there is none of this id.
            CheckpointDamaged: Naming the file, if one is missing, altered or added.
        """
        record = self.bring(checkpoint)
        try:
            check_files(record.path, record.files)
        except CheckpointError as error:
            raise CheckpointDamaged(error.message) from None
        staged = (checkpoints.c.id == checkpoint, checkpoints.c.state == "staged")
        with self._database.reading() as connection:
            if connection.execute(select(checkpoints.c.id).where(*staged)).first() is None:
                return self._get(connection, checkpoint)
        with self._database.transaction() as connection:
            connection.execute(update(checkpoints).where(*staged).values(state="verified"))
            return self._get(connection, checkpoint)

    def bring(self, checkpoint: str, *, beside: Path | None = None) -> CheckpointRecord:
        """Makes sure that this machine has a checkpoint's files.

        What a job made on a machine with another data folder is copied from the shared store.

        Args:
            checkpoint: Its id.
            beside: Where this machine has a delta's base; by default where it was registered.

        Raises:
            CheckpointNotFound: If there is none of this id.
            CheckpointDamaged: If it cannot be found, or not as it was made.
        """
        record = self.get(checkpoint)
        if record.path.is_dir() or self._store is None or record.job_id is None:
            return record
        if record.base is not None and beside is None:
            beside = self.bring(record.base).path
        fetch(self._store, record, self._folder, beside)
        return record

    def delete(self, checkpoint: str, *, actor: Actor | str) -> None:
        """Forgets a checkpoint and removes its files, if they lie in the store's folder.

        The copy that its job left in the shared store goes as well. What happened goes into the
        audit log.

        Raises:
            CheckpointNotFound: If there is none of this id.
            CheckpointConflict: If something needs it; see `refuse_if_needed`.
        """
        with self._database.transaction() as connection:
            record = self._get(connection, checkpoint)
            refuse_if_needed(connection, record.id)
            gone = connection.execute(checkpoints.delete().where(checkpoints.c.id == record.id))
            if gone.rowcount == 0:
                raise CheckpointNotFound
            append_row(
                connection, as_actor(actor), "delete_checkpoint", record.id, before=record.state
            )
        remove_files(self._folder, record.path)
        if self._store is not None and record.job_id is not None:
            self._store.remove_folder(tuned_folder(record.job_id))

    def sweep(self) -> None:
        """Removes files that no checkpoint has, a day after they were put there."""
        with self._database.reading() as connection:
            paths = connection.execute(select(checkpoints.c.path)).scalars().all()
        sweep(self._folder, {Path(path).parts[0] for path in paths})

    def record_gate(
        self, checkpoint: str, passed: bool, reasons: Sequence[str] = ()
    ) -> CheckpointRecord:
        """Keeps what the gate said.

        Raises:
            CheckpointNotFound: If there is none of this id.
        """
        change = update(checkpoints).where(checkpoints.c.id == checkpoint)
        values = {"gate_passed": passed, "gate_reasons": json.dumps(list(reasons))}
        with self._database.transaction() as connection:
            connection.execute(change.values(values))
            return self._get(connection, checkpoint)

    def open_deployment(self, origin: str) -> CheckpointRecord:
        """Makes this the store of the deployment that was started with a checkpoint.

        Returns:
            What it served last; at its first start `origin` itself, which is active from now on.
        """
        self.deployment = origin
        first = self._database.insert(slots).on_conflict_do_nothing()
        with self._database.transaction() as connection:
            values = {"deployment": origin, "active": origin, "changed_at": clock(connection)}
            connection.execute(first.values(values))
            return self._get(connection, connection.execute(self._slot()).one().active)

    def active(self) -> CheckpointRecord | None:
        """What the deployment serves; None without a deployment."""
        return self._pointed("active")

    def previous(self) -> CheckpointRecord | None:
        """What `rollback` would bring back."""
        return self._pointed("previous")

    def check(self, checkpoint: str, *, forced: bool = False) -> CheckpointRecord:
        """Checks that a checkpoint may be activated, its files apart.

        Raises:
            CheckpointNotFound: If there is none of this id.
            GateFailed: If its evaluation failed and `forced` is not set.
        """
        record = self.get(checkpoint)
        if record.gate_passed is False and not forced and record.state != "active":
            reasons = " ".join(record.gate_reasons)
            raise GateFailed(f"The evaluation of {record.id} failed. {reasons}".strip())
        return record

    def activate(
        self,
        checkpoint: str,
        *,
        actor: Actor | str,
        forced: bool = False,
        wait: float | None = None,
    ) -> CheckpointRecord:
        """Makes a checkpoint the active one, and the active one the previous; one transaction.

        Activating the active one changes nothing. What happened goes into the audit log.

        Args:
            checkpoint: Its id.
            actor: Who does it.
            forced: Also if its evaluation failed.
            wait: Seconds to wait for a lock of the database; by default the database's own.

        Raises:
            CheckpointNotFound: If there is none of this id.
            CheckpointConflict: If it was never verified.
            GateFailed: If its evaluation failed and `forced` is not set.
        """
        record = self.check(checkpoint, forced=forced)
        action = "force" if record.gate_passed is False else "activate"
        return self._move(record.id, as_actor(actor), action, wait)

    def rollback(
        self, actor: Actor | str, *, expected: str | None = None, wait: float | None = None
    ) -> CheckpointRecord:
        """Makes the previous checkpoint the active one, and the active one the previous.

        Args:
            actor: Who does it.
            expected: The checkpoint that must be the previous one. If it is the active one, it is
                returned: an earlier try has moved it, and was not heard of.
            wait: As for `activate`.

        Raises:
            CheckpointConflict: If there is no previous one, or it is not the expected one.
        """
        active = self.active()
        if active is not None and active.id == expected:
            return active
        record = self.check_rollback()
        if expected not in (None, record.id):
            raise CheckpointConflict("Another checkpoint was activated meanwhile; look again.")
        return self._move(record.id, as_actor(actor), "rollback", wait)

    def check_rollback(self) -> CheckpointRecord:
        """What `rollback` would activate.

        Raises:
            CheckpointConflict: If there is none.
        """
        record = self.previous()
        if record is None:
            raise CheckpointConflict("There is no previous checkpoint to roll back to.")
        return record

    def _move(
        self, checkpoint: str, actor: Actor, action: str, wait: float | None
    ) -> CheckpointRecord:
        with self._database.transaction(wait=wait) as connection:
            slot = connection.execute(self._slot().with_for_update()).one()
            record = self._get(connection, checkpoint)
            if slot.active == checkpoint:
                return record
            if record.state == "staged":
                raise CheckpointConflict(f"{checkpoint} was never verified.")
            now = clock(connection)
            pointers = {"active": checkpoint, "previous": slot.active, "changed_at": now}
            connection.execute(
                update(slots).where(slots.c.deployment == self.deployment).values(pointers)
            )
            _set_state(connection, checkpoint, "verified")
            if slot.previous not in (None, checkpoint):
                _set_state(connection, slot.previous, "retired")
            append_row(connection, actor, action, checkpoint, before=slot.active, after=checkpoint)
            return self._get(connection, checkpoint)

    def _pointed(self, column: Literal["active", "previous"]) -> CheckpointRecord | None:
        if self.deployment is None:
            return None
        with self._database.reading() as connection:
            slot = connection.execute(self._slot()).first()
            found = None if slot is None else slot._mapping[column]
            return None if found is None else self._get(connection, str(found))

    def _slot(self) -> Any:
        return select(slots).where(slots.c.deployment == self.deployment)

    def _served(self, connection: Connection) -> dict[str, State]:
        """State by id of what the deployment, or without one any deployment, points to."""
        query: Any = select(slots) if self.deployment is None else self._slot()
        return served_states(connection.execute(query).all())

    def _get(self, connection: Connection, checkpoint: str) -> CheckpointRecord:
        row = connection.execute(
            select(checkpoints).where(checkpoints.c.id == checkpoint)
        ).one_or_none()
        if row is None:
            raise CheckpointNotFound
        return record_of(row, self._folder, self._served(connection))

    def _add(
        self,
        content: Content,
        path: Path,
        base: CheckpointRecord | None,
        parent: str | None,
        job_id: str | None,
        metrics: Mapping[str, Any],
    ) -> CheckpointRecord:
        base_id = None if base is None else base.id
        values = new_row(
            content.id,
            content.sha256,
            content.hashes,
            path=path,
            base=base_id,
            parent=parent or content.parent or base_id,
            job_id=job_id,
            metrics=metrics,
        )
        insert = self._database.insert(checkpoints).values(values)
        moved = insert.on_conflict_do_update(index_elements=["id"], set_={"path": str(path)})
        with self._database.transaction() as connection:
            connection.execute(moved)
            return self._get(connection, content.id)


def _set_state(connection: Connection, checkpoint: str, state: State) -> None:
    connection.execute(
        update(checkpoints).where(checkpoints.c.id == checkpoint).values(state=state)
    )
