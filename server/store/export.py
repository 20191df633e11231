"""A checkpoint of the store, written for use elsewhere."""

from __future__ import annotations

from pathlib import Path

from purifier.errors import InvalidSetting
from purifier.mdlm.export import export_merged
from purifier.mdlm.export_adapter import export_adapter
from server.store.checkpoints import CheckpointStore


def export(
    store: CheckpointStore,
    checkpoint: str,
    output: Path | None,
    *,
    adapter: bool = False,
    dtype: str | None = None,
) -> Path:
    """Writes a checkpoint as full weights, or as an adapter folder.

    Every file of the checkpoint is compared with its hash first.

    Args:
        store: Knows the checkpoint.
        checkpoint: Its id.
        output: The folder to make; by default one of the checkpoint's name in the working
            directory.
        adapter: Whether an adapter folder is written; else full weights.
        dtype: Of full weights; see `purifier.mdlm.export`.

    Returns:
        The folder.

    Raises:
        CheckpointNotFound: If there is none of this id.
        CheckpointDamaged: If a file is missing, altered or added.
        CheckpointError: If it cannot be exported in this form.
        InvalidSetting: If the output exists or cannot be written.
    """
    if adapter and dtype is not None:
        raise InvalidSetting("--dtype is for merged weights; leave it out.", param="dtype")
    record = store.verify(checkpoint)
    target = Path(record.name) if output is None else output
    if adapter:
        export_adapter(record.path, target)
    else:
        export_merged(record.path, target, dtype=dtype)
    return target
